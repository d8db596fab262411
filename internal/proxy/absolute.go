package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/wire"
)

// ServeHTTP serves one request: one in absolute form, a CONNECT on a connection
// that had other requests before, or one to the proxy itself.
func (w *web) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	c := req.Context().Value(clientKey{}).(*client)
	if req.Method == http.MethodConnect {
		w.lateConnect(rw, req, c)
		return
	}
	if req.Method == http.MethodOptions && req.RequestURI == "*" {
		w.ping(rw, req, c)
		return
	}
	r, f := w.route(req)
	if f != nil {
		w.s.refused(c, r, f)
		respond(rw, f, r.target)
		return
	}
	fw := &forwarded{r: r, c: c}
	ctx := httptrace.WithClientTrace(context.WithValue(req.Context(), forwardKey{}, fw), fw.trace())
	w.forward.proxy.ServeHTTP(rw, req.WithContext(ctx))
}

// ping answers whether the credentials of a request are good, and opens nothing
// (RFC 9110 section 9.3.7).
func (w *web) ping(rw http.ResponseWriter, req *http.Request, c *client) {
	g, f := w.login(req)
	if f != nil {
		w.s.refused(c, route{id: g.id}, f)
		respond(rw, f, wire.Target{})
		return
	}
	rw.Header().Set("Proxy-Status", "postern")
	rw.WriteHeader(http.StatusNoContent)
}

func respond(rw http.ResponseWriter, f *wire.Failure, target wire.Target) {
	a := answerFor(f, target)
	header, body := a.fields(f)
	maps.Copy(rw.Header(), header)
	rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
	rw.WriteHeader(a.status)
	_, _ = io.WriteString(rw, body)
}

// route reads a request in absolute form (RFC 9112 section 3.2.2).
func (w *web) route(req *http.Request) (route, *wire.Failure) {
	switch {
	case !req.URL.IsAbs() || req.URL.Host == "":
		return route{}, badRequest("this is an HTTP proxy: it takes CONNECT, and requests for a whole URL").
			WithHint("configure this address as the proxy, for example curl --proxy http://%s URL", w.s.ln.Addr())
	case req.URL.Scheme != "http":
		return route{}, badRequest("the scheme %q is for CONNECT", wire.Clip(req.URL.Scheme, maxRepeated))
	case req.URL.User != nil:
		return route{}, badRequest("a URL must not carry a user name or password (RFC 9110 section 4.2.4)")
	}
	port := uint16(80)
	var f *wire.Failure
	if p := req.URL.Port(); p != "" {
		if port, f = parsePort(p); f != nil {
			return route{}, f
		}
	}
	g, f := w.login(req)
	if f != nil {
		return route{}, f
	}
	return w.s.find(g, req.URL.Hostname(), port)
}

func (w *web) login(req *http.Request) (grant, *wire.Failure) {
	var l Login
	switch values := req.Header.Values("Proxy-Authorization"); len(values) {
	case 0:
	case 1:
		var f *wire.Failure
		if l, f = parseLogin(values[0]); f != nil {
			return grant{}, f
		}
	default:
		return grant{}, badRequest("the Proxy-Authorization field stands twice")
	}
	return w.s.login(req.Context(), l)
}

// lateConnect serves a CONNECT that net/http has read.
func (w *web) lateConnect(rw http.ResponseWriter, req *http.Request, c *client) {
	host, port, f := parseAuthority(req.RequestURI)
	if f == nil && (req.ContentLength != 0 || len(req.TransferEncoding) > 0) {
		f = badRequest("a CONNECT request has no body")
	}
	var l Login
	if f == nil {
		if values := req.Header.Values("Proxy-Authorization"); len(values) > 1 {
			f = badRequest("the Proxy-Authorization field stands twice")
		} else if len(values) == 1 {
			l, f = parseLogin(values[0])
		}
	}
	if f != nil {
		w.s.refused(c, route{}, f)
		rw.Header().Set("Connection", "close")
		respond(rw, f, wire.Target{})
		return
	}
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		respond(rw, wire.AsFailure(err, wire.LegProxy), wire.Target{})
		return
	}
	defer conn.Close()
	early, _ := buffered.Reader.Peek(buffered.Reader.Buffered()) // no more than there is: no error
	early = append(append([]byte(nil), early...), conn.(*handed).early...)
	w.connect(c, connectRequest{host: host, port: port, login: l}, early)
}

// forwarder sends requests in absolute form on, over streams that it keeps
// open for the next request of the same identity to the same target.
type forwarder struct {
	s         *Server
	proxy     *httputil.ReverseProxy
	transport *http.Transport
}

type forwardKey struct{}

// forwarded is what goes with a request from the handler to the dialer.
type forwarded struct {
	r    route
	c    *client
	kept atomic.Pointer[kept] // the stream that serves it
}

// Limits of the pool of streams to targets.
const (
	maxIdleStreams     = 256
	maxIdlePerTarget   = 32
	maxResponseHeader  = 1 << 20 // bytes
	copyBufferSize     = 32 << 10
	expectContinueWait = time.Second
)

func newForwarder(s *Server) *forwarder {
	f := &forwarder{s: s}
	f.transport = &http.Transport{
		DialContext:            f.dial,
		DisableCompression:     true, // the body is none of our business
		MaxIdleConns:           maxIdleStreams,
		MaxIdleConnsPerHost:    maxIdlePerTarget,
		IdleConnTimeout:        s.cfg.IdleTimeout,
		ExpectContinueTimeout:  expectContinueWait,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		ModifyResponse: addVia,
		Transport:      f.transport,
		FlushInterval:  -1, // watches and event streams must not wait
		BufferPool:     copybuffer.New(copyBufferSize),
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler:   f.failed,
	}
	return f
}

func (f *forwarder) close() { f.transport.CloseIdleConnections() }

// rewrite makes the request to send from the one received. The reverse proxy
// has removed the fields that are for one connection only; a forward proxy
// leaves the others as they are.
func rewrite(pr *httputil.ProxyRequest) {
	fw := pr.Out.Context().Value(forwardKey{}).(*forwarded)
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := pr.In.Header[name]; ok {
			pr.Out.Header[name] = values
		}
	}
	pr.Out.Header.Add("Via", strings.TrimPrefix(pr.In.Proto, "HTTP/")+" postern")
	// The same map, since the trailers' values arrive only after the body.
	pr.Out.Trailer = pr.In.Trailer

	pr.Out.URL.RawQuery = pr.In.URL.RawQuery // byte for byte
	if pr.In.Method == http.MethodOptions && pr.In.URL.Path == "" {
		pr.Out.URL.Path = "*" // RFC 9112 section 3.2.4
	}
	if name := strings.TrimSuffix(strings.ToLower(pr.In.URL.Hostname()), "."); name != fw.r.target.Host && net.ParseIP(name) == nil {
		pr.Out.Host = fw.r.target.Host // the name by which the agent knows the target
		if fw.r.target.Port != 80 {
			pr.Out.Host = fw.r.target.Address()
		}
	}
	pr.Out.URL.Host = fw.r.poolKey()
}

// poolKey returns a host name that stands for the route in the transport's
// pool: streams of one identity or agent must not serve another, nor those that end
// with one token the holder of another. It is never resolved.
func (r route) poolKey() string {
	h := sha256.New()
	parts := append([]string{r.id.Organization, r.id.Principal.String(), r.id.Item, r.agent.Organization, r.agent.Agent, r.target.String()}, r.id.Groups...)
	if r.by != nil {
		parts = append(parts, string(r.by.line[:]))
	}
	for _, part := range parts {
		_, _ = io.WriteString(h, strconv.Itoa(len(part))+":"+part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + ".invalid"
}

func addVia(res *http.Response) error {
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Header.Add("Via", strings.TrimPrefix(res.Proto, "HTTP/")+" postern")
	}
	return nil
}

// dial opens a stream for the transport. Its address is a pool key: the route
// comes with the context.
func (f *forwarder) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	fw := ctx.Value(forwardKey{}).(*forwarded)
	start := time.Now()
	stream, failure := f.s.open(ctx, fw.c, fw.r, nil)
	if failure != nil {
		return nil, failure
	}
	k := &kept{Stream: stream, changed: make(chan struct{}, 1), closed: func(stats Stats) {
		f.s.ended(fw.c, fw.r, stats, time.Since(start), nil)
	}}
	k.forget = stream.OnLeave(k.leave)
	return k, nil
}

// failed answers a request that got no response from its target.
func (f *forwarder) failed(rw http.ResponseWriter, req *http.Request, err error) {
	fw := req.Context().Value(forwardKey{}).(*forwarded)
	if req.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone: nobody to tell
	}
	respond(rw, transportFailure(err, fw.r.target), fw.r.target)
}

// transportFailure names the leg of an error of http.Transport.
func transportFailure(err error, target wire.Target) *wire.Failure {
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		return f
	}
	ne, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, net.ErrClosed):
		return wire.Fail(wire.LegTarget, wire.CodeReset, "%s closed the connection without a response", target).WithCause(err)
	case isNet && ne.Timeout():
		return wire.Fail(wire.LegTarget, wire.CodeTimeout, "%s did not respond in time", target).WithCause(err)
	default:
		return wire.Fail(wire.LegTarget, wire.CodeProtocol, "%s did not answer as an HTTP server does: %v", target, err).WithCause(err)
	}
}
