package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/kubeconfig"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/wire"
)

const (
	// tokenFileLife is after how long a client asks for a token again that came from a
	// file, since files are replaced.
	tokenFileLife = 5 * time.Minute

	// sessionMargin is how much earlier than it does a session is said to end: a
	// request that is under way then should still be good.
	sessionMargin = time.Minute
)

func newCredential(w command.World) *cobra.Command {
	return command.Group("credential", "Give other programs your credentials", newCredentialKubernetes(w))
}

func newCredentialKubernetes(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubernetes",
		Short: "Print a token for the gateway, as kubectl asks for it",
		Long: `Print your session's token, or that of --token-file, as an ExecCredential of
client.authentication.k8s.io/v1. kubectl and other clients of Kubernetes call this
command when 'postern kubeconfig' has set them up; so do those that reach clusters by
their ClusterProfile (KEP-5339). A session that is half over is renewed.

The client tells in KUBERNETES_EXEC_INFO which server the token is for. For another one
than the hub or --gateway-url, none is printed.`,
		Example: "  postern credential kubernetes",
		Args:    command.Exact(),
	}
	settings := config.DefaultGatewayClient()
	set := config.Bind(&settings)
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		info, err := kubeconfig.ParseExecInfo(w.Getenv(kubeconfig.ExecInfoVariable))
		if err != nil {
			return err
		}
		if err := set.Load(w.Env); err != nil {
			return err
		}
		if info.Server != "" && !config.SameHub(info.Server, settings.Hub) && !config.SameHub(info.Server, settings.Gateway()) {
			return wire.Fail(wire.LegClient, wire.CodeDenied, "the token is for %s, and not for %.200q", settings.Gateway(), info.Server).
				WithHint("if the gateway has that address, say so with --gateway-url")
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		token, expires, err := gatewayToken(ctx, w, &settings, time.Now())
		if err != nil {
			return err
		}
		return info.WriteCredential(w.Stdout, token, expires)
	}
	return cmd
}

// gatewayToken returns the token to show to the gateway, and when to ask for it again.
func gatewayToken(ctx context.Context, w command.World, s *config.GatewayClient, now time.Time) (token string, expires time.Time, err error) {
	if !s.SignedIn() {
		token, _, err = (&enroll.RobotToken{File: s.TokenFile, Value: s.Token.Reveal()}).SubjectToken(ctx)
		return token, now.Add(tokenFileLife), err
	}
	store, err := login.Open(w.Getenv)
	if err != nil {
		return "", time.Time{}, err
	}
	t, err := (&login.Session{Store: store, Context: s.Context, Getenv: w.Getenv}).Tokens(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	if !config.SameHub(t.Hub, s.Hub) {
		return "", time.Time{}, wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the session of context %s is for %s, and not for %s", s.Context, t.Hub, s.Hub).
			WithHint("sign in with: postern login --context %s", s.Context)
	}
	if left := t.Expires.Sub(now); left > 4*sessionMargin {
		return t.Session, t.Expires.Add(-sessionMargin), nil
	}
	return t.Session, t.Expires, nil
}
