// Package agentcmd is the command that runs an agent. It is apart from the other
// commands so that the program for the edge, which has only this one, links no
// more than it needs.
package agentcmd

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/headroom"
	"postern.dev/postern/internal/policy"
)

// room makes an agent that has much in memory collect garbage a little sooner than
// programs do: it runs beside what it serves, and most of its memory belongs to streams
// that are idle.
func room() headroom.Config { return headroom.Config{Percent: 75, Floor: 8 << 20} }

// New returns the command. invocation is what a user types to call it: the
// program and its sub-command.
func New(w command.World, invocation string) *cobra.Command {
	settings := config.DefaultAgent()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   invocation[strings.LastIndexByte(invocation, ' ')+1:],
		Short: "Run an agent in the private network",
		Long: `Run an agent: it dials out to the hub, listens on nothing, and lets clients of its
organization reach what its rules allow. Without a rule that is the API server of
the Kubernetes cluster it runs in, and nothing anywhere else.

Every flag can be set by the environment variable behind it, or in a YAML file
(connectUrl for --connect-url). A flag wins over the environment, and that over
the file.

An agent may serve several organizations, of one hub or of several. They stand in the
file, as a list below the key organizations, each with its own token or key and rules:

  connectUrl: tls://hub.example.org
  caFile: hub.crt
  agentId: office
  organizations:
    - organization: acme
      tokenFile: acme.json
      allow: ["tcp:db.example.org:5432"]
    - organization: globex
      privateKeyFile: globex.key
      policyFile: globex.yaml

An entry takes from the settings beside the list what it leaves out, but never a token
and never what may be reached. With the list, there is no --organization, --token-file,
--allow or --policy-file. What happens to one organization, such as a revoked token, does
not touch the others; it is tried again every minute. The agent ends when none is left.`,
		Example: `  ` + invocation + ` --connect-url tls://hub.example.org --organization default --agent-id office \
    --token-file token.json --ca-file ca.crt --allow tcp:db.example.org:5432

  # In a pod: its own cluster's API server and nothing else.
  POSTERN_TOKEN_FILE=/var/run/postern/token ` + invocation + ` --connect-url tls://hub.example.org \
    --organization default --agent-id cluster-7

  # With a join string from the hub's administrator. Keep the state: the string is good once.
  ` + invocation + ` --join-file office.join --state /var/lib/postern --allow tcp:db.example.org:5432

  # With a key pair of its own instead of a token.
  ` + invocation + ` --connect-url tls://hub.example.org --organization default --agent-id office \
    --private-key-file office.key --ca-file ca.crt --allow tcp:db.example.org:5432

  # Several organizations, which the file lists. Look at what each of them has in the end.
  postern config print agent --config agent.yaml
  ` + invocation + ` --config agent.yaml

  # All settings from a file, through the HTTP proxy that the network demands.
  AGENT_PROXY=http://proxy.example.org:3128 ` + invocation + ` --config agent.yaml`,
		Args: command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			env := w.Env
			env.ReadFile = orStdin(w, env.ReadFile)
			if err := set.Load(env); err != nil {
				return err
			}
			return command.RunRole(cmd.Context(), w, "agent", settings.Log, settings.Metrics,
				func(ctx context.Context, t command.Tools) error {
					err := command.WithHeadroom(ctx, w, room(), agent.NewMembers(settings, agent.Options{
						Version: t.Version, Getenv: w.Getenv, Registry: t.Registry, Health: t.Health, Log: t.Log,
					}).Run)
					if _, unusable := errors.AsType[*policy.FileError](err); unusable {
						return &command.UsageError{Err: err}
					}
					return err
				})
		},
	}
	command.Bind(cmd, set)
	cmd.AddCommand(newKeygen(w, invocation))
	return cmd
}

// maxStdin bounds what is read from standard input, in bytes.
const maxStdin = 64 << 10

// orStdin makes "-" name standard input.
func orStdin(w command.World, read func(string) ([]byte, error)) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		if name == "-" {
			return io.ReadAll(io.LimitReader(w.Stdin, maxStdin))
		}
		return read(name)
	}
}
