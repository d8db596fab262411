package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"

	"postern.dev/postern/internal/wire"
)

// Server says how an ordinary client of HTTPS, such as kubectl, verifies the hub.
type Server struct {
	CA   []byte // the authorities to trust, in PEM; nil for the system's
	Name string // the name to expect in the certificate; empty for the host of the URL
}

// Server asks the hub for its certificate and returns what other programs need to
// verify it. The certificate has been verified as for every other connection.
func (d *Dialer) Server(ctx context.Context) (Server, error) {
	raw, err := d.DialRaw(ctx)
	if err != nil {
		return Server{}, err
	}
	conn, _, err := d.handshake(ctx, raw, []string{"h2", "http/1.1"}, nil)
	if err != nil {
		return Server{}, err
	}
	defer conn.Close()
	return d.trust.server(conn.ConnectionState())
}

func (t *trust) server(cs tls.ConnectionState) (Server, error) {
	var s Server
	roots := t.certs
	if t.pin != "" {
		for _, cert := range cs.PeerCertificates {
			if cert.IsCA && t.matches(cert) {
				roots = append(roots, cert)
			}
		}
	}
	for _, cert := range roots {
		s.CA = append(s.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	leaf := cs.PeerCertificates[0]
	if leaf.VerifyHostname(t.host) == nil {
		return s, nil
	}
	// Ours is good under any name, because it says that it is a hub's. Others look
	// at names only.
	if s.Name = anyName(leaf); s.Name == "" {
		return Server{}, wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "the hub's certificate has no name that kubectl could verify").
			WithHint("name the hub's host to it with --tls-name %s, and start it again", t.host)
	}
	return s, nil
}

// anyName returns a name that a certificate is valid for, or "".
func anyName(leaf *x509.Certificate) string {
	for _, name := range leaf.DNSNames {
		if net.ParseIP(name) == nil && leaf.VerifyHostname(name) == nil {
			return name
		}
	}
	for _, ip := range leaf.IPAddresses {
		return ip.String()
	}
	return ""
}
