package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/archive"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/wholefile"
)

const (
	backupTimeout = 6 * time.Hour // the hub gives up one that does not move, much sooner
	maxSealFile   = 64 << 10      // bytes of a file with a passphrase or keys
)

// sealFlags are what a backup is encrypted for, or opened with.
type sealFlags struct {
	passphraseFile string
	recipients     []string
	identityFile   string
}

func (f *sealFlags) bindPassphrase(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.passphraseFile, "passphrase-file", "", "file with the passphrase of the backup")
}

// keys reads the files.
func (f *sealFlags) keys() (archive.Keys, error) {
	k := archive.Keys{Recipients: f.recipients}
	if f.passphraseFile != "" {
		b, err := readKeyFile(f.passphraseFile)
		if err != nil {
			return k, err
		}
		if k.Passphrase = strings.TrimRight(string(b), "\r\n"); k.Passphrase == "" {
			return k, &command.UsageError{Err: fmt.Errorf("%s is empty", f.passphraseFile)}
		}
	}
	if f.identityFile != "" {
		var err error
		if k.Identities, err = readKeyFile(f.identityFile); err != nil {
			return k, err
		}
	}
	return k, nil
}

func readKeyFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, &command.UsageError{Err: err}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSealFile))
	if err != nil {
		return nil, &command.UsageError{Err: err}
	}
	return b, nil
}

func newHubBackup(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup -f FILE",
		Short: "Back a hub up, while it runs or from its directory",
		Long: `Write everything that makes a hub this hub into one file: its certificate authority,
keys, organizations, robots, agents' keys, revocations, and the rest of the bus's state.

A hub that runs is asked through its API, as any other command asks it; only its
administrator may do this. With --data, the directory of a hub that is stopped is read.

The file holds every secret of the hub. It is readable by its owner only; encrypt it for an
age key with --recipient, or with --passphrase-file, before it goes anywhere else.`,
		Example: `  postern hub backup -f hub.backup
  postern hub backup -f hub.backup.age --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  postern hub backup -f hub.backup.age --passphrase-file passphrase --data /var/lib/postern`,
		Args: command.Exact(),
	}
	var seal sealFlags
	file := cmd.Flags().StringP("file", "f", "", "file to write")
	data := cmd.Flags().String("data", "", "directory of a hub that is stopped")
	busKey := cmd.Flags().String("bus-key-file", "", "key of the bus's state, if the hub has one; with --data")
	force := cmd.Flags().Bool("force", false, "replace the file if it exists")
	cmd.Flags().StringSliceVar(&seal.recipients, "recipient", nil, "encrypt for the owner of an age key; can be given several times")
	seal.bindPassphrase(cmd)
	client := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *file == "" {
			return &command.UsageError{Err: errors.New("no file is given: -f FILE")}
		}
		keys, err := seal.keys()
		if err != nil {
			return err
		}
		save := func(out io.Writer) error {
			return client.callFor(cmd, backupTimeout, func(ctx context.Context, c *api.Client, _ string) error { return c.Backup(ctx, out) })
		}
		if *data != "" {
			save = func(out io.Writer) error {
				err := hub.BackupDir(cmd.Context(), out, *data, *busKey, command.Version(), quiet(w))
				if errors.Is(err, hub.ErrStateLocked) {
					err = fmt.Errorf("%w; a hub that runs is asked for its backup: use --hub in the place of --data", err)
				}
				return err
			}
		}
		size, err := writeBackup(*file, *force, keys, save)
		if err != nil {
			return err
		}
		fmt.Fprintf(w.Stderr, "backup written to %s (%s) and checked\n", *file, sizeOf(size))
		if len(keys.Recipients) == 0 && keys.Passphrase == "" {
			fmt.Fprint(w.Stderr, "it holds every secret of the hub and is not encrypted: keep it as you keep the hub's directory\n")
		}
		return nil
	}
	return cmd
}

func sizeOf(n int64) string { return size(uint64(max(n, 0))) }

// writeBackup makes a file of what save writes: whole and checked, or not at all.
func writeBackup(name string, replace bool, keys archive.Keys, save func(io.Writer) error) (size int64, err error) {
	fail := func(err error) (int64, error) { return 0, fmt.Errorf("write backup: %w", err) }
	if _, err := os.Lstat(name); err == nil && !replace {
		return 0, &command.UsageError{Err: fmt.Errorf("%s exists; choose another file, or replace it with --force", name)}
	}
	f, err := wholefile.New(name)
	if err != nil {
		return fail(err)
	}
	defer f.Discard()
	check, end := checking()
	sealed, err := archive.Seal(f, keys)
	if err != nil {
		_ = end(err)
		return 0, &command.UsageError{Err: err}
	}
	err = save(io.MultiWriter(sealed, check))
	if err := errors.Join(err, end(err)); err != nil {
		return 0, err
	}
	if err := sealed.Close(); err != nil {
		return fail(err)
	}
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return fail(err)
	}
	if err := f.Commit(replace); err != nil {
		return fail(err)
	}
	return size, nil
}

// checking returns a writer that reads what is written to it as an archive, and a
// function that tells, with the error of the writing, whether it was whole.
func checking() (io.Writer, func(error) error) {
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends with the pipe
		_, err := archive.Verify(out)
		_, _ = io.Copy(io.Discard, out) // so that the writing is not blamed
		done <- err
	}()
	return in, func(err error) error {
		_ = in.CloseWithError(err) // never fails
		found := <-done
		if err != nil {
			return nil // that says it all
		}
		return found
	}
}

// quiet returns the logger of commands that open a hub's directory for a while.
func quiet(w command.World) *slog.Logger {
	return slog.New(slog.NewTextHandler(w.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

func newHubRestore(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore -f FILE --data DIR",
		Short: "Make a hub's directory of a backup",
		Long: `Make the directory of a hub of a backup. The directory must not exist, or be empty. The
backup is checked to its end before anything is touched; the directory is complete when
this command says so, and no hub starts on it before.

The hub is the one that was backed up, under its name and with its secrets: never run both
at the same time. Agents and proxies find it if it has the address that they know. What
was done after the backup was made is lost: tokens that were revoked since then are good
again, so revoke them again.`,
		Example: `  postern hub restore -f hub.backup --data /var/lib/postern
  postern hub restore -f hub.backup.age --identity-file key.txt --data /var/lib/postern`,
		Args: command.Exact(),
	}
	var seal sealFlags
	file := cmd.Flags().StringP("file", "f", "", "the backup")
	data := cmd.Flags().String("data", "", "directory to make")
	busKey := cmd.Flags().String("bus-key-file", "", "key for the bus's state, if the hub keeps it elsewhere; any will do")
	seal.bindPassphrase(cmd)
	cmd.Flags().StringVar(&seal.identityFile, "identity-file", "", "file with the age key that the backup is encrypted for")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *file == "" || *data == "" {
			return &command.UsageError{Err: errors.New("a file and a directory are needed: -f FILE --data DIR")}
		}
		keys, err := seal.keys()
		if err != nil {
			return err
		}
		h, err := hub.Restore(cmd.Context(), *data, func() (io.ReadCloser, error) { return openBackup(*file, keys) },
			hub.RestoreOptions{BusKeyFile: *busKey, Log: quiet(w)})
		if err != nil {
			return explainBackup(*file, err)
		}
		fmt.Fprintf(w.Stderr, "restored the hub of %s as it was %s, into %s\n", h.TrustDomain, h.Created.Format(time.RFC3339), *data)
		return nil
	}
	return cmd
}

// openBackup opens a backup from its beginning.
func openBackup(name string, keys archive.Keys) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, &command.UsageError{Err: err}
	}
	r, err := archive.Open(f, keys)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

// explainBackup says what to do about a backup that cannot be used.
func explainBackup(name string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, archive.ErrEncrypted):
		hint = "give its key with --identity-file, or its passphrase with --passphrase-file"
	case errors.Is(err, archive.ErrWrongKey):
		hint = "find the key or passphrase that it was made with"
	case errors.Is(err, archive.ErrVersion):
		hint = "use that version of postern, or a newer one"
	case errors.Is(err, archive.ErrTruncated), errors.Is(err, archive.ErrCorrupt):
		hint = "copy it again, or use an older backup"
	default:
		return err
	}
	return fmt.Errorf("%s: %w (%s)", name, err, hint)
}

func newHubRotateKey(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-key --data DIR",
		Short: "Encrypt the state of a stopped hub with another key",
		Long: `Encrypt the bus's state in a hub's directory anew. The hub must be stopped. The key is made
here and kept in the directory, unless --new-bus-key-file names one that you keep elsewhere.

The state is copied and checked before the copy takes the place of the old one, which needs
free space for both. When this is interrupted, run it again: the state is complete at any
time, with the old key or with the new one.`,
		Example: `  postern hub rotate-key --data /var/lib/postern
  postern hub rotate-key --data /var/lib/postern --bus-key-file old.key --new-bus-key-file new.key`,
		Args: command.Exact(),
	}
	data := cmd.Flags().String("data", "", "directory of the hub")
	busKey := cmd.Flags().String("bus-key-file", "", "the key so far, if it is kept elsewhere")
	newKey := cmd.Flags().String("new-bus-key-file", "", "the new key, to be kept elsewhere: 32 characters at least")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *data == "" {
			return &command.UsageError{Err: errors.New("no directory is given: --data DIR")}
		}
		o := hub.RotateKeyOptions{BusKeyFile: *busKey, NewBusKeyFile: *newKey, Log: quiet(w)}
		if err := hub.RotateBusKey(cmd.Context(), *data, o); err != nil {
			return err
		}
		var b bytes.Buffer
		b.WriteString("the hub's state is encrypted with the new key\n")
		if *newKey != "" {
			fmt.Fprintf(&b, "start the hub with --bus-key-file %s from now on; the old key opens older backups of the directory only\n", *newKey)
		}
		_, err := b.WriteTo(w.Stderr)
		return err
	}
	return cmd
}
