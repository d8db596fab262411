package hub

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"
)

// gated is a connection of which only the address matters.
type gated struct {
	net.Conn
	addr string
}

func (g *gated) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(g.addr), 1))
}

func TestWebGateBounds(t *testing.T) {
	g := newWebGate(nil, 4, 2)
	arrive := func(addr string) (c *gated, out net.Conn, ok bool) {
		c = &gated{addr: addr}
		out, ok = g.enter(c)
		return c, out, ok
	}
	enter := func(addr string) (c *gated, out net.Conn, ok bool) { // and asks something
		c, out, ok = arrive(addr)
		g.changed(c, http.StateActive)
		return c, out, ok
	}
	a1, _, _ := enter("192.0.2.1")
	a2, _, ok := enter("192.0.2.1")
	if !ok {
		t.Fatal("not within the bounds")
	}
	if _, _, ok := enter("192.0.2.1"); ok {
		t.Error("a third connection of one source, and none is idle")
	}
	g.changed(a2, http.StateIdle)
	g.changed(a1, http.StateIdle)
	g.changed(a2, http.StateActive)
	if _, out, ok := enter("192.0.2.1"); !ok || out != a1 {
		t.Errorf("%v makes room, want the idle one", out)
	}
	b1, _, _ := enter("2001:db8::1")
	b2, _, _ := enter("2001:db8::2")
	if _, _, ok := enter("2001:db8::3"); ok {
		t.Error("a third connection of one network")
	}
	if _, _, ok := enter("192.0.2.2"); ok {
		t.Error("a fifth connection, and none is idle")
	}
	g.changed(b2, http.StateIdle)
	g.changed(b1, http.StateIdle)
	if _, out, ok := enter("192.0.2.2"); !ok || out != b2 {
		t.Errorf("%v makes room, want the one that is idle for longest", out)
	}
	g.changed(b2, http.StateClosed) // by the one that made room; it has been counted out
	g.changed(b1, http.StateHijacked)
	if open, idle := g.count(); open != 3 || idle != 0 {
		t.Errorf("%d are open, %d idle", open, idle)
	}
	slow, _, ok := arrive("198.51.100.1")
	if !ok {
		t.Error("there is room, and it is not given")
	}
	// Whoever has not asked anything yet makes room, before one who has.
	if _, out, ok := enter("203.0.113.1"); !ok || out != slow {
		t.Errorf("%v makes room, want the one that has not asked", out)
	}
}

// TestStrangersKeepConnections completes handshakes as anybody can, asks something
// harmless, and keeps the connections. They stay bounded, and the hub is there for
// others.
func TestStrangersKeepConnections(t *testing.T) {
	s := startWebSite(t, nil)
	dial := func() (*tls.Conn, error) {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.Authority.Pool(), ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "GET /v1/version HTTP/1.1\r\nHost: hub\r\n\r\n"); err != nil {
			return nil, err
		}
		_, err = c.Read(make([]byte, 16))
		return c, err
	}
	var kept []*tls.Conn
	for range webSiteConns + 8 {
		c, err := dial()
		if err != nil {
			t.Fatalf("after %d: %v", len(kept), err)
		}
		kept = append(kept, c)
	}
	if open, _ := s.gate.count(); open > webSiteConns {
		t.Errorf("%d connections are open", open)
	}
	// The oldest made room.
	_, err := io.Copy(io.Discard, kept[0])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection that was idle for longest is kept")
	}
	// WebSockets do not count: pipes live in them for days.
	d := s.dialer(t, nil)
	for range webSiteConns + 2 {
		c, err := d.DialTLS(t.Context(), "postern-bus/1", certificate(s.Proxy))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if open, _ := s.gate.count(); open > webSiteConns {
		t.Errorf("%d connections are open beside the WebSockets", open)
	}
}

// TestWebGateUnderRandomUse compares the gate's lists with a plain account.
func TestWebGateUnderRandomUse(t *testing.T) {
	g := newWebGate(nil, 8, 3)
	states := []http.ConnState{http.StateIdle, http.StateActive, http.StateIdle, http.StateClosed, http.StateHijacked}
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8:1::1"}
	var known []*gated
	for i := range 20_000 {
		switch {
		case i%3 == 0:
			c := &gated{addr: addrs[i/3%len(addrs)]}
			g.enter(c)
			known = append(known, c)
		default:
			g.changed(known[(i*7919)%len(known)], states[i%len(states)])
		}
		open, idle := g.count()
		sum, resting := 0, 0
		for _, s := range g.sources {
			if s.open > 3 || s.open == 0 || s.idle.Len() > s.open {
				t.Fatalf("a source has %d connections, %d of them idle", s.open, s.idle.Len())
			}
			sum, resting = sum+s.open, resting+s.idle.Len()
		}
		if open > 8 || sum != open || resting != idle {
			t.Fatalf("%d connections, %d by source; %d idle, %d by source", open, sum, idle, resting)
		}
	}
}
