package audit

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"
)

// How often a chain is signed, and how many entries may stand unsigned before a
// Verifier takes it for forged: a hub that is killed signs a little late.
const (
	signEvery   = 1024
	signWithin  = time.Minute
	maxUnsigned = 4 * signEvery
)

// Broken is the error of a chain that was tampered with, or damaged: it names the
// first entry that is not as it must be.
type Broken struct {
	Organization string
	Sequence     uint64 // of the entry, as far as it can be told
	Line         int    // in what was read, from 1 on
	Text         string
}

// Error says what is wrong, and where.
func (b *Broken) Error() string {
	return fmt.Sprintf("%s, record %d (line %d): %s", chainName(b.Organization), b.Sequence, b.Line, b.Text)
}

func chainName(organization string) string {
	if organization == "" {
		return "the hub's log"
	}
	return "the log of " + organization
}

// Report is what a Verifier found of a chain that is whole.
type Report struct {
	Organization string
	First, Last  uint64    // sequence numbers; both 0: it is empty
	FirstTime    time.Time // of the first record; those before it were removed at the end of their time
	Head         Head
	Repeated     int    // lines that came again, as exports may
	Signed       uint64 // up to which record checkpoints vouch for it; 0: none was verified
}

// Verifier checks a chain entry by entry: that each is as it was written, that
// none is missing between the first and the last, none was put in or moved, and that
// the hub signed it. Entries are missing before the first where they were removed at
// the end of their time; a chain that was cut off at its end shows by Finish only.
// The zero value verifies no signatures.
type Verifier struct {
	Key   ed25519.PublicKey // of the hub; nil: signatures are not verified
	Known []Head            // heads that the chain had, as is known from elsewhere; it must hold them

	report Report
	line   int
	head   Head
	seen   map[uint64]string // hashes of the latest entries, for repeated ones
	since  uint64            // entries after the latest checkpoint
}

// repeatable is how far back a repeated line is recognized.
const repeatable = 8192

// Add checks the next line. Once it has returned an error, a *Broken, the
// Verifier is of no further use.
func (v *Verifier) Add(line []byte) error {
	v.line++
	all, err := parseLine(line)
	if err != nil {
		return v.broken(v.head.Sequence+1, "%v", err)
	}
	get := func(name string) string {
		for _, m := range all {
			if m.name == name {
				switch value := m.value.(type) {
				case string:
					return value
				case json.Number:
					return value.String()
				}
			}
		}
		return ""
	}
	seq, err := strconv.ParseUint(get("seq"), 10, 64)
	if err != nil || seq == 0 {
		return v.broken(v.head.Sequence+1, "it has no number of its own")
	}
	hash := get("hash")
	switch {
	case hash != hashOf(canonical(all, "hash")):
		return v.broken(seq, "it is not as it was written: its hash does not fit")
	case v.report.Last == 0:
		v.report.Organization, v.report.First = get("organization"), seq
		v.report.FirstTime, _ = time.Parse(time.RFC3339Nano, get("time"))
		v.seen = make(map[uint64]string)
		if seq == 1 && get("prev") != firstPrevious() {
			return v.broken(seq, "it is the first and names one before it")
		}
	case get("organization") != v.report.Organization:
		return v.broken(seq, "it is of another organization")
	case seq <= v.head.Sequence && v.seen[seq] == hash:
		v.report.Repeated++
		return nil
	case seq <= v.head.Sequence:
		return v.broken(seq, "it comes after record %d: it was put in, moved, or written anew", v.head.Sequence)
	case seq != v.head.Sequence+1:
		return v.broken(v.head.Sequence+1, "it is missing, and so is what follows up to record %d", seq)
	case get("prev") != v.head.Hash:
		return v.broken(seq, "it does not follow the record before it: that one was written anew")
	}
	if slices.ContainsFunc(v.Known, func(h Head) bool { return h.Sequence == seq && h.Hash != hash }) {
		return v.broken(seq, "it is not the record that there was: the chain was made anew")
	}
	if err := v.signature(seq, get); err != nil {
		return err
	}
	v.head = Head{seq, hash}
	v.report.Last, v.report.Head = seq, v.head
	v.seen[seq] = hash
	delete(v.seen, seq-repeatable)
	return nil
}

// signature checks a checkpoint, and that they are frequent enough.
func (v *Verifier) signature(seq uint64, get func(string) string) error {
	if v.Key == nil {
		return nil
	}
	if get("action") != string(Checkpoint) {
		if v.since++; v.since > maxUnsigned {
			return v.broken(seq, "no checkpoint among the %d records before it: the hub signs more often", maxUnsigned)
		}
		return nil
	}
	if get("key") != keyID(v.Key) {
		return v.broken(seq, "the checkpoint is signed with the key %q, and the hub's is %q", get("key"), keyID(v.Key))
	}
	signature, err := base64.StdEncoding.DecodeString(get("signature"))
	before := Head{seq - 1, get("prev")}
	if err != nil || !ed25519.Verify(v.Key, checkpointText(v.report.Organization, before), signature) {
		return v.broken(seq, "the checkpoint's signature is not the hub's")
	}
	v.since, v.report.Signed = 0, seq
	return nil
}

// Finish ends the check. Of a head that is Known but older than the first record
// nothing can be told any more.
func (v *Verifier) Finish() (Report, error) {
	for _, known := range v.Known {
		if known.Sequence > v.head.Sequence {
			return v.report, v.broken(v.head.Sequence+1, "the chain ends before record %d, which there was: its end was cut off", known.Sequence)
		}
	}
	return v.report, nil
}

func (v *Verifier) broken(seq uint64, format string, args ...any) error {
	return &Broken{Organization: v.report.Organization, Sequence: seq, Line: v.line, Text: fmt.Sprintf(format, args...)}
}

// VerifyAll checks the lines of an export, which may hold several organizations'
// chains, and returns a report for each. Empty lines are ignored.
func VerifyAll(r io.Reader, key ed25519.PublicKey) ([]Report, error) {
	chains := make(map[string]*Verifier)
	in := bufio.NewScanner(r)
	in.Buffer(nil, MaxLine+1)
	number := 0
	for in.Scan() {
		number++
		line := bytes.TrimSpace(in.Bytes())
		if len(line) == 0 {
			continue
		}
		e, err := ParseEntry(line)
		if err != nil {
			return nil, &Broken{Line: number, Text: err.Error()}
		}
		v := chains[e.Organization]
		if v == nil {
			v = &Verifier{Key: key}
			chains[e.Organization] = v
		}
		v.line = number - 1
		if err := v.Add(line); err != nil {
			return nil, err
		}
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return nil, &Broken{Line: number + 1, Text: "the line is too long for a record"}
	}
	if in.Err() != nil {
		return nil, fmt.Errorf("read audit records: %w", in.Err())
	}
	var reports []Report
	for _, organization := range slices.Sorted(maps.Keys(chains)) {
		report, err := chains[organization].Finish()
		if err != nil {
			return nil, err
		}
		reports = append(reports, report)
	}
	return reports, nil
}
