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
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/wire"
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

// newIssuerKeys returns "issuer keys".
func newIssuerKeys(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "List the signing keys of an issuer",
		Long: `List the signing keys of the hub's issuer, or with --data of one that runs alone on this
machine, or with --keys-secret of one in this Kubernetes cluster. A key is published before it signs, and stays published until the last token
that it signed has expired.`,
		Example: "  postern issuer keys\n  postern issuer keys --data /var/lib/postern-issuer",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	keys := bindIssuerKeys(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := keys.list(cmd)
		if err != nil {
			return err
		}
		return output.print(w.Stdout, nonNil(all), func(r *rows) {
			r.row("KEY", "PHASE", "TYPE", "SINCE", "UNTIL", "CREATED")
			for _, k := range all {
				r.row(k.ID, k.Phase, k.Type, date(k.Since, ""), date(k.Ends, ""), date(k.Created, ""))
			}
		})
	}
	return cmd
}

func newIssuerRotate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Have the next key sign",
		Long: `Make the next signing key and publish it. It signs after the time of --issuer-key-ahead, by
when relying parties have fetched it; the one before stays published until its last token
has expired. Keys rotate by themselves every --issuer-key-age: this is for doing it now.

With --at-once the next key signs now. Relying parties that do not know it yet fetch the
keys when they meet its first token; those that do not even then refuse tokens until they
ask for keys anew.`,
		Example: "  postern issuer rotate\n  postern issuer rotate --at-once",
		Args:    command.Exact(),
	}
	atOnce := cmd.Flags().Bool("at-once", false, "have the next key sign now")
	keys := bindIssuerKeys(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := keys.rotate(cmd, *atOnce)
		if err != nil {
			return err
		}
		for _, k := range all {
			switch issuer.Phase(k.Phase) {
			case issuer.Published:
				when := "when it has been for as long as the issuer's --issuer-key-ahead"
				if !k.Ends.IsZero() {
					when = "from " + k.Ends.Local().Format(time.RFC3339)
				}
				fmt.Fprintf(w.Stderr, "key %s is published, and signs %s\n", k.ID, when)
			case issuer.Signing:
				if *atOnce {
					fmt.Fprintf(w.Stderr, "key %s signs\n", k.ID)
				}
			case issuer.Retiring:
			}
		}
		return nil
	}
	return cmd
}

func newIssuerWithdraw(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "withdraw KEY",
		Short: "Remove a signing key at once",
		Long: `Remove a signing key that somebody else may have, given by its ID or the first characters of
it. It is gone from the published keys at once, and if it signed, another one does. Tokens
that it signed are good at relying parties until those fetch the keys anew: most do
when they meet a token of a key that they do not know. Operators look for withdrawn keys,
and give their pods other tokens within a minute.`,
		Example: "  postern issuer withdraw 6wPq9Xh2",
		Args:    command.Exact("KEY"),
	}
	keys := bindIssuerKeys(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := keys.withdraw(cmd, args[0])
		if err == nil {
			fmt.Fprintf(w.Stderr, "key %s withdrawn\n", args[0])
		}
		return err
	}
	return cmd
}

// issuerKeys are the keys of an issuer that a command is about: the hub's, or those in
// a directory on this machine.
type issuerKeys struct {
	hub    *hubFlags
	getenv func(string) string
	dir    string
	secret string
}

func bindIssuerKeys(w command.World, cmd *cobra.Command) *issuerKeys {
	k := &issuerKeys{getenv: w.Getenv}
	cmd.Flags().StringVar(&k.dir, "data", "", "`DIR` of an issuer that runs alone on this machine, instead of the hub's")
	_ = cmd.MarkFlagDirname("data") // fails for unknown flags only
	cmd.Flags().StringVar(&k.secret, "keys-secret", "", "`[NAMESPACE/]NAME` of the Secret with the keys, in a pod that may change it, instead of the hub's")
	k.hub = bindHub(w, cmd)
	return k
}

// keys returns the keys themselves, where the flags say where they are; nil: the hub is asked.
func (k *issuerKeys) keys() (keys issuer.Keys, done func(), err error) {
	done = func() {}
	switch {
	case k.dir != "" && k.secret != "":
		err = errors.New("--data and --keys-secret are two places: give one of them")
	case k.dir != "":
		keys, err = issuer.ExistingFolder(k.dir)
	case k.secret != "":
		cluster := podcluster.New(k.getenv, podcluster.Dir)
		done = cluster.Close
		keys, err = issuer.NewSecret(cluster, k.secret)
	}
	if err != nil {
		return nil, done, &command.UsageError{Err: err}
	}
	return keys, done, nil
}

func (k *issuerKeys) list(cmd *cobra.Command) (all []api.IssuerKey, err error) {
	keys, done, err := k.keys()
	defer done()
	if err != nil {
		return nil, err
	}
	if keys != nil {
		r, err := keys.Load()
		return issuer.Describe(r), err
	}
	return all, k.hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
		all, err = c.IssuerKeys(ctx)
		return err
	})
}

func (k *issuerKeys) rotate(cmd *cobra.Command, atOnce bool) (all []api.IssuerKey, err error) {
	keys, done, err := k.keys()
	defer done()
	if err != nil {
		return nil, err
	}
	if keys != nil {
		r, err := issuer.Rotate(keys, time.Now(), atOnce)
		return issuer.Describe(r), err
	}
	return all, k.hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
		all, err = c.RotateIssuer(ctx, api.RotateIssuer{AtOnce: atOnce})
		return err
	})
}

func (k *issuerKeys) withdraw(cmd *cobra.Command, id string) error {
	keys, done, err := k.keys()
	defer done()
	if err != nil {
		return err
	}
	if keys != nil {
		_, err := issuer.Withdraw(keys, time.Now(), id)
		return err
	}
	return k.hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error { return c.WithdrawIssuerKey(ctx, id) })
}

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
