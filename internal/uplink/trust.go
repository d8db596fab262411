package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/identity"
)

// trust is whom the Dialer takes for the hub. With roots or a pin, a
// certificate that carries a hub's SPIFFE ID is good under any host name, for
// the private authority vouches for the role; one without an ID (a public or a
// company's authority) has to match the host name. With neither, the system's
// roots and the host name decide.
type trust struct {
	roots *x509.CertPool      // nil: the system's, or the pin
	certs []*x509.Certificate // of the CA file: what roots holds
	pin   string              // of the CA, as identity.Pin writes it; empty: none
	host  string
	now   func() time.Time

	// learned is what the hub itself said of its authorities, after it had been
	// verified; nil inside until then.
	learned *atomic.Pointer[x509.CertPool]
}

func newTrust(c Config) (trust, error) {
	t := trust{roots: c.Roots, now: c.Now, learned: new(atomic.Pointer[x509.CertPool])}
	if c.CAPin != "" {
		var err error
		if t.pin, err = identity.ParsePin(c.CAPin); err != nil {
			return trust{}, fmt.Errorf("CA %w", err)
		}
	}
	if c.CAFile == "" {
		if t.pin != "" && t.roots != nil {
			return trust{}, errors.New("a CA pin and a pool of roots exclude each other")
		}
		return t, nil
	}
	data, err := os.ReadFile(c.CAFile)
	if err != nil {
		return trust{}, fmt.Errorf("read CA file: %w", err)
	}
	certs, err := identity.ParseCertificates(data)
	if err != nil {
		return trust{}, fmt.Errorf("CA file %s: %w", c.CAFile, err)
	}
	t.roots = x509.NewCertPool()
	found := false
	for _, cert := range certs {
		if t.pin == "" || t.matches(cert) {
			t.roots.AddCert(cert)
			t.certs = append(t.certs, cert)
			found = true
		}
	}
	if !found {
		return trust{}, fmt.Errorf("CA file %s has no certificate with the pin %s; its first one has %s", c.CAFile, c.CAPin, identity.Pin(certs[0]))
	}
	t.pin = "" // from here on the roots say it all
	return t, nil
}

func (t *trust) matches(cert *x509.Certificate) bool { return identity.Pin(cert) == t.pin }

// Reasons for distrust that x509 has no type for.
type (
	wrongPinError struct{ leafMatches bool }
	notHubError   struct{ err error }
)

func (e wrongPinError) Error() string {
	return "no certificate authority in the hub's chain has the wanted pin"
}
func (e notHubError) Error() string { return "the certificate is not a hub's: " + e.err.Error() }
func (e notHubError) Unwrap() error { return e.err }

// verify is the whole verification of the hub's certificate. It returns the
// hub's identity, zero when the certificate has none and is good by host name.
func (t *trust) verify(cs tls.ConnectionState) (identity.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return identity.ID{}, errors.New("the hub presented no certificate")
	}
	id, err := t.verifyConfigured(cs)
	if err == nil || len(cs.PeerCertificates[0].URIs) == 0 || t.roots == nil && t.pin == "" {
		return id, err
	}
	if roots := t.learned.Load(); roots != nil {
		if id, err := verifyHub(roots, cs, t.now()); err == nil {
			return id, nil
		}
	}
	return id, err
}

// verifyConfigured verifies the hub by what the configuration says.
func (t *trust) verifyConfigured(cs tls.ConnectionState) (identity.ID, error) {
	leaf := cs.PeerCertificates[0]
	roots := t.roots
	if t.pin != "" {
		if roots = t.pinnedRoots(cs.PeerCertificates); roots == nil {
			return identity.ID{}, wrongPinError{leafMatches: t.matches(leaf)}
		}
	}
	if roots != nil && len(leaf.URIs) > 0 {
		return verifyHub(roots, cs, t.now())
	}
	return identity.ID{}, verifyName(cs.PeerCertificates, roots, t.host, t.now())
}

// verifyHub verifies a certificate that says it is a hub's.
func verifyHub(roots *x509.CertPool, cs tls.ConnectionState, now time.Time) (identity.ID, error) {
	id, err := identity.VerifyPeer(roots, cs, x509.ExtKeyUsageServerAuth, now)
	if err == nil && id.Role != identity.RoleHub {
		err = fmt.Errorf("it belongs to %s", id)
	}
	if err != nil {
		return identity.ID{}, notHubError{err}
	}
	return id, nil
}

// verifyName is the verification of any web server: chain and host name.
func verifyName(chain []*x509.Certificate, roots *x509.CertPool, host string, now time.Time) error {
	leaf := chain[0]
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, Intermediates: x509.NewCertPool()}
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	// The key usage is server authentication, since none is named. The name comes
	// last: to a person the unknown authority matters more than a wrong name.
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	return leaf.VerifyHostname(host)
}

// pinnedRoots returns the presented authorities that have the pin, or nil.
func (t *trust) pinnedRoots(chain []*x509.Certificate) *x509.CertPool {
	var roots *x509.CertPool
	for _, cert := range chain {
		if cert.IsCA && cert.BasicConstraintsValid && t.matches(cert) {
			if roots == nil {
				roots = x509.NewCertPool()
			}
			roots.AddCert(cert)
		}
	}
	return roots
}
