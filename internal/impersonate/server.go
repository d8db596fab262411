package impersonate

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// Limits of the server. Its client is the hub, which has limits of its own.
const (
	maxRequests = 8192 // at once
	maxOfOne    = 2048 // of one principal
	maxHeader   = assertion.MaxLen + 96<<10
	headerTime  = 20 * time.Second // for a request's header
	idleTime    = 5 * time.Minute  // the hub gives up first
)

// Judge decides who may have what through the agent.
type Judge interface {
	// Admit takes a request in, or says why not with a *wire.Failure. leave is to be
	// called at its end.
	Admit(ctx context.Context, v Visit) (leave func(), err error)

	// Dial reaches a target for somebody, if he may. The connection breaks when he
	// no longer may.
	Dial(ctx context.Context, who policy.Asker, t wire.Target) (net.Conn, error)
}

// Visit is a request as a Judge sees it.
type Visit struct {
	Who    policy.Asker
	Target wire.Target // the gateway itself for the API server, or a service

	// Own tells that the hub asks for itself: access grants are not for it.
	Own bool

	// Cut is called, at most once, when the request is no longer allowed. It does not
	// wait.
	Cut func(*wire.Failure)
}

// Config is what a Server needs.
type Config struct {
	API      API
	Verifier *assertion.Verifier
	Judge    Judge
	Log      *slog.Logger
	Metrics  *observe.Requests // may be nil
}

// Server answers the hub's requests. Make one with New, and call Run.
type Server struct {
	cfg    Config
	api    *cluster
	wishes *wishes
	short  *httputil.ReverseProxy
	long   *httputil.ReverseProxy // for watches and the like
	slow   *copybuffer.Pool       // for their answers
	http   *http.Server
	conns  *listener

	draining atomic.Bool
	handling sync.WaitGroup
	refused  atomic.Int64 // when the log told of a hub's word that was not believed

	mu    sync.Mutex
	users map[string]int // requests under way, by principal
	all   int
}

// New reads the files that the settings name and returns a server. Errors are for the
// agent's owner.
func New(cfg Config) (*Server, error) {
	api, err := newCluster(cfg.API, cfg.Judge, cfg.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, api: api, wishes: newWishes(api), users: make(map[string]int), conns: newListener(), slow: copybuffer.New(longBuffer)}
	s.short, s.long = s.carrier(shortBuffer, shortFlush), s.carrier(longBuffer, longFlush)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler: s, DisableGeneralOptionsHandler: true, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, Protocols: protocols,
		ConnContext: withBond, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Run serves until ctx ends, then cuts what is left. Let requests end before with
// Drain.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.http.Serve(s.conns) })
	wg.Go(func() { s.api.follow(ctx) })
	<-ctx.Done()
	_ = s.conns.Close()
	_ = s.http.Close()
	wg.Wait()
	s.handling.Wait()
	s.api.close()
	return nil
}

// Take answers what comes over a connection until it ends, by either side. The server
// closes it, and then calls ended, which must not wait; when Run has ended, it does so at
// once. Take returns before.
func (s *Server) Take(conn net.Conn, ended func()) {
	c := &handed{Conn: conn, ended: ended}
	select {
	case s.conns.conns <- c:
	case <-s.conns.closed:
		_ = c.Close()
	}
}

// Drain makes every answer the last on its connection.
func (s *Server) Drain() { s.draining.Store(true) }

// CloseIdle closes the connections on which no request is under way, after Drain.
func (s *Server) CloseIdle() { s.http.SetKeepAlivesEnabled(false) }

// enter counts a request of somebody in.
func (s *Server) enter(principal string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.all >= maxRequests:
		return nil, wire.Fail(wire.LegAgent, wire.CodeOverloaded, "the agent serves %d requests, and no more at once", s.all)
	case s.users[principal] >= maxOfOne:
		return nil, wire.Fail(wire.LegAgent, wire.CodeOverloaded, "the agent serves %d requests of %s, and no more at once", maxOfOne, principal)
	}
	s.all++
	s.users[principal]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.users[principal]--; s.users[principal] == 0 {
			delete(s.users, principal)
		}
	}, nil
}

// listener hands out connections that were made elsewhere.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (*listener) Addr() net.Addr { return handedAddr{} }

type handedAddr struct{}

func (handedAddr) Network() string { return "postern" }
func (handedAddr) String() string  { return "gateway" }

// handed is a connection whose end somebody wants to know of.
type handed struct {
	net.Conn
	ended func()
	once  sync.Once
}

// Close implements net.Conn.
func (c *handed) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.ended)
	return err
}

// bondKey is where the context of a connection holds its bond.
type bondKey struct{}

// withBond returns the context of a connection.
func withBond(ctx context.Context, conn net.Conn) context.Context {
	c, ok := conn.(*handed)
	if !ok {
		return ctx
	}
	if over, ok := c.Conn.(assertion.Bonded); ok {
		return context.WithValue(ctx, bondKey{}, over.Bond())
	}
	return ctx
}

// CloseWrite ends the writing direction, if the connection can.
func (c *handed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

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

// carrier returns what carries requests.
func (s *Server) carrier(size int, flush time.Duration) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: s.rewrite, Transport: s.api, FlushInterval: flush, BufferPool: copybuffer.New(size), ModifyResponse: modify,
		ErrorHandler: s.failed, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
}
