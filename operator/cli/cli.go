// Package cli is the command line of the program postern-operator.
package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
)

// New returns the program's root command, which runs the operator.
func New(w command.World) *cobra.Command {
	settings := config.DefaultOperator()
	set := config.Bind(&settings)
	root := &cobra.Command{
		Use:   "postern-operator",
		Short: "Run the operator in a Kubernetes cluster",
		Long: `Run the operator: for every Proxy in the cluster, a resource of postern.dev/v1alpha1, it
runs a proxy that reaches the agent of a private network through a hub, points the pods
that the Proxy selects to it, and tells in the status how it is.

Where the hub is stands here, or in the Proxy. The chart postern-operator installs all
that this program needs: definitions, roles, webhook.

Every flag can be set by the environment variable behind it, or in a YAML file
(connectUrl for --connect-url). A flag wins over the environment, and that over the
file.`,
		Example: `  postern-operator --connect-url tls://hub.example.org --ca-file ca.crt --organization acme \
    --namespace postern-system --proxy-image ghcr.io/postern-dev/postern:v1.0.0

  # Outside of the cluster, for a look.
  postern-operator --kubeconfig ~/.kube/config --namespace default --leader-elect=false \
    --connect-url tls://hub.example.org --proxy-image ghcr.io/postern-dev/postern:v1.0.0`,
		Args:    command.Exact(),
		Version: command.Version(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			return run(cmd.Context(), w, settings)
		},
	}
	command.Bind(root, set)
	root.AddCommand(newCleanup(w), newVersion(w))
	return root
}

func newCleanup(w command.World) *cobra.Command {
	settings := config.DefaultOperator()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take back what the operator did, before it is uninstalled",
		Long: `Take back what the operator did, before it is uninstalled: what it made for each Proxy is
deleted, and its finalizers are removed, so that no Proxy or namespace hangs when it is
deleted afterwards. The Proxies stay. The operator itself has to be stopped before, or it
makes everything again. The chart does both as it is uninstalled.

It takes the flags of postern-operator.`,
		Example: `  postern-operator cleanup --namespace postern-system`,
		Args:    command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if settings.Pods.Image == "" {
				settings.Pods.Image = "none" // nothing is started
			}
			if err := set.Load(w.Env); err != nil {
				return err
			}
			return cleanup(cmd.Context(), w, settings)
		},
	}
	command.Bind(cmd, set)
	return cmd
}

func newVersion(w command.World) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  postern-operator version",
		Args:    command.Exact(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(w.Stdout, command.Version())
			return err
		},
	}
}
