package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postern.dev/postern/internal/webconn"
	"postern.dev/postern/internal/wire"
)

// upgradeTimeout is for the TLS around a WebSocket and the upgrade, together.
const upgradeTimeout = 15 * time.Second

var errWebTrust = errors.New("a wss:// connect URL needs the hub's CA certificate (--ca-file) or its pin (--ca-pin): " +
	"whatever ends TLS on the way must not be able to pose as the hub")

// Upgrade turns a connection from Tunnel into the inside of a WebSocket when the
// connect URL is a wss:// one, and otherwise returns conn as it is. It closes conn
// when it fails.
//
// The TLS around the WebSocket belongs to whoever ends it: the hub, a load balancer,
// or a firewall that inspects what passes. It keeps honest people honest, no more:
// the outer TLS with the hub runs inside (Handshake), and so does all HTTP.
func (d *Dialer) Upgrade(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if !d.endpoint.WebSocket() {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
	defer cancel()
	var chain []*x509.Certificate
	tc := tls.Client(conn, d.webTLSConfig(&chain))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, d.webTLSFailure(ctx, err, chain)
	}
	ws, err := webconn.Client(ctx, tc, d.webURL())
	if err != nil {
		return nil, d.upgradeFailure(ctx, err)
	}
	return ws, nil
}

// webURL returns the URL to upgrade at. The usual port stays out of the Host header,
// since some load balancers know their hosts without.
func (d *Dialer) webURL() *url.URL {
	host := d.endpoint.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if d.endpoint.Port != 443 {
		host += ":" + strconv.Itoa(int(d.endpoint.Port))
	}
	u, err := url.Parse("https://" + host + d.endpoint.Path)
	if err != nil { // ParseConnectURL has parsed these very parts
		u = &url.URL{Scheme: "https", Host: host, Path: defaultPath}
	}
	return u
}

// webTLSConfig is the TLS around a WebSocket: good is what the system trusts under
// the host's name, and the hub itself.
func (d *Dialer) webTLSConfig(chain *[]*x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, ServerName: d.endpoint.Host, Time: d.trust.now,
		DynamicRecordSizingDisabled: true,
		InsecureSkipVerify:          true, //nolint:gosec // VerifyConnection does it, for either kind of trust
		VerifyConnection: func(cs tls.ConnectionState) error {
			*chain = cs.PeerCertificates
			err := verifyName(cs.PeerCertificates, d.webRoots, d.endpoint.Host, d.trust.now())
			if err != nil {
				if _, hub := d.trust.verify(cs); hub == nil {
					return nil
				}
			}
			return err
		},
	}
}

// webTLSFailure explains why the TLS around a WebSocket failed.
func (d *Dialer) webTLSFailure(ctx context.Context, err error, chain []*x509.Certificate) error {
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); !unknown {
		return d.handshakeFailure(ctx, err, chain)
	}
	issuer := "unknown"
	if len(chain) > 0 {
		issuer = chain[len(chain)-1].Issuer.String()
	}
	return wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "the certificate around the WebSocket of %s is signed by an unknown authority, %q",
		d.endpoint.Address(), printable(issuer)).WithCause(err).
		WithHint("if it is that of your load balancer, or of a firewall that inspects TLS, give the authority's certificate with --proxy-ca-file; " +
			"it need not be trusted with more, for the hub proves itself inside")
}

// upgradeFailure explains why there is no WebSocket.
func (d *Dialer) upgradeFailure(ctx context.Context, err error) error {
	at := d.webURL().String()
	fail := func(code wire.Code, format string, args ...any) *wire.Failure {
		return wire.Fail(wire.LegRelay, code, format, args...).WithCause(err)
	}
	var refused *webconn.RefusedError
	switch {
	case errors.As(err, &refused):
		return upgradeRefusal(fail, at, refused)
	case errors.Is(ctx.Err(), context.Canceled):
		return fail(wire.CodeCanceled, "the WebSocket upgrade at %s was given up", at)
	case isTimeout(err), ctx.Err() != nil:
		return fail(wire.CodeTimeout, "no answer to the WebSocket upgrade at %s", at).
			WithHint("a load balancer or firewall may hold it up; it has to pass upgrades on at once")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fail(wire.CodeReset, "the connection was closed instead of a WebSocket upgrade at %s", at).
			WithHint("check the connect URL's host and port")
	default:
		return fail(wire.CodeProtocol, "WebSocket upgrade at %s: %s", at, err)
	}
}

func upgradeRefusal(fail func(wire.Code, string, ...any) *wire.Failure, at string, r *webconn.RefusedError) error {
	who := ""
	if r.Server != "" {
		who = " by " + printable(r.Server)
	}
	f := fail(wire.CodeProtocol, "the WebSocket upgrade at %s was answered with %s%s", at, printable(r.Text), who)
	switch {
	case r.Status == http.StatusBadGateway, r.Status == http.StatusServiceUnavailable, r.Status == http.StatusGatewayTimeout:
		f.Code = wire.CodeUnreachable
		f.WithHint("what answers there cannot reach the hub: check its backend, which is the hub's port, by HTTPS with TLS 1.3")
	case r.Status == http.StatusForbidden, r.Status == http.StatusUnauthorized, r.Status == http.StatusProxyAuthRequired:
		f.Code = wire.CodeDenied
		f.WithHint("a firewall or load balancer on the way refuses it; ask its owner to let WebSockets to this URL pass")
	case r.Status == http.StatusNotFound:
		f.WithHint("no hub answers at this path: the load balancer has to pass it on to the hub, as %s there", defaultPath)
	case r.Status == http.StatusUpgradeRequired, r.Status == http.StatusBadRequest:
		f.WithHint("the load balancer drops the upgrade: it has to speak HTTP/1.1 with the hub and pass the headers Upgrade and Connection on")
	case r.Status/100 == 3:
		f.WithHint("a login page, perhaps; the connect URL has to lead to the hub without redirects")
	default:
		f.WithHint("check that the connect URL names a Postern hub, or a load balancer in front of one")
	}
	return f
}
