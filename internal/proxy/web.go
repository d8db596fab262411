package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// web serves everything but the CONNECT that opens a connection.
type web struct {
	s       *Server
	server  *http.Server
	queue   *queue
	done    chan struct{} // closed when server has returned
	connect func(*client, connectRequest, []byte)
	forward *forwarder
}

func newWeb(s *Server, connect func(*client, connectRequest, []byte)) *web {
	w := &web{s: s, queue: newQueue(s.ln.Addr()), done: make(chan struct{}), connect: connect, forward: newForwarder(s)}
	w.server = &http.Server{
		Handler:           w,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, clientKey{}, conn.(*handed).client)
		},
		DisableGeneralOptionsHandler: true, // see ping
	}
	go func() {
		defer close(w.done)
		_ = w.server.Serve(w.queue) // ends with the queue
	}()
	return w
}

type clientKey struct{}

// hand gives a connection, of which early was read already, to net/http.
func (w *web) hand(c *client, early []byte) {
	_ = c.SetReadDeadline(time.Time{})
	if !w.queue.put(&handed{client: c, early: early}) {
		_ = c.Close()
	}
}

// drain ends idle connections and waits for requests under way until ctx ends.
func (w *web) drain(ctx context.Context) {
	if w.server.Shutdown(ctx) != nil {
		<-w.s.ctx.Done() // by then, what is left was reset
		_ = w.server.Close()
	}
	_ = w.queue.Close()
	<-w.done
	w.forward.close()
}

// handed is a client's connection in the hands of net/http.
type handed struct {
	*client
	early []byte // only the server's one reader touches it
}

func (h *handed) Read(b []byte) (int, error) {
	if len(h.early) > 0 {
		n := copy(b, h.early)
		if h.early = h.early[n:]; len(h.early) == 0 {
			h.early = nil
		}
		return n, nil
	}
	return h.client.Read(b)
}

// CloseWrite lets net/http end a response before it closes the connection.
func (h *handed) CloseWrite() error {
	if half, ok := h.client.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// queue is a listener whose connections were accepted by somebody else.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// put waits until the connection is accepted; false means never.
func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
