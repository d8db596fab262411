package gateway

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// call is one request on its way.
type call struct {
	begin        time.Time
	in           *http.Request
	url          kubeurl.URL
	what         kubeurl.Request
	method       Method
	caller       Caller
	known        bool // caller has proved who it is
	organization string
	target       wire.Target        // that access grants are asked about
	portName     string             // of the service's port, if it was asked for by name
	upgrade      bool               // it asks to go on with another protocol
	as           assertion.Identity // that the caller wishes to be
	out          *url.URL           // that goes to the agent
	word         *assertion.Word    // the hub's, for the agent
	answer       *answer
	slow         *copybuffer.Answer // the cluster's, if it is a watch or the like
	finished     bool               // the answer did not break off

	ctx    context.Context // of the request; ends when it is cut
	cancel context.CancelCauseFunc
	leave  []func()
}

// long reports whether the request may last for hours.
func (c *call) long() bool { return c.what.Long() || c.upgrade }

// connects reports whether it is about bytes both ways, which nobody begins again.
func (c *call) connects() bool { return c.what.Connect() || c.upgrade }

// callKey is where a request's context holds its call.
type callKey struct{}

func callOf(r *http.Request) *call {
	c, _ := r.Context().Value(callKey{}).(*call)
	return c
}

// prepare works out what is to be sent.
func (c *call) prepare() error {
	bad := func(format string, args ...any) error {
		return wire.Fail(wire.LegClient, wire.CodeBadRequest, format, args...)
	}
	c.target = wire.Gateway()
	if s := c.url.Service; s != nil {
		var ok bool
		if c.target, ok = s.Target(); !ok {
			c.target, c.portName = wire.Target{}, s.Port // see lookUp
		}
	}
	if c.in.Method == http.MethodConnect {
		return bad("the gateway does not open tunnels; it is no HTTP proxy")
	}
	var err error
	if c.as, err = wish(c.in.Header); err != nil {
		return err
	}
	if c.caller.Pass && c.url.Service != nil {
		return bad("services of a cluster that tokens are passed to are not reached with its tokens")
	}
	if c.out = target(c.url.Rest); c.out == nil {
		return bad("the path cannot be sent on as it is")
	}
	return nil
}

// target returns a URL whose request line is rest, byte for byte; nil if there is none.
func target(rest string) *url.URL {
	path, query, asked := strings.Cut(rest, "?")
	u := &url.URL{Scheme: "http", Host: agentHost, RawQuery: query, ForceQuery: asked && query == ""}
	plain, err := url.PathUnescape(path)
	if err != nil {
		return nil
	}
	u.Path, u.RawPath = plain, path
	if u.EscapedPath() != path { // it has bytes that net/url escapes
		u.Path, u.RawPath, u.Opaque = "", "", path
	}
	if u.RequestURI() != rest {
		return nil
	}
	return u
}

// agentHost stands for the agent in URLs: connections belong to one cluster anyway.
const agentHost = "gateway"

// claims returns what the hub gives its word for.
func (c *call) claims() assertion.Claims {
	claims := assertion.Claims{
		Organization: c.organization, Agent: c.url.Cluster, Method: c.in.Method, URI: c.out.RequestURI(),
		Mode: assertion.ModeImpersonate, Principal: c.caller.Principal.String(), Groups: c.caller.Groups, Client: c.client(),
	}
	if c.caller.Pass {
		claims.Mode = assertion.ModePass
		return claims
	}
	claims.Impersonate, claims.As = tell(c.caller.Kubernetes, c.caller.Principal, c.client()), c.as
	if s := c.url.Service; s != nil {
		claims.Service = &assertion.Service{Scheme: s.Scheme, Namespace: s.Namespace, Name: s.Name, Port: s.Port}
	}
	return claims
}

// client returns the address that the request came from, without its port.
func (c *call) client() string {
	addr, err := netip.ParseAddrPort(c.in.RemoteAddr)
	if err != nil {
		return ""
	}
	return addr.Addr().Unmap().String()
}

// cutTime is what a client has to take the end of a request that was cut.
const cutTime = time.Second

// cut ends the request for a reason. It does not wait.
func (c *call) cut(f *wire.Failure) {
	c.cancel(f)
	c.answer.cut(time.Now().Add(cutTime))
}

// stillEvery is how often it is asked whether what a long request was let in on still
// holds, where nobody would tell.
const stillEvery = 20 * time.Second

// watch asks from time to time whether the caller is still who it was. Any request may
// turn out to last: a service may answer one for hours.
func (c *call) watch(still func(ctx context.Context) error) {
	if c.caller.Still == nil {
		return
	}
	ctx, end := context.WithCancel(c.ctx)
	ended := make(chan struct{})
	timer := time.AfterFunc(stillEvery, func() { // most requests have ended before
		defer close(ended)
		c.ask(ctx, still)
	})
	c.leave = append(c.leave, func() {
		end()
		if !timer.Stop() {
			<-ended
		}
	})
}

// ask asks now, and then from time to time until ctx ends or the request is cut.
func (c *call) ask(ctx context.Context, still func(ctx context.Context) error) {
	tick := time.NewTicker(stillEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		f := wire.AsFailure(still(ctx), wire.LegHub)
		if f != nil && (f.Code == wire.CodeUnauthenticated || f.Code == wire.CodeDenied) {
			c.cut(f)
			return
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// left tells all who wait for the end of the call, once.
func (c *call) left() {
	for _, f := range c.leave {
		f()
	}
	c.leave = nil
}

// recordBegins is what the record of a long request says when it begins.
const recordBegins = "begins"

// record returns what the audit log is to hold of the call. Never a body, and never a
// query, which may have a token.
func (c *call) record(reason string) audit.Record {
	r := audit.Record{
		Action: audit.Request, Organization: c.organization, Actor: c.caller.Principal, Source: c.client(), Agent: c.url.Cluster,
		What: c.what.Verb, Object: c.what.What(), User: c.caller.Kubernetes.User, Duration: time.Since(c.begin),
		BytesIn: c.answer.sent.Load(), BytesOut: c.answer.received.Load(), Status: uint64(max(c.answer.status, 0)), Reason: reason,
	}
	if object := c.what.Object(); c.what.Resourceful() && object != "" {
		r.Object += " " + object
	}
	if c.target.Kind != 0 {
		r.Target = c.target.String()
	}
	if c.url.Service != nil {
		r.Object = c.what.Path
	}
	if c.as.User != "" {
		r.User = c.as.User + " as wished by " + r.User
	}
	if !c.known {
		r.Organization, r.Agent = "", ""
		r.Object = "agent:" + c.url.Cluster
	} else if r.Organization == "" {
		r.Organization = c.caller.Organization
	}
	if reason == recordBegins {
		r.Duration, r.OK = 0, true
		return r
	}
	if len(c.caller.Dropped) > 0 {
		r.Reason = "not told of its reserved groups " + strings.Join(c.caller.Dropped, ", ")
	}
	r.OK = c.answer.status > 0 && c.answer.status < http.StatusBadRequest
	if !c.finished && c.in.Context().Err() == nil {
		r.Outcome(wire.Fail(wire.LegAgent, wire.CodeLost, "the answer broke off"), wire.LegAgent)
	}
	if f := c.answer.failure.Load(); f != nil {
		r.Outcome(f, wire.LegAgent)
	}
	if c.ctx != nil {
		if f, ok := context.Cause(c.ctx).(*wire.Failure); ok { //nolint:errorlint // it is the cause itself
			r.Outcome(f, wire.LegHub)
		}
	}
	return r
}

// answer is the way back to the client. It counts, and can be cut.
type answer struct {
	http.ResponseWriter
	status   int // of the answer itself; 0: none yet
	sent     atomic.Uint64
	received atomic.Uint64
	failure  atomic.Pointer[wire.Failure] // why the gateway answered by itself

	told bool // the gateway has said why it was cut

	mu       sync.Mutex
	hijacked net.Conn
	over     bool // it was cut
	finished bool // the connection is not this request's any more
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(b)
	a.sent.Add(uint64(n)) //nolint:gosec // not negative
	return n, err
}

// Unwrap lets http.ResponseController through.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// cut ends the client's connection at a time, which frees whoever waits for it. It sets
// deadlines only: to close the connection may take a while.
func (a *answer) cut(at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.finished {
		return
	}
	a.over = true
	if a.hijacked != nil {
		_ = a.hijacked.SetDeadline(time.Now())
		return
	}
	control := http.NewResponseController(a.ResponseWriter)
	_ = control.SetReadDeadline(at)
	_ = control.SetWriteDeadline(at)
}

// finish says that the connection is not this request's any more, and reports whether it
// has been cut, so that it is good for nothing else.
func (a *answer) finish() (cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.finished = true
	return a.over && a.hijacked == nil
}
