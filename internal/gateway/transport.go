package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/exchange"
	"postern.dev/postern/internal/kubeauth"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

// Bounds of what is kept for a cluster.
const (
	maxIdle       = 128              // connections that wait for the next request: fifty kubectl at once find theirs again
	idleTime      = 60 * time.Second // how long: less than the agent, which would close one that is about to be used
	continueTime  = 10 * time.Second // that a body waits for its 100 (Continue)
	maxFields     = 512 << 10        // bytes of an answer's header
	readBuffer    = 1 << 10          // bytes of each connection; larger reads pass it by
	forgetCluster = 10 * time.Minute // after which one that nobody asks for is forgotten
	lookClusters  = time.Minute
)

// Sizes of the buffers that answers are copied with, and how long bytes of an answer
// wait for more of it. Most watches are silent, and there may be thousands; what they
// bring is sent at once, as are answers whose length is not known. Of the others most
// are small: their end travels along.
const (
	shortBuffer = 32 << 10
	shortFlush  = 5 * time.Millisecond
	longBuffer  = 8 << 10
	longFlush   = -1
)

type dialFunc func(ctx context.Context, organization, cluster string) (net.Conn, func(func()), error)

// clusters are the ways to the clusters, each with its own connections: what goes to
// one never goes through another's. It is an http.RoundTripper for calls.
type clusters struct {
	dial    dialFunc
	metrics *observe.Gateway

	mu     sync.Mutex
	all    map[clusterKey]*cluster
	looked time.Time
}

type clusterKey struct{ organization, agent string }

type cluster struct {
	*exchange.Client
	used  time.Time
	users int
}

func newClusters(dial dialFunc, metrics *observe.Gateway) *clusters {
	return &clusters{dial: dial, metrics: metrics, all: make(map[clusterKey]*cluster), looked: time.Now()}
}

// take returns the way to a cluster; give must follow.
func (s *clusters) take(key clusterKey) *cluster {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.looked) > lookClusters {
		s.looked = now
		for k, c := range s.all {
			if c.users == 0 && now.Sub(c.used) > forgetCluster {
				c.Close()
				delete(s.all, k)
			}
		}
	}
	c := s.all[key]
	if c == nil {
		c = &cluster{Client: s.client(key)}
		s.all[key] = c
	}
	c.users++
	return c
}

func (s *clusters) give(c *cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.users--
	c.used = time.Now()
}

// client returns what sends requests to one cluster. A connection of it is a stream.
func (s *clusters) client(key clusterKey) *exchange.Client {
	return exchange.New(exchange.Config{
		Dial: func(ctx context.Context) (net.Conn, func(func()), error) {
			conn, leaving, err := s.dial(ctx, key.organization, key.agent)
			s.metrics.Dialed(err)
			if over, ok := conn.(assertion.Bonded); ok && err == nil {
				conn = &link{conn, over.Bond()}
			}
			return conn, leaving, err
		},
		MaxIdle: maxIdle, IdleTime: idleTime, ContinueTime: continueTime, MaxHeader: maxFields, ReadBuffer: readBuffer,
	})
}

// RoundTrip implements http.RoundTripper.
func (s *clusters) RoundTrip(r *http.Request) (*http.Response, error) {
	c := callOf(r)
	return s.send(clusterKey{c.organization, c.url.Cluster}, r, c.word)
}

// send sends a request to a cluster with the hub's word for it, which depends on the
// connection that it gets.
func (s *clusters) send(key clusterKey, r *http.Request, word *assertion.Word) (*http.Response, error) {
	way := s.take(key)
	defer s.give(way)
	var bond *assertion.Bond // of the last connection that was tried
	answer, err := way.Send(r, func(conn net.Conn) {
		bond = nil
		if l, ok := conn.(*link); ok {
			bond = l.bond
		}
		text, err := word.Over(bond)
		if err != nil {
			r.Header.Del(assertion.Header) // the agent refuses
			return
		}
		r.Header[assertion.Header] = []string{text}
	})
	if err == nil {
		bond.Heard(answer.Header[assertion.HeaderBond])
	}
	return answer, err
}

// link is a connection to an agent, with what was agreed over it.
type link struct {
	net.Conn
	bond *assertion.Bond
}

// CloseWrite ends the writing direction, if the connection can.
func (l *link) CloseWrite() error { return closeWrite(l.Conn) }

// Quiet implements exchange.Quieter.
func (l *link) Quiet(left time.Duration) bool {
	q, ok := l.Conn.(exchange.Quieter)
	return !ok || q.Quiet(left)
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// close closes all connections that no request uses.
func (s *clusters) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, c := range s.all {
		c.Close()
		delete(s.all, key)
	}
}

// proxy returns what carries requests.
func (g *Gateway) proxy(size int, flush time.Duration) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     g.clusters,
		FlushInterval: flush,
		BufferPool:    copybuffer.New(size),
		ErrorLog:      slog.NewLogLogger(g.c.Log.Handler(), slog.LevelDebug),
		ErrorHandler:  g.failed,
		ModifyResponse: func(r *http.Response) error {
			tame(r.Header)
			if c := callOf(r.Request); c.long() && r.StatusCode != http.StatusSwitchingProtocols && r.Request.Body == nil {
				c.slow = copybuffer.Take(r, c.in.Header)
			}
			return nil
		},
	}
}

// rewrite makes of the client's request the one that the agent gets.
func rewrite(p *httputil.ProxyRequest) {
	c := callOf(p.In)
	p.Out.URL, p.Out.Host, p.Out.Trailer = c.out, p.In.Host, p.In.Trailer
	kubeauth.Strip(p.Out.Header, c.caller.Pass) // cookies belong to the hub's own pages
	if c.caller.Pass {
		keepWish(p.Out.Header, p.In.Header)
	}
	if p.Out.Body != nil {
		p.Out.Body = &counted{p.Out.Body, c.answer}
	}
}

// counted counts a body's bytes.
type counted struct {
	io.ReadCloser
	answer *answer
}

// Read implements io.Reader.
func (b *counted) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.answer.received.Add(uint64(n)) //nolint:gosec // not negative
	return n, err
}

// failed answers for a request that got no answer from the agent.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	c := callOf(r)
	if cut, ok := context.Cause(c.ctx).(*wire.Failure); ok { //nolint:errorlint // it is the cause itself
		w.Header().Set("Connection", "close") // it has a deadline
		statusOf(cut).Answer(w, r)
		c.answer.told = true
		return
	}
	f, ok := errors.AsType[*wire.Failure](err)
	switch {
	case ok:
	case r.Context().Err() != nil: // the client has gone, and needs no answer
		f = wire.Fail(wire.LegClient, wire.CodeCanceled, "the client gave up").WithCause(err)
	default:
		f = wire.Fail(wire.LegAgent, wire.CodeLost, "the connection to the agent broke: %s", err).WithCause(err).WithHint("try again")
	}
	c.answer.failure.Store(f)
	g.c.Log.Debug("request not answered", "organization", c.organization, "cluster", c.url.Cluster, "by", c.caller.Principal.String(), "error", err)
	statusOf(f).Answer(w, r)
}

// Hijack implements http.Hijacker: the connection goes on with another protocol.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hijacked = conn; a.over {
		_ = conn.SetDeadline(time.Now())
	}
	a.status = http.StatusSwitchingProtocols
	return &countedConn{conn, a}, rw, nil
}

// countedConn counts the bytes of a connection that goes on with another protocol.
type countedConn struct {
	net.Conn
	answer *answer
}

// Read implements net.Conn.
func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.answer.received.Add(uint64(n)) //nolint:gosec // not negative
	return n, err
}

// Write implements net.Conn.
func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.answer.sent.Add(uint64(n)) //nolint:gosec // not negative
	return n, err
}

// CloseWrite lets the other side know that nothing more comes.
func (c *countedConn) CloseWrite() error { return closeWrite(c.Conn) }
