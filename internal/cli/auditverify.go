package cli

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/wire"
)

func newAuditVerify(w command.World) *cobra.Command {
	var file, keyFile, expect string
	var hubLog bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that an audit log was not changed",
		Long: `Check an organization's audit log from its first record to its last: that each is as it
was written, none is missing, none was added or moved, and that the hub signed it. The
first records may be gone at the end of their time.

With -f it checks an export instead, such as the file of --audit-file; give the hub's public
key (postern audit key) with --public-key, or signatures are not checked.

Keep the line "head" that it prints, somewhere else: with --expect it shows later whether
that record is still there, even if somebody replaced the hub's whole directory.`,
		Example: `  postern audit verify -a acme
  postern audit verify -a acme --expect 4711:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  postern audit verify -f /var/log/postern/audit.jsonl --public-key audit-key.pem`,
		Args: command.Exact(),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "check this export instead of a hub's log; - for standard input")
	cmd.Flags().StringVar(&keyFile, "public-key", "", "file with the hub's public key, for -f")
	cmd.Flags().StringVar(&expect, "expect", "", "a head that was printed before, as SEQUENCE:HASH")
	cmd.Flags().BoolVar(&hubLog, "of-hub", false, "the hub's own log instead of an organization's")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file != "" {
			if expect != "" {
				return &command.UsageError{Err: errors.New("--expect is for a hub's log, and not for -f")}
			}
			return verifyFile(w, file, keyFile)
		}
		known, err := parseHead(expect)
		if err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.callFor(cmd, auditLimit, func(ctx context.Context, c *api.Client, org string) error {
			return verifyHub(ctx, w, c, (&auditFlags{hubLog: hubLog}).log(org), known)
		})
	}
	return cmd
}

// parseHead reads SEQUENCE:HASH.
func parseHead(s string) ([]audit.Head, error) {
	if s == "" {
		return nil, nil
	}
	seq, hash, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || n == 0 || len(hash) != 64 {
		return nil, fmt.Errorf("--expect: %q is no head: want SEQUENCE:HASH, as a verification printed it", s)
	}
	return []audit.Head{{Sequence: n, Hash: hash}}, nil
}

func verifyHub(ctx context.Context, w command.World, c *api.Client, org string, known []audit.Head) error {
	head, err := c.AuditHead(ctx, org)
	if err != nil {
		return err
	}
	key, err := audit.ParsePublicKey([]byte(head.PublicKey))
	if err != nil {
		return err
	}
	if head.Sequence > 0 {
		known = append(known, audit.Head{Sequence: head.Sequence, Hash: head.Hash})
	}
	v := &audit.Verifier{Key: key, Known: known}
	if err := c.Audit(ctx, org, nil, v.Add); err != nil {
		return tampered(err)
	}
	report, err := v.Finish()
	if err != nil {
		return tampered(err)
	}
	if report.Last == 0 {
		report.Organization = org
	}
	printChain(w.Stdout, report, true)
	return nil
}

func verifyFile(w command.World, file, keyFile string) error {
	var key ed25519.PublicKey
	if keyFile != "" {
		text, err := os.ReadFile(keyFile)
		if err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
		if key, err = audit.ParsePublicKey(text); err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
	}
	in := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("-f: %w", err)
		}
		defer f.Close()
		in = f
	}
	reports, err := audit.VerifyAll(in, key)
	if err != nil {
		return tampered(err)
	}
	for _, r := range reports {
		printChain(w.Stdout, r, key != nil)
	}
	if len(reports) == 0 {
		fmt.Fprintln(w.Stdout, "there are no records in it")
	}
	return nil
}

// tampered words what is wrong with a log.
func tampered(err error) error {
	if broken, ok := errors.AsType[*audit.Broken](err); ok {
		return wire.Fail(wire.LegHub, wire.CodeProtocol, "the audit log is not whole: %s", broken).WithCause(err).
			WithHint("compare it with an export; whatever follows that record cannot be relied on")
	}
	return err
}

func printChain(w io.Writer, r audit.Report, signatures bool) {
	name := "organization " + r.Organization
	if r.Organization == "" {
		name = "the hub's own log"
	}
	if r.Last == 0 {
		fmt.Fprintf(w, "%s: empty\n", name)
		return
	}
	fmt.Fprintf(w, "%s: whole, records %d to %d\n", name, r.First, r.Last)
	if r.First > 1 {
		fmt.Fprintf(w, "  begins      %s; older records were removed at the end of their time\n", r.FirstTime.Local().Format(time.RFC3339))
	}
	switch {
	case !signatures:
		fmt.Fprintln(w, "  signatures  not checked: no public key was given")
	case r.Signed == 0:
		fmt.Fprintln(w, "  signatures  none yet: the hub signs once a minute")
	case r.Signed < r.Last:
		fmt.Fprintf(w, "  signatures  good up to record %d; the hub signs the last %d within a minute\n", r.Signed, r.Last-r.Signed)
	default:
		fmt.Fprintln(w, "  signatures  good")
	}
	fmt.Fprintf(w, "  head        %d:%s\n", r.Head.Sequence, r.Head.Hash)
}
