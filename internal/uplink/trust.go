package uplink

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
)

// trust is whom the Dialer takes for the hub. With roots or a pin, a
// certificate that carries a hub's SPIFFE ID is good under any host name, for
// the private authority vouches for the role; one without an ID (a public or a
// company's authority) has to match the host name. With neither, the system's
// roots and the host name decide.
type trust struct {
	roots *x509.CertPool // nil: the system's, or the pin
	pin   []byte         // SHA-256 of the CA's SubjectPublicKeyInfo; nil: none
	host  string
	now   func() time.Time
}

// pinPrefix starts the text of a pin.
const pinPrefix = "sha256:"

// Pin returns "sha256:HEX" of a certificate's SubjectPublicKeyInfo.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// ParsePin reads the text that Pin returns, in upper or lower case, and returns
// the 32 bytes of the digest.
func ParsePin(s string) ([]byte, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(s), pinPrefix)
	if !ok {
		return nil, fmt.Errorf("CA pin %q: want sha256: and 64 hexadecimal digits", printable(s))
	}
	sum, err := hex.DecodeString(digits)
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("CA pin %q: want sha256: and 64 hexadecimal digits, %d given", printable(s), len(digits))
	}
	return sum, nil
}

func newTrust(c Config) (trust, error) {
	t := trust{roots: c.Roots, now: c.Now}
	if c.CAPin != "" {
		var err error
		if t.pin, err = ParsePin(c.CAPin); err != nil {
			return trust{}, err
		}
	}
	if c.CAFile == "" {
		if t.pin != nil && t.roots != nil {
			return trust{}, errors.New("give a CA pin or a pool of roots, not both")
		}
		return t, nil
	}
	data, err := os.ReadFile(c.CAFile)
	if err != nil {
		return trust{}, fmt.Errorf("read CA file: %w", err)
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return trust{}, fmt.Errorf("CA file %s: %w", c.CAFile, err)
	}
	t.roots = x509.NewCertPool()
	found := false
	for _, cert := range certs {
		if t.pin == nil || t.matches(cert) {
			t.roots.AddCert(cert)
			found = true
		}
	}
	if !found {
		return trust{}, fmt.Errorf("CA file %s has no certificate with the pin %s; its first one has %s", c.CAFile, c.CAPin, Pin(certs[0]))
	}
	t.pin = nil // from here on the roots say it all
	return t, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	other := ""
	for rest := bytes.TrimSpace(data); len(rest) > 0; {
		block, r := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = r
		if block.Type != "CERTIFICATE" {
			other = block.Type
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, cert)
	}
	switch {
	case len(certs) > 0:
		return certs, nil
	case other != "":
		return nil, fmt.Errorf("has a %s in it but no certificate", other)
	default:
		return nil, errors.New("has no certificate in PEM form in it")
	}
}

func (t *trust) matches(cert *x509.Certificate) bool {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return subtle.ConstantTimeCompare(sum[:], t.pin) == 1
}

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
	leaf := cs.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots: t.roots, CurrentTime: t.now(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if t.pin != nil {
		opts.Roots = x509.NewCertPool()
		found := false
		for _, cert := range cs.PeerCertificates {
			if cert.IsCA && cert.BasicConstraintsValid && t.matches(cert) {
				opts.Roots.AddCert(cert)
				found = true
			}
		}
		if !found {
			return identity.ID{}, wrongPinError{leafMatches: t.matches(leaf)}
		}
	}
	private := opts.Roots != nil
	if !private || len(leaf.URIs) == 0 {
		// x509 takes an IP address as a DNSName when it stands in brackets.
		opts.DNSName = t.host
		if strings.Contains(t.host, ":") {
			opts.DNSName = "[" + t.host + "]"
		}
	}
	if _, err := leaf.Verify(opts); err != nil {
		return identity.ID{}, err
	}
	if !private || len(leaf.URIs) == 0 {
		return identity.ID{}, nil
	}
	id, err := identity.CertificateID(leaf)
	if err != nil {
		return identity.ID{}, notHubError{err}
	}
	if id.Role != identity.RoleHub {
		return identity.ID{}, notHubError{fmt.Errorf("it belongs to %s", id)}
	}
	return id, nil
}
