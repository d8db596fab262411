package relay

import (
	"context"
	"net"
	"sync"
)

// handover is the net.Listener through which connections that ask for HTTP reach
// the hub's http.Server.
type handover struct {
	ch    chan net.Conn
	ended chan struct{}
	once  sync.Once

	mu   sync.Mutex
	addr net.Addr
}

func newHandover() *handover {
	return &handover{ch: make(chan net.Conn), ended: make(chan struct{})}
}

// give hands a connection over, or reports that nobody takes it any more. done
// is called when it is taken: the HTTP server's own limits hold from then on.
func (h *handover) give(ctx context.Context, c net.Conn, done func()) bool {
	select {
	case h.ch <- c:
		done()
		return true
	case <-h.ended:
	case <-ctx.Done():
	}
	return false
}

// Accept waits for the next connection, as net.Listener wants it.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.ended) })
	return nil
}

func (h *handover) setAddr(a net.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addr = a
}

// Addr returns the address of the one port.
func (h *handover) Addr() net.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.addr == nil {
		return &net.TCPAddr{}
	}
	return h.addr
}
