package hub

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
)

// Phase is how far a certificate authority of the hub has come.
type Phase string

// The phases, in their order. A hub has one authority that signs, and while it
// changes to another, one that is announced or one that retires.
const (
	PhaseAnnounced  Phase = "announced"  // trusted everywhere before it signs anything
	PhaseSigning    Phase = "signing"    // issues all certificates
	PhaseRetiring   Phase = "retiring"   // trusted until the last certificate of it has expired
	PhaseRetired    Phase = "retired"    // trusted no more; its key is deleted
	PhaseDistrusted Phase = "distrusted" // the same, before its time and with its connections cut
)

// authorityKeyPrefix begins the names of the files with the keys of authorities,
// but for the first one's.
const authorityKeyPrefix = "ca-"

// keptAuthorities is how many authorities that are gone the state remembers.
const keptAuthorities = 4

// AuthorityRecord is an authority as state.json keeps it.
type AuthorityRecord struct {
	Pin         string    `json:"pin"`
	Phase       Phase     `json:"phase"`
	Since       time.Time `json:"since"` // of the phase
	Certificate string    `json:"certificate"`
	KeyFile     string    `json:"keyFile,omitempty"` // gone with the key

	// Vouched is the certificate by which the authority before vouches for this
	// one, and Vouches the one by which this one vouches for that before.
	Vouched string `json:"vouched,omitempty"`
	Vouches string `json:"vouches,omitempty"`

	// Generation is the trust bundle's number since which it holds this
	// authority.
	Generation int `json:"generation"`
}

// trusted reports whether the bundle holds the authority.
func (r *AuthorityRecord) trusted() bool {
	return r.Phase == PhaseAnnounced || r.Phase == PhaseSigning || r.Phase == PhaseRetiring
}

// Trust is whom a hub trusts at one moment, and who signs. It is immutable.
type Trust struct {
	Generation int                 // grows with each change
	Signing    *identity.Authority // issues the certificates of parties
	Pool       *x509.CertPool      // of all that are trusted
	Bundle     []byte              // the same in PEM, the one to distribute first

	serving *identity.Authority // issues the hub's own certificate
	chain   [][]byte            // goes with that certificate, beside its issuer
	records []AuthorityRecord
	loaded  map[string]*identity.Authority // by pin, those with a key
}

// Records returns the authorities, the newest first, also those that are gone.
func (t *Trust) Records() []AuthorityRecord { return slices.Clone(t.records) }

// Pin returns the pin that people should give to parties from now on: of the
// authority that is announced, or else of that which signs.
func (t *Trust) Pin() string {
	for _, r := range t.records {
		if r.Phase == PhaseAnnounced {
			return r.Pin
		}
	}
	return t.Signing.Pin()
}

// IssueServer makes the hub's own certificate. Its chain leads to every authority
// that somebody may have been told to trust: the one that is announced, the one
// that signs, and the one before, also after it was retired.
func (t *Trust) IssueServer(name string, hosts []string, ttl time.Duration, now time.Time) (tls.Certificate, error) {
	c, err := t.serving.IssueServer(name, hosts, ttl, now)
	if err != nil {
		return c, err
	}
	for _, der := range t.chain {
		if !bytes.Equal(der, c.Certificate[1]) {
			c.Certificate = append(c.Certificate, der)
		}
	}
	return c, nil
}

// newTrust works out what follows from the records. keys gives the private keys.
func newTrust(generation int, records []AuthorityRecord, key func(file string) ([]byte, error)) (*Trust, error) {
	t := &Trust{Generation: generation, Pool: x509.NewCertPool(), records: slices.Clone(records), loaded: make(map[string]*identity.Authority)}
	for i := range t.records {
		r := &t.records[i]
		certs, err := identity.ParseCertificates([]byte(r.Certificate))
		if err != nil {
			return nil, err
		}
		if r.trusted() {
			t.Pool.AddCert(certs[0])
			t.Bundle = append(t.Bundle, identity.EncodeCertificates(certs[0])...)
		}
		if r.KeyFile == "" {
			continue
		}
		keyPEM, err := key(r.KeyFile)
		if err != nil {
			return nil, err
		}
		a, err := identity.LoadAuthority([]byte(r.Certificate), keyPEM)
		if err != nil {
			return nil, err
		}
		t.loaded[r.Pin] = a
		if r.Phase == PhaseSigning {
			t.Signing = a
		}
	}
	if t.Signing == nil {
		return nil, errors.New("no authority signs")
	}
	return t, t.arrange()
}

// arrange chooses who issues the hub's own certificate, and what to present with
// it so that clients find a way to the authority that they know.
func (t *Trust) arrange() error {
	t.serving = t.Signing
	at := slices.IndexFunc(t.records, func(r AuthorityRecord) bool { return r.Phase == PhaseSigning })
	var texts []string
	if at > 0 && t.records[at-1].Phase == PhaseAnnounced {
		// Who was given the next one already trusts what this one signed.
		texts = append(texts, t.records[at-1].Vouches, t.records[at-1].Certificate)
	}
	if at+1 < len(t.records) {
		before := t.records[at+1]
		if old := t.loaded[before.Pin]; old != nil && before.Phase == PhaseRetiring && !old.CanVouch() {
			// It cannot vouch for its successor, and so goes on by itself.
			t.serving = old
			texts = append(texts, t.records[at].Vouches, t.records[at].Certificate)
		} else {
			texts = append(texts, t.records[at].Vouched, before.Certificate)
		}
	}
	for _, text := range texts {
		if text == "" {
			continue
		}
		certs, err := identity.ParseCertificates([]byte(text))
		if err != nil {
			return err
		}
		t.chain = append(t.chain, certs[0].Raw)
	}
	return nil
}

// Trust returns whom the hub trusts now, and who signs.
func (s *State) Trust() *Trust { return s.trust.Load() }

// ErrAuthorityPhase is returned for a change that an authority's phase does not
// allow.
var ErrAuthorityPhase = errors.New("the certificate authority is in another phase")

// Announce makes an authority that is trusted from now on, and will sign later.
func (s *State) Announce(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.Trust()
	for _, r := range t.records {
		if r.Phase == PhaseAnnounced || r.Phase == PhaseRetiring {
			return fmt.Errorf("%w: a rotation is under way, %s is %s", ErrAuthorityPhase, r.Pin, r.Phase)
		}
	}
	next, err := identity.NewAuthority(t.Signing.TrustDomain(), now)
	if err != nil {
		return err
	}
	vouched, err := t.Signing.Vouch(next, now)
	if err != nil {
		return err
	}
	vouches, err := next.Vouch(t.Signing, now)
	if err != nil {
		return err
	}
	keyPEM, err := next.KeyPEM()
	if err != nil {
		return err
	}
	file := filepath.Join(keysDir, authorityKeyPrefix+strings.TrimPrefix(next.Pin(), "sha256:")[:16])
	if err := s.keep(file, keyPEM); err != nil {
		return err
	}
	records := append([]AuthorityRecord{{
		Pin: next.Pin(), Phase: PhaseAnnounced, Since: now.UTC(), Certificate: string(next.CertificatePEM()), KeyFile: file,
		Vouched: string(identity.EncodeCertificates(vouched)), Vouches: string(identity.EncodeCertificates(vouches)), Generation: t.Generation + 1,
	}}, t.records...)
	return s.setAuthorities(records)
}

// Switch lets the announced authority sign, and the one before retire.
func (s *State) Switch(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := s.Trust().Records()
	if records[0].Phase != PhaseAnnounced {
		return fmt.Errorf("%w: none is announced", ErrAuthorityPhase)
	}
	for i := range records {
		switch records[i].Phase {
		case PhaseAnnounced:
			records[i].Phase, records[i].Since = PhaseSigning, now.UTC()
		case PhaseSigning:
			records[i].Phase, records[i].Since = PhaseRetiring, now.UTC()
		case PhaseRetiring, PhaseRetired, PhaseDistrusted:
		}
	}
	return s.setAuthorities(records)
}

// Withdraw takes an authority out of the trust bundle, to the phase
// PhaseRetired or PhaseDistrusted, and deletes its key. The one that signs cannot
// be withdrawn.
func (s *State) Withdraw(pin string, to Phase, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := s.Trust().Records()
	at := slices.IndexFunc(records, func(r AuthorityRecord) bool { return r.Pin == pin })
	if at < 0 {
		return fmt.Errorf("%w: there is none with the pin %s", ErrAuthorityPhase, pin)
	}
	r := &records[at]
	if r.Phase == PhaseSigning {
		return fmt.Errorf("%w: %s signs", ErrAuthorityPhase, pin)
	}
	if r.Phase == PhaseAnnounced {
		records = slices.Delete(records, at, at+1) // it signed nothing: nobody will ask for it
	} else {
		r.Phase, r.Since = to, now.UTC()
		r.KeyFile = ""
	}
	return s.setAuthorities(records)
}

// setAuthorities makes records the hub's authorities, on disk and in memory. s.mu
// is held. The record of the directory decides; what else the disk holds follows
// from it, also after a crash in between.
func (s *State) setAuthorities(records []AuthorityRecord) error {
	gone := 0
	records = slices.DeleteFunc(records, func(r AuthorityRecord) bool {
		if !r.trusted() {
			gone++
		}
		return gone > keptAuthorities && !r.trusted()
	})
	next, err := newTrust(s.record.Generation+1, records, s.readKept)
	if err != nil {
		return err
	}
	before := s.record
	s.record.Authorities, s.record.Generation = records, s.record.Generation+1
	unused := s.unusedKeys()
	s.record.Files = without(s.record.Files, unused)
	if err := s.writeRecord(); err != nil {
		s.record = before
		return err
	}
	s.trust.Store(next)
	for _, file := range unused {
		if err := os.Remove(s.Path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileError(s.Path(file), err)
		}
	}
	return s.writeBundle()
}

// unusedKeys returns the authorities' key files that no authority needs.
func (s *State) unusedKeys() []string {
	used := make(map[string]bool)
	for _, r := range s.record.Authorities {
		used[r.KeyFile] = true
	}
	var unused []string
	for file := range s.record.Files {
		if (file == caKeyFile || strings.HasPrefix(file, filepath.Join(keysDir, authorityKeyPrefix))) && !used[file] {
			unused = append(unused, file)
		}
	}
	return unused
}

func without(files map[string]string, names []string) map[string]string {
	rest := make(map[string]string, len(files))
	for name, sum := range files {
		if !slices.Contains(names, name) {
			rest[name] = sum
		}
	}
	return rest
}

// loadAuthorities reads the authorities of a directory. One that was made before
// there could be several has its only one in ca.crt and ca.key.
func (s *State) loadAuthorities(files map[string][]byte) error {
	if len(s.record.Authorities) == 0 {
		a, err := identity.LoadAuthority(files[caFile], files[caKeyFile])
		if err != nil {
			return stateError(ErrStateCorrupt, s.dir, "%s and %s: %s", caFile, caKeyFile, err)
		}
		s.record.Authorities = []AuthorityRecord{{
			Pin: a.Pin(), Phase: PhaseSigning, Since: s.record.Created, Certificate: string(a.CertificatePEM()), KeyFile: caKeyFile, Generation: 1,
		}}
		s.record.Generation = 1
		s.record.Files = without(s.record.Files, []string{caFile}) // it will change
		if err := s.writeRecord(); err != nil {
			return err
		}
	}
	t, err := newTrust(s.record.Generation, s.record.Authorities, func(file string) ([]byte, error) { return files[file], nil })
	if err != nil {
		return stateError(ErrStateCorrupt, s.dir, "its certificate authorities: %s", err)
	}
	if t.Signing.TrustDomain() != s.record.TrustDomain {
		return stateError(ErrStateCorrupt, s.dir, "its authority is for the trust domain %s and not for %s", t.Signing.TrustDomain(), s.record.TrustDomain)
	}
	s.trust.Store(t)
	s.removeStrayKeys()
	return nil
}

// removeStrayKeys deletes the keys of authorities that are not on record, because
// a change was cut off. They do no harm, so neither does a failure.
func (s *State) removeStrayKeys() {
	found, _ := filepath.Glob(s.Path(filepath.Join(keysDir, authorityKeyPrefix+"*")))
	for _, name := range append(found, s.Path(caKeyFile)) {
		rel, err := filepath.Rel(s.dir, name)
		if _, known := s.record.Files[rel]; err == nil && !known {
			_ = os.Remove(name)
		}
	}
}

// writeBundle makes ca.crt hold what is trusted.
func (s *State) writeBundle() error {
	bundle := s.Trust().Bundle
	if b, err := readPrivate(s.Path(caFile)); err == nil && bytes.Equal(b, bundle) {
		return nil
	}
	return writeFile(s.Path(caFile), bundle)
}

// notAfter returns when the authority's certificate expires.
func (r *AuthorityRecord) notAfter() time.Time {
	certs, err := identity.ParseCertificates([]byte(r.Certificate))
	if err != nil {
		return time.Time{}
	}
	return certs[0].NotAfter
}
