package identity

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"postern.dev/postern/internal/wire"
)

// What VerifyPeer refuses, beside the errors of crypto/x509 that it wraps.
var (
	ErrNoCertificate    = errors.New("peer sent no certificate")
	ErrWrongTrustDomain = errors.New("certificate's authority does not speak for its trust domain")
	ErrNoCredentials    = errors.New("no credentials yet")
	ErrWrongProtocol    = errors.New("peer does not speak the expected protocol")
	ErrRevoked          = errors.New("certificate was revoked")
)

// Credentials are what a party holds for about an hour: its identity, a
// certificate for it with the private key, and the authorities of its
// organization. They are immutable and safe for concurrent use.
type Credentials struct {
	ID          ID
	Certificate tls.Certificate // Leaf is set
	Roots       *x509.CertPool
	NotBefore   time.Time
	NotAfter    time.Time
}

// NewCredentials puts credentials together from a certificate chain in PEM, its
// private key, and the CA bundle in PEM. It checks that they belong together
// but not that they are valid now: the caller's clock may be off, and deserves
// an error that says so.
func NewCredentials(chainPEM []byte, key crypto.Signer, rootsPEM []byte) (*Credentials, error) {
	chain, err := ParseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("read certificate chain: %w", err)
	}
	leaf := chain[0]
	if !equalPublic(key.Public(), leaf.PublicKey) {
		return nil, errors.New("certificate is not for our key")
	}
	id, err := CertificateID(leaf)
	if err != nil {
		return nil, err
	}
	roots, err := ParseCertificates(rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("read CA bundle: %w", err)
	}
	c := &Credentials{
		ID:          id,
		Certificate: tls.Certificate{PrivateKey: key, Leaf: leaf},
		Roots:       x509.NewCertPool(),
		NotBefore:   leaf.NotBefore,
		NotAfter:    leaf.NotAfter,
	}
	for _, cert := range chain {
		c.Certificate.Certificate = append(c.Certificate.Certificate, cert.Raw)
	}
	for _, cert := range roots {
		c.Roots.AddCert(cert)
	}
	return c, nil
}

// ParseCertificates reads one or more certificates in PEM. Anything but
// certificates among them, a private key above all, is an error.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("found a PEM block of type %q; want only %s", block.Type, pemCertificate)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(certs)+1, err)
		}
		certs, b = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("found no PEM block of type " + pemCertificate)
	}
	if bytes.Contains(b, []byte("-----BEGIN ")) {
		return nil, errors.New("last PEM block is truncated")
	}
	return certs, nil
}

// Serial returns a certificate's serial number in hexadecimal, which names it in
// lists of revoked ones.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// VerifyPeer returns who the other side of a TLS connection is. The identity is
// that of the leaf certificate, which must be valid at now for usage, have
// exactly one URI, and chain to an authority in roots that speaks for the leaf's
// trust domain. A certificate that crypto/x509 refuses is reported with its
// typed error, for instance x509.CertificateInvalidError with Expired.
func VerifyPeer(roots *x509.CertPool, cs tls.ConnectionState, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return ID{}, ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	if roots == nil {
		// A nil pool would mean the system's authorities to crypto/x509.
		roots = x509.NewCertPool()
	}
	intermediates := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return ID{}, fmt.Errorf("verify peer certificate: %w", err)
	}
	if leaf.IsCA {
		return ID{}, errors.New("verify peer certificate: an authority's certificate is not a party's")
	}
	id, err := CertificateID(leaf)
	if err != nil {
		return ID{}, fmt.Errorf("verify peer certificate: %w", err)
	}
	for _, chain := range chains {
		if domain, ok := authorityDomain(chain[len(chain)-1]); ok && domain == id.TrustDomain {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("verify peer certificate of %s: %w", id, ErrWrongTrustDomain)
}

// InnerClientConfig returns the client side of a pipe's inner TLS: mutual, TLS
// 1.3 only, no resumption. creds gives the credentials of the moment, so that
// renewal needs no new configuration; check says whether the verified peer is
// the one that is wanted.
func InnerClientConfig(creds func() *Credentials, check func(ID) error) *tls.Config {
	c := innerConfig(creds, check, x509.ExtKeyUsageServerAuth)
	// The peer is known by its SPIFFE ID, not by a host name: VerifyConnection
	// verifies the chain and the identity.
	c.InsecureSkipVerify = true
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return currentCertificate(creds)
	}
	return c
}

// InnerServerConfig returns the server side of a pipe's inner TLS; see
// InnerClientConfig.
func InnerServerConfig(creds func() *Credentials, check func(ID) error) *tls.Config {
	c := innerConfig(creds, check, x509.ExtKeyUsageClientAuth)
	c.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection, against the roots of the moment
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return currentCertificate(creds)
	}
	return c
}

func innerConfig(creds func() *Credentials, check func(ID) error, usage x509.ExtKeyUsage) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{wire.ALPNStream},
		SessionTicketsDisabled: true,
		// Pipes carry bulk bytes: full records from the first one.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != wire.ALPNStream {
				return fmt.Errorf("%w: %q instead of %q", ErrWrongProtocol, cs.NegotiatedProtocol, wire.ALPNStream)
			}
			own := creds()
			if own == nil {
				return ErrNoCredentials
			}
			id, err := VerifyPeer(own.Roots, cs, usage, time.Now())
			if err != nil {
				return err
			}
			if id.TrustDomain != own.ID.TrustDomain {
				// Organizations of the same name at two hubs have nothing in common.
				return fmt.Errorf("%s is not of trust domain %s: %w", id, own.ID.TrustDomain, ErrWrongTrustDomain)
			}
			return check(id)
		},
	}
}

func currentCertificate(creds func() *Credentials) (*tls.Certificate, error) {
	c := creds()
	if c == nil {
		return nil, ErrNoCredentials
	}
	return &c.Certificate, nil
}
