package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Peer is what a handshake showed of the other side, verified or not.
type Peer struct {
	Version   string      // TLS version, "TLS 1.3"
	ALPN      string      // the protocol agreed on
	ID        identity.ID // the hub's; zero when it was verified by its host name, or not at all
	Subject   string      // the certificate's subject, or its names
	Issuer    string      // who signed it
	Pin       string      // of the certificate authority that the hub presented, or ""
	NotBefore time.Time
	NotAfter  time.Time
	Verified  bool
}

// TLSConfig returns the client side of the outer TLS for one ALPN protocol. cert
// returns the client certificate of the moment; it may be nil, and may return
// nil for none.
//
// The configuration verifies the hub by itself, by its role under a private
// authority and by its host name otherwise; it keeps no sessions, since a
// resumed one would outlive a revoked certificate.
func (d *Dialer) TLSConfig(alpn string, cert func() *tls.Certificate) *tls.Config {
	return d.tlsConfig([]string{alpn}, cert, func(cs tls.ConnectionState) error {
		_, err := d.trust.verify(cs)
		return err
	})
}

func (d *Dialer) tlsConfig(alpn []string, cert func() *tls.Certificate, verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		ServerName: d.endpoint.Host,
		Time:       d.trust.now,
		// Not insecure: VerifyConnection does it all, because the standard check
		// insists on the host name, which a private hub's certificate need not have.
		InsecureSkipVerify:     true, //nolint:gosec // see above
		VerifyConnection:       verify,
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert != nil {
				if c := cert(); c != nil {
					return c, nil
				}
			}
			return &tls.Certificate{}, nil // an empty one means none
		},
	}
}

// Handshake runs the outer TLS on a connection from DialRaw. It returns what it
// learned of the peer, also when it fails after the peer's certificate came.
// It closes raw on failure.
func (d *Dialer) Handshake(ctx context.Context, raw net.Conn, alpn string, cert func() *tls.Certificate) (*tls.Conn, Peer, error) {
	return d.handshake(ctx, raw, []string{alpn}, cert)
}

func (d *Dialer) handshake(ctx context.Context, raw net.Conn, alpn []string, cert func() *tls.Certificate) (*tls.Conn, Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var peer Peer
	var chain []*x509.Certificate
	conn := tls.Client(raw, d.tlsConfig(alpn, cert, func(cs tls.ConnectionState) error {
		chain = cs.PeerCertificates
		peer = describe(cs)
		id, err := d.trust.verify(cs)
		peer.ID, peer.Verified = id, err == nil
		return err
	}))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, peer, d.handshakeFailure(ctx, err, chain)
	}
	if conn.ConnectionState().NegotiatedProtocol == "" {
		_ = conn.Close()
		return nil, peer, wire.Fail(wire.LegTLS, wire.CodeProtocol, "%s speaks TLS, but no protocol of Postern", d.endpoint.Address()).
			WithHint("check that the connect URL names a Postern hub or relay, and that nothing in between ends TLS")
	}
	return conn, peer, nil
}

func describe(cs tls.ConnectionState) Peer {
	p := Peer{Version: tls.VersionName(cs.Version), ALPN: cs.NegotiatedProtocol}
	if len(cs.PeerCertificates) == 0 {
		return p
	}
	leaf := cs.PeerCertificates[0]
	p.Subject, p.Issuer = certificateName(leaf), leaf.Issuer.String()
	p.NotBefore, p.NotAfter = leaf.NotBefore, leaf.NotAfter
	p.Pin = presentedPin(cs.PeerCertificates)
	return p
}

// presentedPin returns the pin of the certificate authority that a chain as
// presented leads to, or "". A chain may hold several while a hub changes its
// authority; the first one is in use, and those without a signature of their own
// lead to others.
func presentedPin(chain []*x509.Certificate) string {
	for _, cert := range chain {
		if cert.IsCA && bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			return identity.Pin(cert)
		}
	}
	for _, cert := range slices.Backward(chain) {
		if cert.IsCA {
			return identity.Pin(cert)
		}
	}
	return ""
}

func certificateName(cert *x509.Certificate) string {
	switch {
	case len(cert.URIs) > 0:
		return cert.URIs[0].String()
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0]
	case len(cert.IPAddresses) > 0:
		return cert.IPAddresses[0].String()
	default:
		return cert.Subject.String()
	}
}
