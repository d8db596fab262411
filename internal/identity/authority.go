package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"
)

const (
	// authorityLife is how long a hub's authority is valid: it outlives the
	// machines, because every party pins it.
	authorityLife = 20 * 365 * 24 * time.Hour

	// backdate is how far before now certificates begin, so that a party whose
	// clock is a little late believes them at once.
	backdate = 2 * time.Minute

	// hubBackdate is the same for an authority and for the hub's own certificate.
	// It costs nothing to be generous: a party whose clock is late shall get as
	// far as the hub's answer, which tells it by how much.
	hubBackdate = 24 * time.Hour

	// maxTrustDomain bounds a trust domain's length (SPIFFE-ID §2.1).
	maxTrustDomain = 255
)

// Authority is a hub's certificate authority for one trust domain. It is
// immutable and safe for concurrent use.
type Authority struct {
	domain string
	cert   *x509.Certificate
	key    crypto.Signer
}

// ValidateTrustDomain says whether s may be a trust domain: 1 to 255 characters
// of a-z, 0-9, '.', '-' and '_' (SPIFFE-ID §2.1).
func ValidateTrustDomain(s string) error {
	if s == "" || len(s) > maxTrustDomain {
		return fmt.Errorf("trust domain has %d characters; want 1 to %d", len(s), maxTrustDomain)
	}
	if i := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	}); i >= 0 {
		return fmt.Errorf("trust domain %q: only a-z, 0-9, '.', '-' and '_' are allowed", s)
	}
	return nil
}

// NewAuthority makes an authority with a new key, valid for 20 years from now.
func NewAuthority(trustDomain string, now time.Time) (*Authority, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The number in the name tells a hub's authorities apart where one follows
		// the other.
		Subject:               pkix.Name{CommonName: "Postern CA " + commonName(trustDomain), SerialNumber: fmt.Sprintf("%032x", serial)[:8]},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		NotBefore:             now.Add(-hubBackdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1, // room for the authority that it vouches for; see Vouch
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Authority{domain: trustDomain, cert: cert, key: key}, nil
}

// LoadAuthority reads an authority from what CertificatePEM and KeyPEM
// returned. It refuses a key that is not the certificate's.
func LoadAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != pemCertificate {
		return nil, errors.New("authority is not a PEM block of type " + pemCertificate)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse authority certificate: %w", err)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return nil, errors.New("authority certificate may not sign certificates")
	}
	domain, ok := authorityDomain(cert)
	if !ok {
		return nil, errors.New("authority certificate does not name its trust domain")
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read authority key: %w", err)
	}
	if !equalPublic(key.Public(), cert.PublicKey) {
		return nil, errors.New("authority key does not belong to the authority certificate")
	}
	return &Authority{domain: domain, cert: cert, key: key}, nil
}

// CertificatePEM returns the authority's certificate, which is public.
func (a *Authority) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: a.cert.Raw})
}

// KeyPEM returns the authority's private key as PKCS #8 in PEM.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// TrustDomain returns the trust domain that the authority speaks for.
func (a *Authority) TrustDomain() string { return a.domain }

// NotAfter returns when the authority's certificate expires.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Pool returns a new pool that holds the authority's certificate only.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Certificate returns the authority's certificate; it is not to be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pin returns the pin of the authority's key, as Pin does for a certificate.
func (a *Authority) Pin() string { return Pin(a.cert) }

// IssueParty certifies that the holder of pub's private key is id, an agent or
// a proxy of this trust domain that was enrolled by holder, for ttl from now. It
// returns the certificate in PEM. The certificate begins two minutes before now and
// serves as client and server.
func (a *Authority) IssueParty(id ID, pub crypto.PublicKey, holder Holder, ttl time.Duration, now time.Time) ([]byte, error) {
	if id.Role == RoleHub {
		return nil, errors.New("issue certificate: a hub is not a party of an organization")
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("issue certificate: life of %s is not positive", ttl)
	}
	if err := checkPublicKey(pub); err != nil {
		return nil, err
	}
	cert, err := a.issue(id, pub, holder, nil, now.Add(-backdate), now.Add(ttl))
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw}), nil
}

// IssueServer makes a key and a certificate for it that says it is the hub node
// called name, reachable under hosts (DNS names and IP addresses), for ttl from
// now. It begins a day before now. The chain holds the authority too, so that a
// client that has only a pin can find it.
func (a *Authority) IssueServer(name string, hosts []string, ttl time.Duration, now time.Time) (tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server key: %w", err)
	}
	id := ID{TrustDomain: a.domain, Role: RoleHub, Name: name}
	cert, err := a.issue(id, key.Public(), Holder{}, hosts, now.Add(-hubBackdate), now.Add(ttl))
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// issue signs a certificate for id that serves as client and server.
func (a *Authority) issue(id ID, pub crypto.PublicKey, holder Holder, hosts []string, from, to time.Time) (*x509.Certificate, error) {
	uri := id.URI()
	if parsed, err := ParseID(uri); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	} else if parsed != id {
		return nil, fmt.Errorf("issue certificate: %s is not a party's identity", uri)
	}
	if id.TrustDomain != a.domain {
		return nil, fmt.Errorf("issue certificate: trust domain %q is not ours, %q", id.TrustDomain, a.domain)
	}
	subject, err := holder.subject(id.Name)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		URIs:         []*url.URL{uri},
		NotBefore:    from,
		NotAfter:     to,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		// A leaf says so (X509-SVID §4.1), for verifiers that check.
		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	return sign(tmpl, a.cert, pub, a.key)
}

// sign signs tmpl and returns the certificate as a reader sees it.
func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	return cert, nil
}

// newSerial returns a random positive serial number of at most 127 bits (RFC
// 5280 §4.1.2.2 allows 20 bytes).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// commonName shortens s to what a common name may hold (RFC 5280 appendix A,
// ub-common-name); it is for people, and nothing reads it.
func commonName(s string) string {
	const limit = 48
	if len(s) > limit {
		return s[:limit]
	}
	return s
}

// authorityDomain returns the trust domain that a CA certificate speaks for: its
// one URI is the SPIFFE ID of the trust domain, without a path.
func authorityDomain(cert *x509.Certificate) (string, bool) {
	if len(cert.URIs) != 1 {
		return "", false
	}
	u := cert.URIs[0]
	if u.Scheme != "spiffe" || (u.Path != "" && u.Path != "/") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", false
	}
	return u.Host, ValidateTrustDomain(u.Host) == nil
}
