package webconn

import (
	"net"
	"sync"
)

// gatherer is the connection under a WebSocket client. The library masks a message
// in pieces of 4 KiB and writes each by itself, a TLS record and a system call
// apiece; the gatherer makes one write of a message.
type gatherer struct {
	net.Conn

	mu        sync.Mutex
	gathering bool
	out       []byte
}

// begin holds writes back until end.
func (g *gatherer) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gathering = true
}

// end writes what was held back.
func (g *gatherer) end() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gathering = false
	return g.flush()
}

// Write implements net.Conn. Pings and their answers come between the pieces of
// messages, and go with them.
func (g *gatherer) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gathering {
		return g.Conn.Write(b)
	}
	g.out = append(g.out, b...)
	if len(g.out) >= largeBuffer {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// flush is called with mu held.
func (g *gatherer) flush() error {
	if len(g.out) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.out)
	g.out = g.out[:0]
	return err
}
