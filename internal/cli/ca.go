package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
)

// newCA returns "ca" with what can be done to the hub's certificate authority.
func newCA(w command.World) *cobra.Command {
	cmd := command.Group("ca", "See, rotate and retire the hub's certificate authority",
		newCAList(w), newCARotate(w), newCARetire(w))
	cmd.Long = `The hub's certificate authority signs the certificates of agents, proxies and the hub
itself. It is known by its pin, or by the file ca.crt in the hub's data directory.

A rotation needs nobody's attention and interrupts nothing. The new authority is
announced first: everybody gets to know it with the next renewal of credentials. Then it
signs, and the old one retires when the last certificate that it signed has expired.
Parties that start with the old --ca-pin or --ca-file are still served after that, until
the next rotation: give them the new pin or file by then.`
	return cmd
}

func newCAList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the hub's certificate authorities",
		Long: `List the hub's certificate authorities, the newest first. CERTIFICATES is how many valid
certificates of agents and proxies lean on one; NEXT PHASE is when a phase ends at the
latest, and WAITS FOR how many credentials it waits for.`,
		Example: "  postern ca list\n  postern ca list -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			all, err := c.Authorities(ctx)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) { authorityRows(r, all) })
		})
	}
	return cmd
}

func authorityRows(r *rows, all []api.Authority) {
	r.row("PIN", "PHASE", "SINCE", "NOT AFTER", "CERTIFICATES", "NEXT PHASE", "WAITS FOR")
	for _, a := range all {
		waits := "-"
		if !a.NextPhase.IsZero() {
			waits = strconv.Itoa(a.WaitsFor)
		}
		r.row(a.Pin, a.Phase, date(a.Since, ""), date(a.NotAfter, ""), strconv.Itoa(a.Certificates), minute(a.NextPhase), waits)
	}
}

// minute returns a time that is near, for people.
func minute(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

func newCARotate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the hub's certificate authority, without an outage",
		Long: `Make a new certificate authority and let it take over as soon as all parties know it: when
each has renewed its credentials, which takes no longer than these live. Nothing is
interrupted, and no party has to be started again.

With --now the new authority signs at once. Until their next renewal, parties that do not
know it refuse those that have a certificate of it.`,
		Example: "  postern ca rotate\n  postern ca list",
		Args:    command.Exact(),
	}
	now := cmd.Flags().Bool("now", false, "do not wait until all parties know the new authority")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			all, err := c.RotateCA(ctx, api.RotateCA{AtOnce: *now})
			if err != nil || len(all) == 0 {
				return err
			}
			next := all[0]
			fmt.Fprintf(w.Stderr, "the new certificate authority is %s\n", next.Phase)
			if next.Phase == "announced" {
				fmt.Fprintf(w.Stderr, "it signs by %s; follow it with: postern ca list\n", minute(next.NextPhase))
			}
			fmt.Fprint(w.Stderr, "give new agents and proxies this pin, or the hub's ca.crt of now:\n")
			fmt.Fprintln(w.Stdout, next.Pin)
			return nil
		})
	}
	return cmd
}

func newCARetire(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retire PIN",
		Short: "Give up an announced certificate authority, or distrust one at once",
		Long: `Withdraw a certificate authority before its time. The first eight digits of its pin are
enough.

One that is announced is given up. One that signs or retires is withdrawn with --force
only, which is for a key that somebody may have stolen: it is distrusted at once, what it
signed is refused, and connections on its certificates are cut. If it was the one that
signs, a new one takes its place. Honest parties come back by themselves with new
certificates; but who starts with its pin or certificate would believe the thief's hub,
so give everybody the new pin or ca.crt.`,
		Example: `  postern ca retire sha256:3f1c0a27
  postern ca retire sha256:3f1c0a27 --force`,
		Args: command.Exact("PIN"),
	}
	force := cmd.Flags().Bool("force", false, "distrust it at once, and cut what it signed")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			if err := c.RetireCA(ctx, args[0], *force); err != nil {
				return err
			}
			fmt.Fprintln(w.Stderr, "certificate authority withdrawn; see: postern ca list")
			return nil
		})
	}
	return cmd
}
