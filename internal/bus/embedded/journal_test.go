package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"postern.dev/postern/internal/audit"
)

func openJournal(t *testing.T, s *Server, limits JournalLimits) *Journal {
	t.Helper()
	j, err := s.Journal(limits)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJournal(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	ctx := t.Context()
	j := openJournal(t, s, JournalLimits{Age: time.Hour, Bytes: 1 << 20})
	if first, last, err := j.Bounds(ctx, "acme"); err != nil || first != 1 || last != 0 {
		t.Errorf("bounds of nothing: %d %d %v", first, last, err)
	}
	if all, err := j.Read(ctx, "acme", 0, 1<<20); err != nil || len(all) != 0 {
		t.Errorf("read of nothing: %v %v", all, err)
	}
	for i := range 700 {
		for _, chain := range []string{"acme", ""} {
			at, err := j.Append(ctx, chain, uint64(i), fmt.Appendf(nil, "%s %d\n", chain, i))
			if err != nil || at != uint64(i)+1 {
				t.Fatalf("%d: %d, %v", i, at, err)
			}
		}
	}
	if _, err := j.Append(ctx, "acme", 3, []byte("x\n")); !errors.Is(err, audit.ErrPosition) {
		t.Errorf("append in the midst: %v", err)
	}
	if _, err := j.Append(ctx, "not a name", 0, []byte("x\n")); err == nil {
		t.Error("a chain of no organization")
	}
	s.Shutdown()

	s = start(t, c, seeds)
	defer s.Shutdown()
	j = openJournal(t, s, JournalLimits{Age: time.Hour, Bytes: 1 << 20})
	if chains, err := j.Chains(ctx); err != nil || len(chains) != 2 || !slices.Contains(chains, "") || !slices.Contains(chains, "acme") {
		t.Errorf("chains %q, %v", chains, err)
	}
	var got []string
	for after := uint64(0); ; {
		blocks, err := j.Read(ctx, "acme", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(blocks) == 0 {
			break
		}
		for _, b := range blocks {
			if b.Position != after+1 || time.Since(b.Stored) > time.Minute {
				t.Fatalf("block %d of %s behind %d", b.Position, b.Stored, after)
			}
			after = b.Position
			got = append(got, string(bytes.TrimSpace(b.Lines)))
		}
	}
	if len(got) != 700 || got[699] != "acme 699" {
		t.Errorf("%d blocks, the last is %q", len(got), got[len(got)-1])
	}
	if first, last, err := j.Bounds(ctx, "acme"); err != nil || first != 1 || last != 700 {
		t.Errorf("bounds: %d %d %v", first, last, err)
	}
}

// TestJournalKeepsWithinItsLimits also fills one chain while another stays whole.
func TestJournalKeepsWithinItsLimits(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	defer s.Shutdown()
	ctx := t.Context()
	j := openJournal(t, s, JournalLimits{Age: time.Hour, Bytes: 100 << 10})
	if _, err := j.Append(ctx, "quiet", 0, []byte("still here\n")); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := j.Append(ctx, "noisy", uint64(i), make([]byte, 10<<10)); err != nil {
			t.Fatal(err)
		}
	}
	first, last, err := j.Bounds(ctx, "noisy")
	if err != nil || last != 50 || first < 40 {
		t.Errorf("bounds: %d %d %v", first, last, err)
	}
	if blocks, err := j.Read(ctx, "noisy", 0, 1); err != nil || len(blocks) != 1 || blocks[0].Position != first {
		t.Errorf("the first block that is left: %v, %v", blocks, err)
	}
	if blocks, err := j.Read(ctx, "quiet", 0, 1); err != nil || len(blocks) != 1 {
		t.Errorf("the other chain: %v, %v", blocks, err)
	}
	// Smaller limits hold from the next start on, and very many chains fit.
	j = openJournal(t, s, JournalLimits{Age: time.Minute, Bytes: 20 << 10})
	if _, err := j.Append(ctx, "noisy", 50, []byte("x\n")); err != nil {
		t.Fatal(err)
	}
	if first, _, err := j.Bounds(ctx, "noisy"); err != nil || first < 49 {
		t.Errorf("first is %d, %v", first, err)
	}
	big := openJournal(t, s, JournalLimits{Age: time.Hour, Bytes: 1 << 40})
	for i := range 8 {
		if _, err := big.Append(ctx, fmt.Sprintf("org-%d", i), 0, []byte("x\n")); err != nil {
			t.Fatal(err)
		}
	}
}
