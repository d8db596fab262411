package cli

import (
	"context"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/issuer"
)

// newIssuer returns "issuer", which runs one, with what can be done to one.
func newIssuer(w command.World) *cobra.Command {
	settings := config.DefaultStandaloneIssuer()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "issuer",
		Short: "Run an issuer of identity tokens alone, or manage one",
		Long: `Run an issuer of identity tokens for the providers that run in control planes, as a process
of its own. A hub that has an --issuer-url is one too, and then this is not needed.

It serves a discovery document and its keys to everybody, and gives tokens to the
workloads that its settings list as callers: each by the token that its platform gives
it, such as a projected service account token, and for its own control planes only.

The commands below manage the keys of a hub's issuer, or with --data or --keys-secret of one
that runs alone, and get a token to try.`,
		Example: `  postern issuer --issuer-url https://id.example.org --listen :443 --tls-cert-file tls.crt --tls-key-file tls.key \
    --data /var/lib/postern-issuer --config issuer.yaml

  # issuer.yaml
  callers:
    - name: prod-1
      issuer: https://kubernetes.default.svc.cluster.local
      jwksFile: prod-1-keys.json
      audience: [postern-issuer]
      claim: [sub=system:serviceaccount:postern-system:postern-operator]
      account: acme
      controlPlanes: [prod-1]`,
		Args: command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			return command.RunRole(cmd.Context(), w, "issuer", settings.Log, settings.Metrics,
				func(ctx context.Context, t command.Tools) error {
					return issuer.NewServer(settings, issuer.Options{Registry: t.Registry, Health: t.Health, Log: t.Log, Getenv: w.Getenv}).Run(ctx)
				})
		},
	}
	command.Bind(cmd, set)
	cmd.AddCommand(newIssuerKeys(w), newIssuerRotate(w), newIssuerWithdraw(w), newIssuerToken(w))
	return cmd
}
