package hub_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
)

// knows reports whether a client that trusts only one authority accepts the hub's
// certificate of now.
func knows(t *testing.T, s *hub.State, authority []byte) bool {
	t.Helper()
	c, err := s.Trust().IssueServer("node", []string{"localhost"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	root, err := identity.ParseCertificates(authority)
	if err != nil {
		t.Fatal(err)
	}
	roots, chain := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root[0])
	presented := false
	for _, der := range c.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain.AddCert(cert)
		presented = presented || identity.Pin(cert) == identity.Pin(root[0]) // who has a pin needs to see its authority
	}
	_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain, DNSName: "localhost"})
	return err == nil && presented
}

func phases(s *hub.State) (all []hub.Phase) {
	for _, r := range s.Trust().Records() {
		all = append(all, r.Phase)
	}
	return all
}

// TestAuthoritiesFollowEachOther goes through two rotations, with a restart between
// any two steps: who knows an authority that is announced, signs, or signed before
// accepts the hub, and an older one is forgotten.
func TestAuthoritiesFollowEachOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openState(t, dir, hub.StateOptions{})
	first := s.Authority()
	known := [][]byte{first.CertificatePEM()}
	step := func(what string, do func() error, want ...hub.Phase) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for range 2 {
			if diff := cmp.Diff(want, phases(s)); diff != "" {
				t.Fatalf("%s: phases\n%s", what, diff)
			}
			for _, one := range known {
				if !knows(t, s, one) {
					t.Errorf("%s: a client of an authority does not accept the hub", what)
				}
			}
			if b, err := os.ReadFile(s.CAFile()); err != nil || !bytes.Equal(b, s.Trust().Bundle) {
				t.Errorf("%s: ca.crt is not the bundle, %v", what, err)
			}
			generation := s.Trust().Generation
			s.Close()
			if s = openState(t, dir, hub.StateOptions{}); s.Trust().Generation != generation {
				t.Errorf("%s: another generation after a restart", what)
			}
		}
	}
	announce := func() error {
		if err := s.Announce(time.Now()); err != nil {
			return err
		}
		known = append(known, []byte(s.Trust().Records()[0].Certificate))
		return nil
	}
	retire := func() error { return s.Withdraw(s.Trust().Records()[1].Pin, hub.PhaseRetired, time.Now()) }
	turn := func() error { return s.Switch(time.Now()) }
	step("first announcement", announce, hub.PhaseAnnounced, hub.PhaseSigning)
	if err := s.Announce(time.Now()); !errors.Is(err, hub.ErrAuthorityPhase) {
		t.Errorf("a second announcement: %v", err)
	}
	step("first switch", turn, hub.PhaseSigning, hub.PhaseRetiring)
	if err := s.Switch(time.Now()); !errors.Is(err, hub.ErrAuthorityPhase) {
		t.Errorf("a second switch: %v", err)
	}
	if err := s.Withdraw(s.Authority().Pin(), hub.PhaseDistrusted, time.Now()); !errors.Is(err, hub.ErrAuthorityPhase) {
		t.Errorf("withdrawing the one that signs: %v", err)
	}
	step("first retirement", retire, hub.PhaseSigning, hub.PhaseRetired)
	step("second announcement", announce, hub.PhaseAnnounced, hub.PhaseSigning, hub.PhaseRetired)
	oldest := known[0]
	known = known[1:]
	step("second switch", turn, hub.PhaseSigning, hub.PhaseRetiring, hub.PhaseRetired)
	if knows(t, s, oldest) {
		t.Error("a client of the authority before the last still accepts the hub")
	}
	step("given up", func() error {
		if err := retire(); err != nil {
			return err
		}
		if err := s.Announce(time.Now()); err != nil {
			return err
		}
		return s.Withdraw(s.Trust().Records()[0].Pin, hub.PhaseRetired, time.Now())
	}, hub.PhaseSigning, hub.PhaseRetired, hub.PhaseRetired)
	keys, err := filepath.Glob(filepath.Join(dir, "keys", "ca-*"))
	if err != nil || len(keys) != 1 {
		t.Errorf("keys of authorities: %v, %v; want that of the one that signs", keys, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first key: %v", err)
	}
}

// TestAuthoritiesAreBounded: the state does not grow with each rotation.
func TestAuthoritiesAreBounded(t *testing.T) {
	t.Parallel()
	s := openState(t, t.TempDir(), hub.StateOptions{})
	for range 8 {
		for _, do := range []func() error{
			func() error { return s.Announce(time.Now()) }, func() error { return s.Switch(time.Now()) },
			func() error { return s.Withdraw(s.Trust().Records()[1].Pin, hub.PhaseRetired, time.Now()) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(phases(s)); n != 5 {
		t.Errorf("%d authorities are on record", n)
	}
}

// TestDirectoryOfOneAuthority opens a directory as it was before there could be
// several.
func TestDirectoryOfOneAuthority(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openState(t, dir, hub.StateOptions{})
	pin := s.Authority().Pin()
	s.Close()
	crt, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, dir, func(m map[string]any) {
		delete(m, "authorities")
		delete(m, "generation")
		m["files"].(map[string]any)["ca.crt"] = identity.HashSecret(string(crt))
	})
	s = openState(t, dir, hub.StateOptions{})
	if s.Authority().Pin() != pin || fmt.Sprint(phases(s)) != "[signing]" {
		t.Errorf("authority %s, phases %v", s.Authority().Pin(), phases(s))
	}
	if err := errors.Join(s.Announce(time.Now()), s.Switch(time.Now())); err != nil {
		t.Error(err)
	}
	s.Close()
	openState(t, dir, hub.StateOptions{})
}

// TestStateMendsItself: what was cut off in a change of authorities is put right.
func TestStateMendsItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openState(t, dir, hub.StateOptions{})
	bundle := string(s.Trust().Bundle)
	s.Close()
	remove(t, dir, "ca.crt")
	write(t, dir, "keys/ca-0123456789abcdef", "the key of an authority that was never announced")
	s = openState(t, dir, hub.StateOptions{})
	if b, err := os.ReadFile(s.CAFile()); err != nil || string(b) != bundle {
		t.Errorf("ca.crt: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "keys", "ca-0123456789abcdef")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stray key: %v", err)
	}
	s.Close()
	edit(t, dir, func(m map[string]any) { m["authorities"].([]any)[0].(map[string]any)["phase"] = "retired" })
	if _, err := hub.OpenState(dir, hub.StateOptions{}); !errors.Is(err, hub.ErrStateCorrupt) || !strings.Contains(err.Error(), "no authority signs") {
		t.Errorf("without an authority that signs: %v", err)
	}
}
