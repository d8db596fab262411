package hub

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Bounds of the connections to the hub's HTTPS. Whoever completes a TLS handshake
// without a certificate has one, so they are a stranger's to use up.
const (
	maxWeb          = 4096 // in all
	maxWebPerSource = 512  // of one IPv4 address or IPv6 /64, which may be a load balancer's
)

// webGate is the listener of the hub's HTTPS: it bounds the connections, in all and
// by source. Where a bound is reached, the connection that has been idle for
// longest makes room; if none is, the new one is closed. Idle is also one whose first
// request has not come whole: however many dawdle, they make room for each other and
// for whoever does not. A WebSocket is no longer counted once it is one: the relay's own
// bounds hold for what is inside.
//
// Its changed method has to be the ConnState of the server. Safe for concurrent use.
type webGate struct {
	net.Listener
	total, perSource int

	mu      sync.Mutex
	open    map[net.Conn]*webConn
	sources map[netip.Prefix]*webSource
	idle    *list.List // of *webConn, the one that is idle for longest in front
}

type webSource struct {
	open int
	idle *list.List // as in webGate
}

type webConn struct {
	net.Conn
	source       netip.Prefix
	all, sibling *list.Element // in the lists of idle ones; nil while it is busy
}

func newWebGate(l net.Listener, total, perSource int) *webGate {
	return &webGate{
		Listener: l, total: total, perSource: perSource,
		open: make(map[net.Conn]*webConn), sources: make(map[netip.Prefix]*webSource), idle: list.New(),
	}
}

// Accept waits for a connection that is within the bounds.
func (g *webGate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		out, ok := g.enter(c)
		if out != nil {
			_ = out.Close()
		}
		if ok {
			return c, nil
		}
		_ = c.Close()
	}
}

// enter counts a connection in, or reports that there is no room for it. out, if
// not nil, is another one that has to make room.
func (g *webGate) enter(c net.Conn) (out net.Conn, ok bool) {
	source := netip.Prefix{}
	if tcp, isTCP := c.RemoteAddr().(*net.TCPAddr); isTCP {
		source = sourcePrefix(tcp.AddrPort().Addr())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[source]
	var longest *list.Element
	switch {
	case s != nil && s.open >= g.perSource:
		longest = s.idle.Front()
	case len(g.open) >= g.total:
		longest = g.idle.Front()
	default:
		g.add(c, source)
		return nil, true
	}
	if longest == nil {
		return nil, false
	}
	old := longest.Value.(*webConn)
	g.remove(old)
	g.add(c, source)
	return old.Conn, true
}

// changed follows what the server does with a connection.
func (g *webGate) changed(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.open[c]
	if one == nil {
		return
	}
	switch state {
	case http.StateIdle:
		g.rest(one)
	case http.StateActive:
		g.wake(one)
	case http.StateHijacked, http.StateClosed:
		g.remove(one)
	case http.StateNew:
	}
}

// add, remove, rest and wake are called with g.mu held.
func (g *webGate) add(c net.Conn, source netip.Prefix) {
	s := g.sources[source]
	if s == nil {
		s = &webSource{idle: list.New()}
		g.sources[source] = s
	}
	s.open++
	one := &webConn{Conn: c, source: source}
	g.open[c] = one
	g.rest(one)
}

func (g *webGate) remove(c *webConn) {
	g.wake(c)
	delete(g.open, c.Conn)
	s := g.sources[c.source]
	if s.open--; s.open == 0 {
		delete(g.sources, c.source)
	}
}

func (g *webGate) rest(c *webConn) {
	g.wake(c)
	c.all, c.sibling = g.idle.PushBack(c), g.sources[c.source].idle.PushBack(c)
}

func (g *webGate) wake(c *webConn) {
	if c.all != nil {
		g.idle.Remove(c.all)
		g.sources[c.source].idle.Remove(c.sibling)
		c.all, c.sibling = nil, nil
	}
}

// count returns how many connections are open, and how many of them idle.
func (g *webGate) count() (open, idle int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open), g.idle.Len()
}
