package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubestatus"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

// Hub is what the gateway asks of the hub that it is a part of. It is safe for
// concurrent use. Errors are *wire.Failure.
type Hub interface {
	// Find returns the organization in which a caller means the cluster of a URL,
	// where there is one and the caller may know of it.
	Find(ctx context.Context, c Caller, u kubeurl.URL) (organization string, err error)

	// Enter lets a caller in, or says why not. From then on until leave, Entry.Cut
	// is called when the caller may no longer be there.
	Enter(ctx context.Context, e Entry) (leave func(), err error)

	// Dial opens a connection to the agent's end of the gateway. leaving, if not
	// nil, has its argument called when the other end is about to go.
	Dial(ctx context.Context, organization, cluster string) (conn net.Conn, leaving func(f func()), err error)
}

// Entry is a request that wants to be let in.
type Entry struct {
	Caller       Caller
	Organization string
	Cluster      string
	Target       wire.Target

	// Cut ends the request. It does not wait, and may be called at any time, also
	// before Hub.Enter has returned.
	Cut func(*wire.Failure)
}

// Config is what a Gateway works with. All fields are needed unless it is said
// otherwise.
type Config struct {
	Hub            Hub
	Authenticators []Authenticator // asked in this order
	Signer         *assertion.Signer
	Self           identity.Principal // as whom the hub asks clusters for itself
	Limits         Limits

	// Failed notes that somebody failed to prove who he is, and returns how long
	// he has to wait if that was once too often. Nil: nothing is noted.
	Failed func(r *http.Request) time.Duration

	Audit   audit.Recorder   // of requests; nil: nothing is recorded
	Flood   audit.Recorder   // of refusals, of which there may be many; nil: nothing is recorded
	Metrics *observe.Gateway // nil: nothing is counted
	Log     *slog.Logger
}

// Gateway is an http.Handler for the paths of clusters. Make one with New, and Close it
// when no requests come any more.
type Gateway struct {
	c        Config
	clusters *clusters
	ports    *ports
	inflight *inflight
	short    *httputil.ReverseProxy
	long     *httputil.ReverseProxy
	buffers  *copybuffer.Pool // for answers that are slow

	mu      sync.Mutex
	calls   map[*call]struct{}
	closing bool
	empty   chan struct{} // closed by the last call that ends after closing
}

// New returns a gateway.
func New(c Config) *Gateway {
	if c.Audit == nil {
		c.Audit = audit.Discard{}
	}
	if c.Flood == nil {
		c.Flood = audit.Discard{}
	}
	g := &Gateway{
		c: c, clusters: newClusters(c.Hub.Dial, c.Metrics), inflight: newInflight(c.Limits), calls: make(map[*call]struct{}), empty: make(chan struct{}),
		buffers: copybuffer.New(longBuffer),
	}
	g.ports = newPorts(g.Ask)
	g.short, g.long = g.proxy(shortBuffer, shortFlush), g.proxy(longBuffer, longFlush)
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	growStack()
	// An answer may begin before the request's body has ended. Without this, HTTP/1.1
	// would throw away what is left of the body then.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 does so anyway
	c, err := g.admit(w, r)
	if err != nil {
		g.refuse(w, r, c, err)
		return
	}
	defer g.end(c)
	g.carry(c, r.WithContext(c.ctx))
	if c.slow != nil && c.slow.Follow(c.answer, g.buffers) != nil {
		panic(http.ErrAbortHandler) // so that the client sees it
	}
	c.finished = true // it panics where an answer breaks off
	if c.answer.finish() && !c.answer.told {
		panic(http.ErrAbortHandler) // the connection has a deadline
	}
}

// carry sends a request on, and its answer back, but for the body of one that is slow.
func (g *Gateway) carry(c *call, r *http.Request) {
	proxy := g.short
	if c.long() {
		proxy = g.long
	}
	proxy.ServeHTTP(c.answer, r)
}

// admit decides on a request. The call that it returns holds what is known, also with
// an error; without one it has to be ended.
func (g *Gateway) admit(w http.ResponseWriter, r *http.Request) (*call, error) {
	c := &call{begin: time.Now(), method: MethodNone, in: r, answer: &answer{ResponseWriter: w}}
	var err error
	if c.url, err = kubeurl.Parse(r.RequestURI); err != nil {
		return c, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s", err).WithCause(err).
			WithHint("a cluster's API server is https://HUB/CLUSTER/PATH")
	}
	c.what, c.upgrade = kubeurl.Describe(r.Method, c.url.Rest), r.Header.Get("Upgrade") != ""
	if c.url.Service != nil { // what its paths mean, nobody here knows
		c.what = kubeurl.Request{Verb: strings.ToLower(r.Method), Path: c.what.Path}
	}
	c.caller, c.method, err = g.authenticate(r, c.url)
	c.known = c.caller.Principal != identity.Principal{}
	if err != nil {
		return c, err
	}
	if c.organization, err = g.c.Hub.Find(r.Context(), c.caller, c.url); err != nil {
		return c, err
	}
	if err := c.prepare(); err != nil {
		return c, err
	}
	if err := g.inflight.enter(c); err != nil {
		return c, err
	}
	if err := g.let(c); err != nil {
		g.inflight.leave(c)
		return c, err
	}
	return c, nil
}

// let has the hub let a call in, and gives the hub's word for it.
func (g *Gateway) let(c *call) (err error) {
	ctx, cancel := context.WithCancelCause(context.WithValue(c.in.Context(), callKey{}, c))
	c.ctx, c.cancel = ctx, cancel
	if !c.caller.Expires.IsZero() {
		expired := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the credential of %s has expired", c.caller.Principal)
		timer := time.AfterFunc(time.Until(c.caller.Expires), func() { c.cut(expired) })
		c.leave = append(c.leave, func() { timer.Stop() })
	}
	defer func() {
		if err != nil {
			c.answer.finish()
			c.left()
			cancel(err)
		}
	}()
	if err := c.lookUp(g.ports); err != nil {
		return err
	}
	leave, err := g.c.Hub.Enter(ctx, Entry{Caller: c.caller, Organization: c.organization, Cluster: c.url.Cluster, Target: c.target, Cut: c.cut})
	if err != nil {
		return c.notExposed(err)
	}
	c.leave = append(c.leave, leave)
	c.watch(func(ctx context.Context) error {
		if err := c.caller.Still(ctx); err != nil {
			return err
		}
		_, err := g.c.Hub.Find(ctx, c.caller, c.url)
		return err
	})
	if c.word, err = g.c.Signer.Prepare(c.claims()); err != nil {
		if errors.Is(err, assertion.ErrTooLong) {
			return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s and its groups are too long for the gateway", c.caller.Principal).WithCause(err)
		}
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "the request cannot be vouched for: %s", err).WithCause(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		return wire.Fail(wire.LegHub, wire.CodeDraining, "the hub is shutting down").WithHint("try again")
	}
	g.calls[c] = struct{}{}
	g.c.Metrics.Began(c.long())
	if c.long() {
		g.c.Audit.Record(c.record(recordBegins))
	}
	return nil
}

// end ends a call that was admitted.
func (g *Gateway) end(c *call) {
	c.answer.finish()
	c.left()
	c.cancel(nil)
	g.inflight.leave(c)
	g.c.Metrics.Ended(c.long())
	g.c.Metrics.Request(string(c.method), c.what.Verb, c.answer.status, c.long(), time.Since(c.begin), c.answer.sent.Load(), c.answer.received.Load())
	g.c.Audit.Record(c.record(""))
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.calls, c)
	if g.closing && len(g.calls) == 0 {
		close(g.empty)
	}
}

// lingering bounds how long a client that was refused may take to send a body that
// nobody reads.
const lingering = time.Second

// refuse answers for a request that was not let in.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, c *call, err error) {
	f := wire.AsFailure(err, wire.LegHub)
	status := statusOf(f)
	if f.Code == wire.CodeUnauthenticated {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
		if g.c.Failed != nil {
			if wait := g.c.Failed(r); wait > 0 {
				status = kubestatus.Status{
					Code: http.StatusTooManyRequests, RetryAfter: wait,
					Message: "hub: too many failed attempts from your address; the last one failed because " + f.Text,
				}
			}
		}
		g.c.Log.Warn("credential refused", "method", string(c.method), "source", r.RemoteAddr, "reason", f.Text)
	}
	if f.Code == wire.CodeInternal {
		g.c.Log.Error("request failed", "path", wire.Clip(c.what.Path, 100), "organization", c.organization, "cluster", c.url.Cluster, "error", err)
	}
	if r.ContentLength != 0 && r.ProtoMajor == 1 { // HTTP/2 ends the one request only
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingering))
		w.Header().Set("Connection", "close")
	}
	status.Answer(w, r)
	c.answer.status = status.Code
	g.c.Metrics.Request(string(c.method), c.what.Verb, status.Code, c.long(), time.Since(c.begin), 0, 0)
	one := c.record("")
	one.Outcome(f, wire.LegHub)
	if !c.known {
		one.Action = audit.SignIn
	}
	g.c.Flood.Record(one)
}

// awayTime is when a client may try again whose cluster is not connected.
const awayTime = 5 * time.Second

// statusOf returns how a failure is told to a client of Kubernetes.
func statusOf(f *wire.Failure) kubestatus.Status {
	s := kubestatus.Of(f)
	if s.Code == http.StatusServiceUnavailable && s.RetryAfter == 0 {
		s.RetryAfter = awayTime
	}
	return s
}

// Close ends the gateway: new requests are refused, and those that run may go on
// until ctx ends, but for watches and the like, which their clients begin again.
// Then the connections to all agents are closed.
func (g *Gateway) Close(ctx context.Context) {
	gone := wire.Fail(wire.LegHub, wire.CodeDraining, "the hub is shutting down").WithHint("try again")
	g.mu.Lock()
	g.closing = true
	if len(g.calls) == 0 {
		close(g.empty)
	}
	for c := range g.calls {
		if c.long() && !c.connects() {
			c.cut(gone)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.empty:
	case <-ctx.Done():
		g.mu.Lock()
		for c := range g.calls {
			c.cut(gone)
		}
		g.mu.Unlock()
		<-g.empty
	}
	g.clusters.close()
}
