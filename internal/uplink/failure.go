package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"time"

	"postern.dev/postern/internal/wire"
)

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &ne) && ne.Timeout())
}

// hop names the first hop in errors.
func (d *Dialer) hop() string {
	if d.proxy != nil {
		return "the HTTP proxy " + d.FirstHop()
	}
	return d.FirstHop()
}

// dialFailure explains why the first hop could not be reached.
func (d *Dialer) dialFailure(err error) error {
	if f := (*wire.Failure)(nil); errors.As(err, &f) {
		return err
	}
	setting := "the connect URL"
	if d.proxy != nil {
		setting = "the HTTP proxy's URL (AGENT_PROXY, HTTPS_PROXY)"
	}
	host, _, _ := net.SplitHostPort(d.FirstHop())
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return wire.Fail(wire.LegRelay, wire.CodeCanceled, "connecting to %s was given up", d.hop()).WithCause(err)
	case errors.As(err, &dns) && dns.IsNotFound:
		return wire.Fail(wire.LegRelay, wire.CodeNameNotFound, "the name %s does not resolve", host).
			WithHint("check %s for a typing error, and this machine's DNS", setting).WithCause(err)
	case errors.As(err, &dns):
		return wire.Fail(wire.LegRelay, wire.CodeNameFailed, "the resolver failed to look up %s", host).
			WithHint("check this machine's DNS (/etc/resolv.conf)").WithCause(err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return wire.Fail(wire.LegRelay, wire.CodeRefused, "%s refused the connection", d.hop()).
			WithHint("check that it runs and that %s has the right port", setting).WithCause(err)
	case errors.Is(err, syscall.ECONNRESET):
		return wire.Fail(wire.LegRelay, wire.CodeReset, "%s reset the connection", d.hop()).WithCause(err)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return wire.Fail(wire.LegRelay, wire.CodeUnreachable, "there is no route to %s", d.hop()).
			WithHint("check this machine's network").WithCause(err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return wire.Fail(wire.LegRelay, wire.CodeUnreachable, "a local firewall forbids connections to %s", d.hop()).
			WithHint("allow outbound TCP to it (egress policy, iptables)").WithCause(err)
	case isTimeout(err):
		f := wire.Fail(wire.LegRelay, wire.CodeTimeout, "no answer from %s", d.hop()).WithCause(err)
		if d.proxy == nil {
			return f.WithHint("a firewall may drop outbound TCP to it; if this network needs an HTTP proxy, set AGENT_PROXY")
		}
		return f.WithHint("a firewall may drop outbound TCP to it")
	default:
		return wire.Fail(wire.LegRelay, wire.CodeUnreachable, "connect to %s: %s", d.hop(), err).WithCause(err)
	}
}

// proxyTLSFailure explains why TLS with an https:// proxy failed.
func (d *Dialer) proxyTLSFailure(err error) error {
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	f := wire.Fail(wire.LegRelay, wire.CodeWrongPeer, "TLS with %s failed: %s", d.hop(), err).WithCause(err)
	switch {
	case errors.As(err, &unknown):
		f.WithHint("its certificate is signed by an authority this machine does not know; give that authority's certificate with --proxy-ca-file")
	case errors.As(err, &record):
		f.Code = wire.CodeProtocol
		f.WithHint("it does not speak TLS; is its URL http://%s?", d.FirstHop())
	case isTimeout(err):
		f.Code = wire.CodeTimeout
	}
	return f
}

// proxyFailure explains why CONNECT got no answer that could be read.
func (d *Dialer) proxyFailure(ctx context.Context, err error) error {
	fail := func(code wire.Code, text string) *wire.Failure {
		return wire.Fail(wire.LegRelay, code, "%s %s", d.hop(), text).WithCause(err)
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fail(wire.CodeCanceled, "was given up waiting for")
	case isTimeout(err):
		return fail(wire.CodeTimeout, "did not answer CONNECT").
			WithHint("it may be unable to reach %s, or not be an HTTP proxy", d.endpoint.Address())
	case errors.Is(err, errProxyTLS):
		return fail(wire.CodeProtocol, "speaks TLS").WithHint("write its URL as https://%s", d.FirstHop())
	case errors.Is(err, errProxyNotHTTP):
		return fail(wire.CodeProtocol, "does not speak HTTP").WithHint("check the proxy URL's port")
	case errors.Is(err, errProxyTooLong):
		return fail(wire.CodeProtocol, "sent too long an answer")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fail(wire.CodeReset, "closed the connection instead of answering CONNECT").
			WithHint("check the proxy URL's scheme and port")
	default:
		return fail(wire.CodeUnreachable, "failed at CONNECT: "+err.Error())
	}
}

// proxyRefusal explains a final answer to CONNECT that is not 2xx.
func (d *Dialer) proxyRefusal(res connectAnswer) error {
	addr := d.endpoint.Address()
	f := wire.Fail(wire.LegRelay, wire.CodeUnreachable, "%s answered CONNECT %s with %s", d.hop(), addr, printable(res.status))
	switch res.code {
	case http.StatusProxyAuthRequired:
		f.Code = wire.CodeUnauthenticated
		challenges := strings.ToLower(strings.Join(res.header.Values("Proxy-Authenticate"), ","))
		switch {
		case challenges != "" && !strings.Contains(challenges, "basic"):
			f.WithHint("it asks for a kind of login other than Basic, which is the only one spoken here; ask for an exception or a Basic login")
		case d.proxy.User == nil:
			f.WithHint("it wants credentials: write the proxy URL as %s://USER:PASSWORD@%s", d.proxy.Scheme, d.FirstHop())
		default:
			f.WithHint("it does not accept the user and password in the proxy URL (special characters are written as %%XX there)")
		}
	case http.StatusForbidden, http.StatusMethodNotAllowed:
		f.Code = wire.CodeDenied
		f.WithHint("ask the owner of the HTTP proxy to allow CONNECT to %s", addr)
	case http.StatusGatewayTimeout, http.StatusRequestTimeout:
		f.Code = wire.CodeTimeout
		f.WithHint("the HTTP proxy cannot reach %s", addr)
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusNotFound:
		f.WithHint("the HTTP proxy cannot reach %s; check the connect URL", addr)
	case http.StatusTooManyRequests:
		f.Code = wire.CodeOverloaded
	default:
		f.Code = wire.CodeProtocol
		f.WithHint("check that the proxy URL names an HTTP proxy that allows CONNECT")
	}
	return f
}

// handshakeFailure explains why the outer TLS failed. chain is what the hub
// presented, nil if it did not come to that.
func (d *Dialer) handshakeFailure(ctx context.Context, err error, chain []*x509.Certificate) error {
	fail := func(code wire.Code, format string, args ...any) *wire.Failure {
		return wire.Fail(wire.LegTLS, code, format, args...).WithCause(err)
	}
	addr := d.endpoint.Address()
	var (
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
		hostname x509.HostnameError
		pin      wrongPinError
		notHub   notHubError
		record   tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &pin) && pin.leafMatches:
		return fail(wire.CodeWrongPeer, "the CA pin is that of the certificate of %s itself", addr).
			WithHint("pass the pin of its authority: %s", pinOrUnknown(chain))
	case errors.As(err, &pin):
		return fail(wire.CodeWrongPeer, "no authority of %s has the given CA pin; it presents %s", addr, pinOrUnknown(chain)).
			WithHint("compare with the pin that the hub prints at its start; if they differ, something else answers in the hub's place")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && len(chain) > 0:
		now, what := d.trust.now(), "has expired"
		if now.Before(chain[0].NotBefore) {
			what = "is not yet valid"
		}
		return fail(wire.CodeWrongPeer, "the certificate of %s %s: it is good from %s to %s, and this machine's clock says %s",
			addr, what, stamp(chain[0].NotBefore), stamp(chain[0].NotAfter), stamp(now)).
			WithHint("check this machine's clock first, then the hub's certificate")
	case errors.As(err, &unknown):
		return d.unknownAuthority(fail(wire.CodeWrongPeer, "the certificate of %s is signed by an unknown authority", addr), chain)
	case errors.As(err, &hostname):
		return fail(wire.CodeWrongPeer, "the certificate of %s is for another name: %s", addr, printable(hostname.Error())).
			WithHint("use a name that stands in the certificate as host of the connect URL")
	case errors.As(err, &notHub):
		return fail(wire.CodeWrongPeer, "what answers at %s is not a hub: %s", addr, notHub.err)
	case errors.As(err, &invalid):
		return fail(wire.CodeWrongPeer, "the certificate of %s is not valid: %s", addr, invalid)
	case errors.As(err, &record):
		return fail(wire.CodeProtocol, "what answers at %s does not speak TLS", addr).
			WithHint("check the connect URL's port")
	case errors.Is(ctx.Err(), context.Canceled):
		return fail(wire.CodeCanceled, "the TLS handshake with %s was given up", addr)
	case isTimeout(err):
		return fail(wire.CodeTimeout, "%s did not complete the TLS handshake", addr).
			WithHint("a firewall that inspects traffic may hold it up")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fail(wire.CodeReset, "%s closed the connection during the TLS handshake", addr).
			WithHint("check the connect URL's port; a firewall that inspects traffic may also do this")
	}
	switch alert := remoteAlert(err); alert {
	case 0:
		return fail(wire.CodeProtocol, "the TLS handshake with %s failed: %s", addr, err)
	case 70, 40, 47: // protocol_version, handshake_failure, illegal_parameter
		return fail(wire.CodeProtocol, "%s does not speak TLS 1.3", addr).
			WithHint("check the connect URL; a load balancer or firewall that ends TLS in between has to let TLS 1.3 pass untouched")
	case 120: // no_application_protocol
		return fail(wire.CodeProtocol, "%s speaks TLS, but no protocol of Postern", addr).
			WithHint("check that the connect URL names a Postern hub or relay")
	default:
		return fail(wire.CodeProtocol, "%s broke the TLS handshake off: %s", addr, err)
	}
}

func (d *Dialer) unknownAuthority(f *wire.Failure, chain []*x509.Certificate) error {
	if seen := presentedPin(chain); seen != "" {
		return f.WithHint("it presents the authority with pin %s: if that is the pin the hub prints at its start, pass it with --ca-pin, "+
			"or the hub's ca.crt with --ca-file; if not, something else answers in the hub's place", seen)
	}
	issuer := "unknown"
	if len(chain) > 0 {
		issuer = chain[len(chain)-1].Issuer.String()
	}
	return f.WithHint("the authority is %q: pass its certificate with --ca-file; "+
		"if it belongs to a firewall that inspects TLS, ask for an exception for this host", printable(issuer))
}

func pinOrUnknown(chain []*x509.Certificate) string {
	if p := presentedPin(chain); p != "" {
		return "the pin " + p
	}
	return "no authority at all"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// remoteAlert returns the TLS alert that the other side sent, or 0. crypto/tls
// has no exported type for it: it is a uint8 in a net.OpError.
func remoteAlert(err error) uint8 {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0
	}
	alert, _ := reflect.TypeAssert[uint8](v.Convert(reflect.TypeFor[uint8]()))
	return alert
}
