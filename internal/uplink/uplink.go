// Package uplink is how a party (agent, proxy, command line) reaches the hub's
// one port: by TCP, or through an HTTP proxy of the network it runs in, or inside a
// WebSocket where only web traffic passes, with TLS 1.3 on top that verifies the hub.
//
// A Dialer makes every kind of connection to that port: DialTLS for the bus and
// for pipes, HTTPClient for the HTTPS API. The single steps (Resolve, DialTCP,
// Tunnel, Upgrade, Handshake) are there for diagnosis. Every error is a *wire.Failure
// with a hint for the person who can mend it, and no error carries a secret.
package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"postern.dev/postern/internal/wire"
)

// Time limits of one attempt, each on top of the caller's context.
const (
	dialTimeout      = 10 * time.Second // all addresses of the name together
	tunnelTimeout    = 15 * time.Second // the HTTP proxy's answer to CONNECT
	handshakeTimeout = 15 * time.Second // TLS
)

// Config says where the one port is and whom to trust there.
type Config struct {
	// ConnectURL is tls://HOST[:4222], https://HOST[:443] or wss://HOST[:443][/PATH].
	// With wss, one of CAFile, Roots and CAPin is needed: the system's roots may
	// contain the authority of what opens TLS on the way.
	ConnectURL string

	// CAFile names a PEM file with the certificate authorities to trust in
	// place of the system's. Roots is the same, given as a pool; it is used when
	// CAFile is empty.
	CAFile string
	Roots  *x509.CertPool

	// CAPin is "sha256:HEX" of the SubjectPublicKeyInfo of the hub's CA
	// certificate, which the hub sends along. Together with CAFile only the
	// certificate of the file with that pin is trusted.
	CAPin string

	// ProxyURL is the HTTP proxy to go through: http://[USER:PASSWORD@]HOST[:80]
	// or https://…[:443]. If it is empty, AGENT_PROXY decides, then HTTPS_PROXY
	// and NO_PROXY (each in upper or lower case).
	ProxyURL string

	// ProxyCAFile names a PEM file with authorities to trust in addition to the
	// system's: for an https:// proxy, and for whatever ends the TLS around a
	// WebSocket.
	ProxyCAFile string

	Getenv      func(string) string                                                    // nil: os.Getenv
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)      // nil: a net.Dialer
	LookupHost  func(ctx context.Context, host string) (addrs []netip.Addr, err error) // for Resolve; nil: the system's resolver
	Now         func() time.Time                                                       // for certificates; nil: time.Now
}

// Dialer opens connections to the one port. It is safe for concurrent use.
type Dialer struct {
	endpoint Endpoint
	proxy    *url.URL // nil: no HTTP proxy
	proxyTLS *tls.Config
	webRoots *x509.CertPool // for the TLS around a WebSocket; nil: the system's
	trust    trust
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	client   *http.Client
}

// New checks the configuration and returns a Dialer. It reads the files that
// the configuration names and opens no connection.
func New(c Config) (*Dialer, error) {
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	d := &Dialer{dial: c.DialContext, lookup: c.LookupHost}
	if d.dial == nil {
		d.dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}).DialContext
	}
	if d.lookup == nil {
		d.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	var err error
	if d.endpoint, err = ParseConnectURL(c.ConnectURL); err != nil {
		return nil, badConfig(err)
	}
	if d.trust, err = newTrust(c); err != nil {
		return nil, badConfig(err)
	}
	d.trust.host = d.endpoint.Host
	if d.proxy, err = chooseProxy(c, d.endpoint); err != nil {
		return nil, badConfig(err)
	}
	if d.proxy != nil && d.proxy.Scheme == "https" {
		if d.proxyTLS, err = proxyTLSConfig(c, d.proxy); err != nil {
			return nil, badConfig(err)
		}
	}
	if d.endpoint.WebSocket() {
		if d.trust.roots == nil && d.trust.pin == "" {
			return nil, badConfig(errWebTrust)
		}
		if d.webRoots, err = proxyRoots(c); err != nil {
			return nil, badConfig(err)
		}
	}
	d.client = d.newHTTPClient()
	return d, nil
}

func badConfig(err error) error {
	return wire.Fail(wire.LegRelay, wire.CodeBadRequest, "%s", err).WithCause(err)
}

// Learn makes the Dialer trust the authorities that a verified hub named as its
// own, beside the configured ones: so a party that runs on while the hub's
// authority changes needs no new configuration until it starts again. It has no
// effect where the system's roots are trusted.
func (d *Dialer) Learn(roots *x509.CertPool) { d.trust.learned.Store(roots) }

// Endpoint returns where the one port is.
func (d *Dialer) Endpoint() Endpoint { return d.endpoint }

// Proxy returns the HTTP proxy in use as SCHEME://HOST:PORT without its
// credentials, or "" when connections go straight to the hub.
func (d *Dialer) Proxy() string {
	if d.proxy == nil {
		return ""
	}
	return d.proxy.Scheme + "://" + proxyAddress(d.proxy)
}

// FirstHop returns HOST:PORT of what TCP connects to: the HTTP proxy if there
// is one, and the hub otherwise.
func (d *Dialer) FirstHop() string {
	if d.proxy != nil {
		return proxyAddress(d.proxy)
	}
	return d.endpoint.Address()
}

// Resolve looks up the addresses of the first hop. An address resolves to itself.
func (d *Dialer) Resolve(ctx context.Context) ([]netip.Addr, error) {
	host, _, _ := net.SplitHostPort(d.FirstHop())
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := d.lookup(ctx, host)
	if err != nil {
		return nil, d.dialFailure(err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// DialTCP connects to the first hop: every address of its name is tried, IPv6
// and IPv4 side by side (RFC 8305). The connection is a *net.TCPConn unless
// Config.DialContext made another kind.
func (d *Dialer) DialTCP(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.dial(ctx, "tcp", d.FirstHop())
	if err != nil {
		return nil, d.dialFailure(err)
	}
	return conn, nil
}

// DialRaw connects to the one port, through the HTTP proxy if there is one and by
// WebSocket if the connect URL says so, and returns the bare connection: a
// *net.TCPConn, or a *tls.Conn when the proxy is an https:// one, or a WebSocket.
func (d *Dialer) DialRaw(ctx context.Context) (net.Conn, error) {
	conn, err := d.DialTCP(ctx)
	if err != nil {
		return nil, err
	}
	if conn, err = d.Tunnel(ctx, conn); err != nil {
		return nil, err
	}
	return d.Upgrade(ctx, conn)
}

// DialTLS connects to the one port and completes the outer TLS handshake for
// the given ALPN protocol. cert returns the client certificate; it may be nil.
func (d *Dialer) DialTLS(ctx context.Context, alpn string, cert func() *tls.Certificate) (*tls.Conn, error) {
	raw, err := d.DialRaw(ctx)
	if err != nil {
		return nil, err
	}
	conn, _, err := d.Handshake(ctx, raw, alpn, cert)
	return conn, err
}
