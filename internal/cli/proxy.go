package cli

import (
	"context"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/proxy"
)

func newProxy(w command.World) *cobra.Command {
	settings := config.DefaultProxy()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run a proxy near the clients",
		Long: `Run a proxy: HTTP CONNECT, plain HTTP and SOCKS5 for programs that know proxies, and
fixed forwards for those that do not. Names are resolved where the agent runs.

A client chooses its agent by the host name, HOST.AGENT.postern.internal, or by the proxy
user name; otherwise it is the one of --agent-id. A listener on loopback needs no
password unless one is set; any other needs --credentials-file or --require-token.

Every flag can be set by the environment variable behind it, or in a YAML file
(connectUrl for --connect-url). A flag wins over the environment, and that over the
file.`,
		Example: `  postern proxy --connect-url tls://hub.example.org --organization default --agent-id office \
    --token-file token.json --ca-file ca.crt --http 127.0.0.1:3128 --socks5 127.0.0.1:1080
  HTTPS_PROXY=http://127.0.0.1:3128 kubectl get nodes

  # A database at the port where a program expects it.
  postern proxy --config proxy.yaml --forward 127.0.0.1:5432=office/tcp:db.example.org:5432`,
		Args: command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			var secret enroll.Secret
			if settings.SignedIn() {
				var err error
				if secret, err = signedIn(w, settings.Context); err != nil {
					return err
				}
			}
			return command.RunRole(cmd.Context(), w, "proxy", settings.Log, settings.Metrics,
				func(ctx context.Context, t command.Tools) error {
					return proxy.New(settings, proxy.Options{
						Version: t.Version, Getenv: w.Getenv, Secret: secret, Registry: t.Registry, Health: t.Health, Log: t.Log,
					}).Run(ctx)
				})
		},
	}
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	return cmd
}
