package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// askTimeout bounds one request to an issuer.
const askTimeout = 10 * time.Second

// client asks one issuer.
type client struct{ http.Client }

// NewHTTPClient returns a client for an issuer's endpoints: it trusts the issuer's
// CA, follows no redirects, and takes time for nothing. The caller closes idle
// connections at the end.
func NewHTTPClient(i Issuer, getenv func(string) string) (*http.Client, error) {
	c, err := newClient(i, getenv)
	if err != nil {
		return nil, err
	}
	return &c.Client, nil
}

func newClient(i Issuer, getenv func(string) string) (*client, error) {
	pool, err := caPool(i.CA)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: askTimeout}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, TLSHandshakeTimeout: askTimeout,
		MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
	if i.Public {
		// No proxy of ours either: what it reaches, nobody here can check.
		dialer.Control = func(_, address string, _ syscall.RawConn) error { return checkPublic(address) }
	} else {
		transport.Proxy = proxyFunc(getenv)
	}
	transport.DialContext = dialer.DialContext
	return &client{http.Client{
		Transport: transport, Timeout: askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// get returns the body of a JSON document.
func (c *client) get(ctx context.Context, where string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, fmt.Errorf("%.200q is no URL", where)
	}
	req.Header.Set("Accept", "application/json")
	res, err := c.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", where, res.Status)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s is longer than %d bytes", where, maxAnswer)
	}
	return b, nil
}

// proxyFunc returns the choice of an HTTP proxy by HTTPS_PROXY and NO_PROXY.
func proxyFunc(getenv func(string) string) func(*http.Request) (*url.URL, error) {
	if getenv == nil {
		return nil
	}
	either := func(upper, lower string) string {
		if v := getenv(upper); v != "" {
			return v
		}
		return getenv(lower)
	}
	f := (&httpproxy.Config{
		HTTPProxy: getenv("http_proxy"), HTTPSProxy: either("HTTPS_PROXY", "https_proxy"), NoProxy: either("NO_PROXY", "no_proxy"),
	}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return f(r.URL) }
}

// ValidateCA says whether something can be the CA of an Issuer.
func ValidateCA(pem []byte) error {
	_, err := caPool(pem)
	if err == nil && len(pem) == 0 {
		err = errors.New("the issuer's CA is empty")
	}
	return err
}

func caPool(ca []byte) (*x509.CertPool, error) {
	if len(ca) == 0 {
		return nil, nil //nolint:nilnil // the system's, as tls.Config means it
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the issuer's CA holds no certificate in PEM")
	}
	return pool, nil
}

// notPublic are ranges that no service of the public Internet has, beside those
// that netip knows: shared, cloud metadata, and those that embed another address.
func notPublic() []netip.Prefix {
	texts := []string{"100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "0.0.0.0/8",
		"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"}
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// checkPublic refuses an address that is not of the public Internet.
func checkPublic(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q cannot be read", address)
	}
	a := ap.Addr().Unmap().WithZone("")
	bad := !a.IsGlobalUnicast() || a.IsPrivate()
	for _, p := range notPublic() {
		bad = bad || p.Contains(a)
	}
	if bad {
		return fmt.Errorf("%s is not an address of the public Internet", a)
	}
	return nil
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// isWebURL reports whether s is a URL of an endpoint: https, or http on loopback if
// plain is set.
func isWebURL(s string, plain bool) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && u.User == nil && (u.Scheme == "https" || plain && u.Scheme == "http" && isLoopback(u.Hostname()))
}

// discoveryURL returns where an issuer's discovery document is (OpenID Connect
// Discovery 1.0 §4).
func discoveryURL(issuer string) string {
	return strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration"
}
