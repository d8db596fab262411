package uplink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"postern.dev/postern/internal/wire"
)

// maxProxyHeader bounds the HTTP proxy's answer to CONNECT, in bytes.
const maxProxyHeader = 16 << 10

// chooseProxy returns the HTTP proxy that leads to e, or nil.
func chooseProxy(c Config, e Endpoint) (*url.URL, error) {
	env := func(name string) string {
		if v := c.Getenv(name); v != "" {
			return v
		}
		return c.Getenv(strings.ToLower(name))
	}
	if c.ProxyURL != "" {
		return parseProxyURL("proxy URL", c.ProxyURL)
	}
	if v := env("AGENT_PROXY"); v != "" {
		return parseProxyURL("AGENT_PROXY", v)
	}
	hc := httpproxy.Config{HTTPSProxy: env("HTTPS_PROXY"), NoProxy: env("NO_PROXY")}
	if hc.HTTPSProxy == "" {
		return nil, nil
	}
	// Checked first: httpproxy's own errors show the URL with its password.
	u, err := parseProxyURL("HTTPS_PROXY", hc.HTTPSProxy)
	if err != nil {
		return nil, err
	}
	chosen, err := hc.ProxyFunc()(&url.URL{Scheme: "https", Host: e.Address()})
	if err != nil || chosen == nil {
		return nil, err
	}
	return u, nil
}

// parseProxyURL reads http://[USER:PASSWORD@]HOST[:PORT] or https://…; without
// a scheme it is http, as curl has it. Errors never show the URL.
func parseProxyURL(what, s string) (*url.URL, error) {
	const want = "want http://HOST:PORT or https://HOST:PORT, credentials as USER:PASSWORD@ before the host"
	if len(s) > maxURLLen {
		return nil, fmt.Errorf("%s is %d bytes long; at most %d are allowed", what, len(s), maxURLLen)
	}
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%s does not parse: %s", what, want)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s has the scheme %q: %s", what, printable(u.Scheme), want)
	}
	if _, err := wire.NormalizeHost(u.Hostname()); err != nil {
		return nil, fmt.Errorf("%s has no usable host: %s", what, want)
	}
	if u.User != nil && strings.Contains(u.User.Username(), ":") {
		return nil, fmt.Errorf("%s: a user name for an HTTP proxy has no colon", what)
	}
	return u, nil
}

// proxyAddress returns HOST:PORT of an HTTP proxy with its scheme's port.
func proxyAddress(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func proxyTLSConfig(c Config, u *url.URL) (*tls.Config, error) {
	roots, err := proxyRoots(c)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		ServerName: u.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Time: c.Now,
	}, nil
}

// proxyRoots returns the system's authorities and those of ProxyCAFile, or nil when
// the system's are all.
func proxyRoots(c Config) (*x509.CertPool, error) {
	if c.ProxyCAFile == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pem, err := os.ReadFile(c.ProxyCAFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file of the HTTP proxy: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s of the HTTP proxy has no certificate in it", c.ProxyCAFile)
	}
	return pool, nil
}

// Tunnel turns a connection from DialTCP into one to the hub's port: through an
// HTTP proxy with CONNECT, and otherwise it returns conn as it is. It closes
// conn on failure. No byte behind the proxy's answer is read: they belong to
// whoever uses the connection next.
func (d *Dialer) Tunnel(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if d.proxy == nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tunnelTimeout)
	defer cancel()
	if d.proxyTLS != nil {
		tc := tls.Client(conn, d.proxyTLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, d.proxyTLSFailure(err)
		}
		conn = tc
	}
	if err := d.connect(ctx, conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// connect sends CONNECT and reads the answer's header.
func (d *Dialer) connect(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	addr := d.endpoint.Address()
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: postern\r\n", addr, addr)
	if d.proxy.User != nil {
		password, _ := d.proxy.User.Password()
		b.WriteString("Proxy-Authorization: Basic " +
			base64.StdEncoding.EncodeToString([]byte(d.proxy.User.Username()+":"+password)) + "\r\n")
	}
	b.WriteString("\r\n")
	_, err := io.WriteString(conn, b.String())
	var res connectAnswer
	if err == nil {
		res, err = readConnectResponse(conn)
	}
	if !stop() {
		// The deadline has been set or is about to be: the connection is spoilt.
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return d.proxyFailure(ctx, err)
	}
	if res.code/100 != 2 {
		return d.proxyRefusal(res)
	}
	return nil
}

// Faults of the answer to CONNECT.
var (
	errProxyTLS     = errors.New("the answer is TLS, not HTTP")
	errProxyNotHTTP = errors.New("the answer is not HTTP")
	errProxyTooLong = fmt.Errorf("the answer's header is longer than %d bytes", maxProxyHeader)
)

// connectAnswer is the header of the final answer to CONNECT.
type connectAnswer struct {
	code   int
	status string // "407 Proxy Authentication Required"
	header http.Header
}

// readConnectResponse reads the header of the final answer to CONNECT and not a
// byte more. Its body, if any, stays unread.
func readConnectResponse(r io.Reader) (connectAnswer, error) {
	for range 5 { // interim answers (1xx) may come before the final one
		header, err := readHeader(r)
		if err != nil {
			return connectAnswer{}, err
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(header)), &http.Request{Method: http.MethodConnect})
		if err != nil {
			return connectAnswer{}, fmt.Errorf("%w: %w", errProxyNotHTTP, err)
		}
		_ = res.Body.Close() // an empty one: only the header was given to the parser
		if res.StatusCode/100 != 1 || res.StatusCode == http.StatusSwitchingProtocols {
			return connectAnswer{res.StatusCode, res.Status, res.Header}, nil
		}
	}
	return connectAnswer{}, fmt.Errorf("%w: too many interim answers", errProxyNotHTTP)
}

// readHeader reads up to and including the empty line, one byte at a time: a
// larger read might swallow the first bytes of what is tunnelled. It happens
// once per connection, so its cost does not matter.
func readHeader(r io.Reader) ([]byte, error) {
	const start = "HTTP/"
	header := make([]byte, 0, 256)
	var one [1]byte
	for len(header) < maxProxyHeader {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return nil, err
		}
		header = append(header, one[0])
		if n := len(header); n <= len(start) && header[n-1] != start[n-1] {
			if n == 1 && (one[0] == 0x15 || one[0] == 0x16) { // alert, handshake (RFC 8446 §5.1)
				return nil, errProxyTLS
			}
			return nil, errProxyNotHTTP
		}
		if one[0] == '\n' && (bytes.HasSuffix(header, []byte("\r\n\r\n")) || bytes.HasSuffix(header, []byte("\n\n"))) {
			return header, nil
		}
	}
	return nil, errProxyTooLong
}
