package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/podcluster"
)

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
