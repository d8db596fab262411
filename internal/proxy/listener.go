package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"postern.dev/postern/internal/wire"
)

// Pauses after a failed accept: a process without free file descriptors gets
// some back when connections end, and must not spin until then.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// Server is what the front ends have in common: it accepts connections on one
// listener, keeps to the limits, and drains.
type Server struct {
	front    Front
	ln       net.Listener
	cfg      FrontConfig
	log      *slog.Logger
	access   *Access
	required bool // clients must log in

	serve    func(*client)                 // owns the client; ends it
	refuse   func(net.Conn, *wire.Failure) // tells a client, in the protocol's words, and closes
	draining func(context.Context)         // nil, or called when a drain begins; returns when it is done
	ctx      context.Context               //nolint:containedctx // the life of the listener, not of a call
	stop     context.CancelFunc            // ends ctx: no more opening
	work     sync.WaitGroup                // goroutines that serve clients

	mu      sync.Mutex
	clients map[*client]struct{}
	pending map[netip.Addr]int // clients that have not yet said what they want, by source
	closing bool
	empty   chan struct{} // closed when closing and the last client is gone
}

// client is a connection of a client, from accept to close.
type client struct {
	net.Conn
	s    *Server
	addr netip.AddrPort

	waiting bool // guarded by s.mu: it has not yet said what it wants
	counted bool // guarded by s.mu: it counts in s.pending
}

func newServer(front Front, ln net.Listener, access *Access, cfg FrontConfig) (*Server, error) {
	if err := access.Listen(ln.Addr()); err != nil {
		return nil, err
	}
	return makeServer(front, ln, access, cfg), nil
}

func makeServer(front Front, ln net.Listener, access *Access, cfg FrontConfig) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		front:    front,
		ln:       ln,
		cfg:      cfg,
		log:      cfg.Log.With(slog.String("front", string(front)), slog.String("listen", ln.Addr().String())),
		access:   access,
		required: access.requires(ln.Addr()),
		clients:  make(map[*client]struct{}),
		pending:  make(map[netip.Addr]int),
		empty:    make(chan struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Addr returns the address that the front end listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Run serves until ctx ends, and then drains for at most the given time.
func (s *Server) Run(ctx context.Context, drain time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	select {
	case err := <-served:
		past, cancel := context.WithCancel(ctx)
		cancel()
		_ = s.Shutdown(past) // the error of Serve is the one that tells
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := s.Shutdown(limit)
	return errors.Join(<-served, err)
}

// Serve accepts connections until Shutdown, and then returns nil at once. Call
// it once.
func (s *Server) Serve() error {
	pause := acceptPauseMin
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			switch {
			case s.isClosing():
				return nil
			case !transientAccept(err):
				return fmt.Errorf("accept on %s: %w", s.ln.Addr(), err)
			}
			s.log.Warn("accept failed, trying again", slog.Any("error", err), slog.Duration("pause", pause))
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPauseMin
		s.accepted(conn)
	}
}

// transientAccept reports whether accept may work again soon.
func transientAccept(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
		syscall.ECONNRESET, syscall.EINTR, syscall.EPROTO, syscall.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) accepted(conn net.Conn) {
	s.cfg.Observer.Accepted(s.front)
	c := &client{Conn: conn, s: s, addr: clientAddr(conn)}
	if f := s.admit(c); f != nil {
		s.log.Warn("connection refused", slog.String("client", c.addr.String()), slog.String("reason", f.Text))
		s.cfg.Observer.Refused(Event{Front: s.front, Client: c.addr, Failure: f})
		s.refuse(conn, f)
		return
	}
	go func() {
		defer s.work.Done()
		_ = growStack(len(s.front))
		s.serve(c)
	}()
}

// stackRoom is less than the stack that serving a client grows to, and more than half
// of it.
const stackRoom = 12 << 10

// growStack makes the stack of its caller grow to what it needs at once, while there
// is next to nothing on it. Otherwise it grows three times in the depth of a read or
// write, and each time all of it is copied and adjusted: 6 % of what a hub does for
// a stream that is opened and closed.
//
//go:noinline
func growStack(i int) byte {
	var room [stackRoom]byte
	return room[i%len(room)]
}

// admit counts a client in, unless a limit was reached.
func (s *Server) admit(c *client) *wire.Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return wire.Fail(wire.LegProxy, wire.CodeDraining, "the proxy is shutting down")
	case len(s.clients) >= s.cfg.MaxConns:
		return wire.Fail(wire.LegProxy, wire.CodeOverloaded, "the proxy has %d connections, its limit", len(s.clients))
	}
	source := c.addr.Addr()
	if !source.IsLoopback() && source.IsValid() {
		if s.pending[source] >= s.cfg.MaxPending {
			return wire.Fail(wire.LegProxy, wire.CodeOverloaded, "%s has %d connections open that have not sent a request", source, s.pending[source])
		}
		s.pending[source]++
		c.counted = true
	}
	c.waiting = true
	s.clients[c] = struct{}{}
	s.work.Add(1)
	return nil
}

// said records that the client has said what it wants: it no longer counts as
// pending, and a drain waits for it. It reports false if the drain came first.
func (c *client) said() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.settle()
	return !c.s.closing
}

// settle needs s.mu.
func (c *client) settle() {
	c.waiting = false
	if c.counted {
		c.counted = false
		source := c.addr.Addr()
		if c.s.pending[source]--; c.s.pending[source] <= 0 {
			delete(c.s.pending, source)
		}
	}
}

// Close closes the connection and counts the client out. It may be called more
// than once.
func (c *client) Close() error {
	err := c.Conn.Close()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if _, ok := c.s.clients[c]; ok {
		c.settle()
		delete(c.s.clients, c)
		if c.s.closing && len(c.s.clients) == 0 {
			close(c.s.empty)
		}
	}
	return err
}

// abort closes the connection so that the client sees a reset: an end would
// look to it as if nothing were missing.
func (c *client) abort() {
	reset(c.Conn)
	_ = c.Close()
}

// reset makes the closing of conn a reset.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Shutdown stops accepting, waits for the clients' streams to end until ctx
// does, and then resets those that are left. When it returns, nothing of the
// server runs any more. The error is ctx's if streams had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	var waiting []*client
	for c := range s.clients {
		if c.waiting {
			waiting = append(waiting, c)
		}
	}
	if first && len(s.clients) == 0 {
		close(s.empty)
	}
	s.mu.Unlock()

	_ = s.ln.Close()
	for _, c := range waiting {
		_ = c.Conn.Close() // its goroutine counts it out
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if s.draining != nil {
			s.draining(ctx)
		}
	}()
	var err error
	select {
	case <-s.empty:
	case <-ctx.Done():
		err = s.cut(ctx)
	}
	s.stop()
	<-drained
	<-s.empty
	s.work.Wait()
	return err
}

// cut resets the clients that are left. Only then it ends s.ctx, so that nobody
// who waits for it can close a connection in a gentler way.
func (s *Server) cut(ctx context.Context) error {
	defer s.stop()
	s.mu.Lock()
	left := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		left = append(left, c)
	}
	s.mu.Unlock()
	if len(left) == 0 {
		return nil
	}
	for _, c := range left {
		reset(c.Conn)
		_ = c.Conn.Close()
	}
	s.log.Warn("streams cut at the end of the drain", slog.Int("streams", len(left)))
	return fmt.Errorf("drain %s: %d connections were cut: %w", s.ln.Addr(), len(left), context.Cause(ctx))
}
