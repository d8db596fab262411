package hub

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
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

// notAfter returns when the authority's certificate expires.
func (r *AuthorityRecord) notAfter() time.Time {
	certs, err := identity.ParseCertificates([]byte(r.Certificate))
	if err != nil {
		return time.Time{}
	}
	return certs[0].NotAfter
}
