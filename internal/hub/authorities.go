package hub

import (
	"bytes"
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

// authorityKeyPrefix begins the names of the files with the keys of authorities,
// but for the first one's.
const authorityKeyPrefix = "ca-"

// keptAuthorities is how many authorities that are gone the state remembers.
const keptAuthorities = 4

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
