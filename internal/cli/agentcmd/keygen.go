package agentcmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wholefile"
)

// newKeygen returns the command that makes a key pair. It needs no hub, so that the
// private key can be made where it stays.
func newKeygen(w command.World, invocation string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key pair for an agent",
		Long: `Make a key pair, with which an agent proves who it is instead of with a robot token.
The private key is written to FILE, readable by its owner only; it never has to leave
this machine. The public key is written to FILE.pub, and printed: register it with the
hub.

Nothing is overwritten unless --force is given. Keys that other programs made can be
used too: Ed25519, ECDSA on P-256 or P-384, and RSA of 2048 to 4096 bits, in PEM.`,
		Example: `  ` + invocation + ` keygen -f office.key
  postern agent register office --public-key office.key.pub

  # A kind of key that a policy may demand.
  ` + invocation + ` keygen --type ecdsa-p384 -f office.key`,
		Args: command.Exact(),
	}
	file := cmd.Flags().StringP("file", "f", "agent.key", "`FILE` for the private key; the public one goes to FILE.pub")
	kind := cmd.Flags().String("type", identity.KeyEd25519, "kind of key: ed25519, ecdsa-p256, ecdsa-p384, or rsa for RSA 4096")
	force := cmd.Flags().Bool("force", false, "replace FILE and FILE.pub")
	_ = cmd.MarkFlagFilename("file") // fails for unknown flags only
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]cobra.Completion{
		identity.KeyEd25519, identity.KeyECDSAP256, identity.KeyECDSAP384, identity.KeyRSA,
	}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(*cobra.Command, []string) error {
		switch *kind {
		case identity.KeyEd25519, identity.KeyECDSAP256, identity.KeyECDSAP384, identity.KeyRSA:
		default:
			return &command.UsageError{Err: fmt.Errorf("--type %q: want ed25519, ecdsa-p256, ecdsa-p384 or rsa", *kind)}
		}
		return keygen(w, *file, *kind, *force)
	}
	return cmd
}

func keygen(w command.World, file, kind string, force bool) error {
	if file == "" || file == "-" {
		return &command.UsageError{Err: errors.New("a private key belongs into a file: --file FILE")}
	}
	public := file + ".pub"
	if !force {
		for _, name := range []string{file, public} {
			if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
				return &command.UsageError{Err: fmt.Errorf("%s exists; choose another file, or replace it with --force", name)}
			}
		}
	}
	key, err := identity.NewAgentKey(kind)
	if err != nil {
		return err
	}
	private, err := key.PEM()
	if err != nil {
		return err
	}
	put := wholefile.Create // one that somebody makes meanwhile is left alone
	if force {
		put = wholefile.Replace
	}
	if err := put(file, private, 0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	if err := put(public, key.Public().PEM(), 0o644); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	fmt.Fprintf(w.Stderr, "private key (%s) written to %s, public key %s to %s\n", key.Public().Kind(), file, key.Public().ID(), public)
	if _, err := w.Stdout.Write(key.Public().PEM()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
