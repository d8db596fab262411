// Package agentcmd is the command that runs an agent. It is apart from the other
// commands so that the program for the edge, which has only this one, links no
// more than it needs.
package agentcmd

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/policy"
)

// gcPercent makes an agent collect garbage a little sooner than programs do: it runs
// beside what it serves, and most of its memory belongs to streams that are idle.
const gcPercent = 75

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
the file.`,
		Example: `  ` + invocation + ` --connect-url tls://hub.example.org --organization default --agent-id office \
    --token-file token.json --ca-file ca.crt --allow tcp:db.example.org:5432

  # In a pod: its own cluster's API server and nothing else.
  POSTERN_TOKEN_FILE=/var/run/postern/token ` + invocation + ` --connect-url tls://hub.example.org \
    --organization default --agent-id cluster-7

  # With a key pair of its own instead of a token.
  ` + invocation + ` --connect-url tls://hub.example.org --organization default --agent-id office \
    --private-key-file office.key --ca-file ca.crt --allow tcp:db.example.org:5432

  # All settings from a file, through the HTTP proxy that the network demands.
  AGENT_PROXY=http://proxy.example.org:3128 ` + invocation + ` --config agent.yaml`,
		Args: command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			return command.RunRole(cmd.Context(), w, "agent", settings.Log, settings.Metrics,
				func(ctx context.Context, t command.Tools) error {
					a, err := agent.New(settings, agent.Options{
						Version: t.Version, Getenv: w.Getenv, Registry: t.Registry, Health: t.Health, Log: t.Log,
					})
					if _, unusable := errors.AsType[*policy.FileError](err); unusable {
						return &command.UsageError{Err: err}
					}
					if err != nil {
						return err
					}
					if w.Getenv("GOGC") == "" {
						debug.SetGCPercent(gcPercent)
					}
					return a.Run(ctx)
				})
		},
	}
	command.Bind(cmd, set)
	cmd.AddCommand(newKeygen(w, invocation))
	return cmd
}
