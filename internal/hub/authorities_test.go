package hub_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
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

// TestAuthorityThatCannotVouch rotates an authority of the first hubs, which allows
// none below it: it goes on issuing the hub's own certificate until it retires, so
// that clients of both accept the hub.
func TestAuthorityThatCannotVouch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openState(t, dir, hub.StateOptions{TrustDomain: "a.test"})
	s.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Postern CA a.test"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "a.test"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	old := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	oldKey := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	write(t, dir, "ca.crt", string(old))
	write(t, dir, "ca.key", string(oldKey))
	edit(t, dir, func(m map[string]any) {
		delete(m, "authorities")
		delete(m, "generation")
		files := m["files"].(map[string]any)
		files["ca.crt"], files["ca.key"] = identity.HashSecret(string(old)), identity.HashSecret(string(oldKey))
	})
	s = openState(t, dir, hub.StateOptions{})
	for _, step := range []struct {
		what string
		do   func() error
		old  bool // whether clients of the old authority accept the hub
	}{
		{"announced", func() error { return s.Announce(time.Now()) }, true},
		{"signing", func() error { return s.Switch(time.Now()) }, true},
		{"retired", func() error { return s.Withdraw(s.Trust().Records()[1].Pin, hub.PhaseRetired, time.Now()) }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		if !knows(t, s, []byte(s.Trust().Records()[0].Certificate)) {
			t.Errorf("%s: a client of the new authority does not accept the hub", step.what)
		}
		if knows(t, s, old) != step.old {
			t.Errorf("%s: whether a client of the old authority accepts the hub: %v", step.what, !step.old)
		}
	}
}
