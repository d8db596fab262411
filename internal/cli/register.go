package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/identity"
)

// maxKeyFile bounds a file with a public key, in bytes.
const maxKeyFile = 16 << 10

func newRegister(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "register AGENT",
		Short: "Register an agent that proves itself with a key pair",
		Long: `Register an agent with one public key or several; it then enrols with one of the
private keys (--private-key-file), and no robot token can take its ID any more.

It is fine if the agent is registered already: keys that it does not have are added, and
none is removed.`,
		Example: `  postern agent keygen -f office.key
  postern agent register office -a acme --public-key office.key.pub`,
		Args: command.Exact("AGENT"),
	}
	description := cmd.Flags().StringP("description", "d", "", "what the agent is for")
	files := bindKeyFiles(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName("agent ID", args[0]); err != nil {
			return err
		}
		keys, err := readPublicKeys(w, *files)
		if err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			request := api.RegisterAgent{ID: args[0], Description: *description}
			for _, k := range keys {
				request.PublicKeys = append(request.PublicKeys, string(k.PEM()))
			}
			made, err := c.RegisterAgent(ctx, org, request)
			if api.IsExists(err) {
				fmt.Fprintf(w.Stderr, "agent %s/%s is registered already\n", org, args[0])
				return addKeys(ctx, w, c, org, args[0], keys)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "agent %s/%s registered\n", org, args[0])
			for _, k := range made.Keys {
				fmt.Fprintf(w.Stderr, "key %s (%s) added\n", k.ID, k.Kind)
			}
			return nil
		})
	}
	return cmd
}

func newUnregister(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unregister AGENT",
		Short: "Remove an agent's registration with its keys",
		Long: `Remove an agent's registration with its keys. What enrolled with them is cut off within
seconds. Robot tokens can enrol an agent with this ID again.`,
		Example: "  postern agent unregister office -a acme",
		Args:    command.Exact("AGENT"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return deleted(w, c.UnregisterAgent(ctx, org, args[0]), "registration of agent %s/%s", org, args[0])
		})
	}
	return cmd
}

// newKey returns "agent key" with what can be done to an agent's keys.
func newKey(w command.World) *cobra.Command {
	cmd := command.Group("key", "Add, list and remove public keys of a registered agent",
		newKeyAdd(w), newKeyList(w), newKeyRemove(w))
	cmd.Aliases = []string{"keys"}
	cmd.Long = `An agent may have several public keys, and proves itself with one of the private ones. To
replace a key: add the new one, give the agent the new private key, remove the old one.`
	return cmd
}

func newKeyAdd(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "add AGENT",
		Short:   "Give an agent a further public key",
		Long:    "Give an agent a further public key. It is fine if it has it already.",
		Example: "  postern agent key add office -a acme --public-key new.key.pub",
		Args:    command.Exact("AGENT"),
	}
	files := bindKeyFiles(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		keys, err := readPublicKeys(w, *files)
		if err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return addKeys(ctx, w, c, org, args[0], keys)
		})
	}
	return cmd
}

// addKeys gives an agent the keys that it does not have.
func addKeys(ctx context.Context, w command.World, c *api.Client, org, agent string, keys []identity.PublicKey) error {
	for _, k := range keys {
		_, err := c.AddAgentKey(ctx, org, agent, string(k.PEM()))
		switch {
		case api.IsExists(err):
			fmt.Fprintf(w.Stderr, "key %s is there already\n", k.ID())
		case err != nil:
			return err
		default:
			fmt.Fprintf(w.Stderr, "key %s (%s) added\n", k.ID(), k.Kind())
		}
	}
	return nil
}

func newKeyList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list [AGENT]",
		Aliases: []string{"ls"},
		Short:   "List the keys of a registered agent, or of all",
		Example: "  postern agent key list office -a acme\n  postern agent key list -o json",
		Args:    command.AtMost("AGENT"),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			var all []api.Registration
			var err error
			if len(args) == 0 {
				all, err = c.Registrations(ctx, org)
			} else {
				all = make([]api.Registration, 1)
				all[0], err = c.Registration(ctx, org, args[0])
			}
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("AGENT", "KEY", "KIND", "CREATED", "LAST USED")
				for _, agent := range all {
					for _, k := range agent.Keys {
						r.row(agent.ID, k.ID, k.Kind, date(k.Created, ""), ago(time.Now(), k.LastUsed))
					}
				}
			})
		})
	}
	return cmd
}

func newKeyRemove(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove AGENT KEY",
		Aliases: []string{"rm", "delete", "revoke"},
		Short:   "Remove a public key from an agent",
		Long: `Remove a public key from an agent, given by its ID or the first eight digits of it. Agents
that enrolled with it and have not renewed with another one are cut off within seconds.`,
		Example: "  postern agent key remove office 3f9a1c27 -a acme",
		Args:    command.Exact("AGENT", "KEY"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			err := c.RemoveAgentKey(ctx, org, args[0], args[1])
			if err == nil {
				fmt.Fprintf(w.Stderr, "key %s of agent %s/%s removed\n", args[1], org, args[0])
			}
			return err
		})
	}
	return cmd
}

// bindKeyFiles adds --public-key to a command.
func bindKeyFiles(cmd *cobra.Command) *[]string {
	files := cmd.Flags().StringArray("public-key", nil, "`FILE` with a public key in PEM, - for standard input; repeatable")
	_ = cmd.MarkFlagFilename("public-key") // fails for unknown flags only
	return files
}

// readPublicKeys reads and checks keys before anything is asked of the hub.
func readPublicKeys(w command.World, files []string) ([]identity.PublicKey, error) {
	if len(files) == 0 {
		return nil, &command.UsageError{Err: fmt.Errorf("no key is given: --public-key FILE")}
	}
	keys := make([]identity.PublicKey, 0, len(files))
	for _, name := range files {
		key, err := readPublicKey(w, name)
		if err != nil {
			return nil, &command.UsageError{Err: fmt.Errorf("--public-key %s: %w", name, err)}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func readPublicKey(w command.World, name string) (identity.PublicKey, error) {
	in := w.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return identity.PublicKey{}, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxKeyFile))
	if err != nil {
		return identity.PublicKey{}, err
	}
	return identity.ParsePublicKey(b)
}
