package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// defaultJoinLife is how long a join string is good unless told otherwise: for
// somebody in another company to come to work.
const defaultJoinLife = 24 * time.Hour

// newAgentNew returns "agent new".
func newAgentNew(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "new AGENT",
		Short: "Make a join string for a new agent, and show how to start it",
		Long: `Make a join string: one text that holds the hub's address, the fingerprint of its CA, the
agent's name, and a secret that is good once and for a limited time. The agent that is
started with it makes its own key and registers it; from then on the join string is dead,
and no robot token can take the agent's ID.

What the agent lets others reach does not stand in the join string, since the owner of the
private network decides that: --allow only completes the commands that are shown.

An agent that is registered gets a further key only with --further-key, for instance when
its state was lost.`,
		Example: `  postern agent new office --allow tcp:db.example.org:5432

  # The string to a file, for an agent that reaches the hub by another name.
  postern agent new office -f office.join --connect-url tls://hub.example.org --expires-in 1h`,
		Args: command.Exact("AGENT"),
	}
	var o joinOptions
	cmd.Flags().StringArrayVar(&o.allow, "allow", nil, "`RULE` for what the agent lets others reach, in the commands that are shown; repeatable")
	cmd.Flags().DurationVar(&o.expires, "expires-in", defaultJoinLife, "how long the join string is good, if it is not used")
	cmd.Flags().StringVar(&o.connectURL, "connect-url", "", "`URL` where the agent reaches the hub; without it, where this command does")
	cmd.Flags().StringVarP(&o.description, "description", "d", "", "what the agent is for")
	cmd.Flags().BoolVar(&o.furtherKey, "further-key", false, "let an agent that is registered already get a further key")
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "`FILE` for the join string, which is then not printed")
	_ = cmd.MarkFlagFilename("file") // fails for unknown flags only
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := errors.Join(checkName("agent ID", args[0]), o.check()); err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			if o.connectURL == "" {
				o.connectURL = connectURLOf(c.BaseURL)
			}
			return agentNew(ctx, w, c, org, args[0], o, *output)
		})
	}
	return cmd
}

// joinOptions are the flags of "agent new".
type joinOptions struct {
	allow       []string
	expires     time.Duration
	connectURL  string
	description string
	furtherKey  bool
	file        string
}

func (o *joinOptions) check() error {
	for _, rule := range o.allow {
		if _, err := policy.ParseRule(rule); err != nil {
			return &command.UsageError{Err: fmt.Errorf("--allow %s: %w", rule, err)}
		}
	}
	if o.expires%time.Second != 0 || o.expires <= 0 {
		return &command.UsageError{Err: fmt.Errorf("--expires-in %v: want a positive number of whole seconds", o.expires)}
	}
	if o.file == "-" {
		o.file = ""
	}
	return nil
}

// connectURLOf returns the connect URL of a hub that is reached at an https URL.
func connectURLOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base // the hub will say so
	}
	if u.Port() == "" {
		return "tls://" + u.Host + ":443"
	}
	return "tls://" + u.Host
}

// agentNew makes the join string and puts it where it shall go. The file is opened
// before the hub is asked, so that no string is made that cannot be kept.
func agentNew(ctx context.Context, w command.World, c *api.Client, org, agent string, o joinOptions, output format) error {
	var file *secretFile
	if o.file != "" {
		var err error
		if file, err = newSecretFile(o.file, false); err != nil {
			return err
		}
		defer file.discard()
		if regularFileExists(o.file) {
			return &command.UsageError{Err: fmt.Errorf("%s exists; choose another file", o.file)}
		}
	}
	made, err := c.CreateJoin(ctx, org, api.CreateJoin{
		Agent: agent, Description: o.description, ExpiresIn: int64(o.expires / time.Second), ConnectURL: o.connectURL, FurtherKey: o.furtherKey,
	})
	if err != nil {
		return err
	}
	ways := waysToStart(made, o.allow, o.file)
	if file != nil {
		if err := file.commitText(made.JoinString + "\n"); err != nil {
			if revoked := c.RevokeJoin(ctx, org, made.ID); revoked != nil {
				return fmt.Errorf("%w; and join string %s could not be revoked: %w", err, made.ID, revoked)
			}
			return err
		}
		fmt.Fprintf(w.Stderr, "join string %s for agent %s/%s written to %s; it is good once, until %s\n",
			made.ID, org, agent, o.file, made.Expires.Local().Format(time.DateTime))
		made.JoinString = ""
	}
	if onlyHere(made.ConnectURL) {
		fmt.Fprintf(w.Stderr, "only agents on this machine reach %s; give --connect-url for others\n", made.ConnectURL)
	}
	if output != formatTable {
		return output.print(w.Stdout, newAgent{NewJoin: made, Allow: nonNil(o.allow), Start: ways}, nil)
	}
	return wrote(ways.tell(w.Stdout, made))
}

// newAgent is what "agent new" prints for programs.
type newAgent struct {
	api.NewJoin
	Allow []string `json:"allow"`
	Start ways     `json:"start"`
}

// onlyHere reports whether a connect URL leads to this machine wherever it is used.
func onlyHere(connectURL string) bool {
	u, err := url.Parse(connectURL)
	return err == nil && config.Loopback(u.Hostname()+":0")
}

// newJoin returns "agent join" with what can be done to join strings.
func newJoin(w command.World) *cobra.Command {
	cmd := command.Group("join", "List and revoke join strings", newJoinList(w), newJoinRevoke(w))
	cmd.Aliases = []string{"joins"}
	cmd.Long = "List and revoke join strings. They are made by 'postern agent new'."
	return cmd
}

func newJoinList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List an organization's join strings",
		Long: `List an organization's join strings: those that are open, and those that were used or
expired in the last week. The secret is never shown again.`,
		Example: "  postern agent join list -a acme",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Joins(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("ID", "AGENT", "STATE", "CREATED", "EXPIRES", "USED", "KEY")
				for _, j := range all {
					key := j.KeyID
					if len(key) > 8 {
						key = key[:8]
					}
					r.row(j.ID, j.Agent, j.State, date(j.Created, ""), date(j.Expires, ""), ago(time.Now(), j.Used), key)
				}
			})
		})
	}
	return cmd
}

func newJoinRevoke(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "revoke ID",
		Aliases: []string{"rm", "delete"},
		Short:   "Revoke a join string",
		Long: `Revoke a join string, given by its ID as the list shows it. An agent that has joined with
it stays: take its key away with 'postern agent key remove' or 'postern agent unregister'.`,
		Example: "  postern agent join revoke 3f9a1c270b11d2e4 -a acme",
		Args:    command.Exact("ID"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			err := c.RevokeJoin(ctx, org, args[0])
			if api.IsNotFound(err) {
				return wire.AsFailure(err, wire.LegHub).WithHint("see: postern agent join list")
			}
			if err == nil {
				fmt.Fprintf(w.Stderr, "join string %s revoked\n", args[0])
			}
			return err
		})
	}
	return cmd
}
