package identity

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"
)

// Vouch returns a certificate by which a says that another authority of its trust
// domain may be trusted as itself is: the other's name and key, signed by a. Who
// trusts only a can then verify what the other signed, if the certificate is
// presented along. It ends when the first of the two authorities does.
func (a *Authority) Vouch(other *Authority, now time.Time) (*x509.Certificate, error) {
	if other.domain != a.domain {
		return nil, fmt.Errorf("vouch for authority: its trust domain %q is not ours, %q", other.domain, a.domain)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            other.cert.RawSubject,
		SubjectKeyId:          other.cert.SubjectKeyId,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: a.domain}},
		NotBefore:             now.Add(-hubBackdate),
		NotAfter:              a.cert.NotAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if other.cert.NotAfter.Before(tmpl.NotAfter) {
		tmpl.NotAfter = other.cert.NotAfter
	}
	return sign(tmpl, a.cert, other.key.Public(), a.key)
}

// CanVouch reports whether verifiers accept the authorities that a vouches for.
// The first hubs made authorities that allow none below them.
func (a *Authority) CanVouch() bool { return a.cert.MaxPathLen > 0 }

// EncodeCertificates returns certificates in PEM, as ParseCertificates reads them.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return b
}
