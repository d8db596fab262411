package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/identity"
)

// revocable is how "revoke" and "restore" speak of agents, or of proxies.
type revocable struct {
	role    identity.Role
	what    string // for a name that is refused
	arg     string // in the usage
	example string // a name
	by      string // what it may have enrolled with
}

func revocableAgent() revocable {
	return revocable{identity.RoleAgent, "agent ID", "AGENT", "office", "a robot token, a key or a workload token"}
}

func revocableProxy() revocable {
	return revocable{identity.RoleProxy, "proxy name", "NAME", "ci", "a robot token, a workload token or a person's session"}
}

func newRevoke(w command.World, of revocable) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke " + of.arg,
		Short: fmt.Sprintf("Keep one %s out by its name", of.role),
		Long: fmt.Sprintf(`Keep one %[1]s out by its name, with all its replicas and whatever it enrolled with:
%[2]s. Its connections and streams
are cut within seconds, its certificates are refused from then on, and nobody gets new ones
by this name until it is restored. It may also be one that has not come yet.

The %[1]s goes on asking, every half minute in the end, and comes back by itself when it is
restored. Tokens stay good for other names: revoke them too if they have leaked.`, of.role, of.by),
		Example: fmt.Sprintf("  postern %s revoke %s -a acme --reason \"laptop stolen\"", of.role, of.example),
		Args:    command.Exact(of.arg),
	}
	reason := cmd.Flags().String("reason", "", "why, for the list and the audit log; the "+string(of.role)+" is not told")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName(of.what, args[0]); err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			v, err := c.RevokeParty(ctx, org, string(of.role), args[0], api.RevokeParty{Reason: *reason})
			if err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "%s %s/%s is revoked since %s by %s; %s cut now\n",
				v.Role, org, v.Name, v.Revoked.Local().Format(time.DateTime), v.By, count(v.Cut, "connection"))
			return nil
		})
	}
	return cmd
}

func newRestore(w command.World, of revocable) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore " + of.arg,
		Short: fmt.Sprintf("Let a revoked %s in again", of.role),
		Long: fmt.Sprintf(`Let a revoked %s in again, with a token or key that is good. The certificates that it had
before stay revoked. One that still runs comes back within a minute.`, of.role),
		Example: fmt.Sprintf("  postern %s restore %s -a acme", of.role, of.example),
		Args:    command.Exact(of.arg),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName(of.what, args[0]); err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			if err := c.RestoreParty(ctx, org, string(of.role), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "%s %s/%s may come back\n", of.role, org, args[0])
			return nil
		})
	}
	return cmd
}

func newRevocations(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revocations",
		Short: "List the agents and proxies that are kept out by name",
		Long: `List the agents and proxies of an organization that are kept out by name, since when, by whom
and why. See postern agent revoke and postern proxy revoke.`,
		Example: "  postern revocations -a acme\n  postern revocations -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Revocations(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("PARTY", "NAME", "REVOKED", "BY", "REASON")
				for _, v := range all {
					r.row(v.Role, v.Name, ago(time.Now(), v.Revoked), v.By, v.Reason)
				}
			})
		})
	}
	return cmd
}
