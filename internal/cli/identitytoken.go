package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/wire"
)

// identityOptions are the flags of "issuer token".
type identityOptions struct {
	request api.CreateIdentityToken
	file    string
	force   bool
}

func newIssuerToken(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Get an identity token, to try a trust policy",
		Long: `Get an identity token of a provider in a control plane and write it to a file, readable by
its owner only, or to standard output with --file -. It is good for an hour.

The hub gives it to a robot that may speak for the control plane: see postern robot
identity-for. An issuer that runs alone gives it to workloads that it trusts; then
--token-file is the token of the workload.`,
		Example: `  postern issuer token --control-plane prod-1 --provider provider-aws --audience sts.amazonaws.com \
    --token-file robot.json -a acme --file token

  # A subject that is scoped to a group.
  postern issuer token --control-plane eu/default/prod-1 --provider provider-gcp \
    --audience //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b --file token`,
		Args: command.Exact(),
	}
	var o identityOptions
	f := cmd.Flags()
	f.StringVar(&o.request.ControlPlane, "control-plane", "", "`NAME` of the control plane, or SPACE/GROUP/NAME")
	f.StringVar(&o.request.Provider, "provider", "", "`NAME` of the provider in it")
	f.StringArrayVar(&o.request.Audiences, "audience", nil, "`AUDIENCE` that shall accept the token; repeatable. Without it only the issuer does")
	f.StringVarP(&o.file, "file", "f", "", "`FILE` for the token, - for standard output")
	f.BoolVar(&o.force, "force", false, "replace the file")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return createIdentityToken(ctx, w, c, org, o)
		})
	}
	return cmd
}

func (o *identityOptions) check() error {
	switch {
	case o.file == "":
		return errors.New("say where the token goes: --file FILE, or --file - for standard output")
	case o.request.Provider == "":
		return errors.New("--provider is missing: say who the token is for")
	}
	plane, err := controlplane.ParseRef(o.request.ControlPlane)
	if err == nil {
		_, err = controlplane.Subject("a", plane, o.request.Provider)
	}
	return err
}

func createIdentityToken(ctx context.Context, w command.World, c *api.Client, org string, o identityOptions) error {
	var file *secretFile
	if o.file != stdio {
		var err error
		if file, err = newSecretFile(o.file, o.force); err != nil {
			return &command.UsageError{Err: err}
		}
		defer file.discard()
	}
	t, err := c.CreateIdentityToken(ctx, org, o.request)
	if err != nil {
		return err
	}
	fmt.Fprintf(w.Stderr, "identity token of %s for %s, good until %s\n", t.Subject, strings.Join(t.Audiences, ", "), t.Expires.Local().Format(time.RFC3339))
	if file != nil {
		return file.commitText(t.Token)
	}
	_, err = io.WriteString(w.Stdout, t.Token+"\n")
	return wrote(err)
}

func newRobotIdentityFor(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity-for ROBOT [CONTROL-PLANE...]",
		Short: "Say for which control planes a robot may get identity tokens",
		Long: `Say for which control planes a robot may get identity tokens, in place of what was said
before. A control plane is NAME, or SPACE/GROUP/NAME for subjects that are scoped to a
group; * stands for one or more characters of a part. The robot can be any provider in
these control planes. With --none it may speak for none, which is how robots begin.

Tokens that it has stay good for up to an hour.`,
		Example: `  postern robot identity-for operator prod-1 'staging-*' -a acme
  postern robot identity-for operator 'eu/default/*' -a acme
  postern robot identity-for operator --none -a acme`,
		Args: command.AtLeast("ROBOT", "CONTROL-PLANE"),
	}
	none := cmd.Flags().Bool("none", false, "take the right away")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		patterns := args[1:]
		if *none == (len(patterns) > 0) {
			return &command.UsageError{Err: errors.New("give the control planes, or --none")}
		}
		if _, err := controlplane.ParsePatterns(patterns); err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			robot, err := c.SetIdentityFor(ctx, org, args[0], patterns)
			if api.IsNotFound(err) {
				return wire.AsFailure(err, wire.LegHub).WithHint("see which robots there are: postern robot list -a %s", org)
			}
			if err != nil {
				return err
			}
			may := "no control plane"
			if len(robot.IdentityFor) > 0 {
				may = strings.Join(robot.IdentityFor, ", ")
			}
			fmt.Fprintf(w.Stderr, "robot %s/%s may get identity tokens for %s\n", org, robot.Name, may)
			return nil
		})
	}
	return cmd
}
