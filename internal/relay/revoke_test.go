package relay_test

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/wire"
)

func TestRevokedCertificates(t *testing.T) {
	var bad atomic.Value
	bad.Store("")
	revoked := func(serial string) bool { return serial == bad.Load() }
	s := start(t, func(c *relay.Config) { c.Revoked = revoked })
	a, b := s.meet(t)
	serial := identity.Serial(s.Agent.Certificate.Leaf)
	if !s.relay.Holds(serial) || s.relay.Holds("0") {
		t.Error("the relay does not know whose connections it has")
	}
	if n := s.relay.Cut(revoked); n != 0 {
		t.Errorf("%d connections cut for nothing", n)
	}
	bad.Store(serial)
	asks := func(serial string) bool { return s.relay.Holds(serial) && revoked(serial) } // whoever is asked may ask back
	if n := s.relay.Cut(asks); n != 1 {
		t.Errorf("%d connections cut, want that of the agent", n)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the pipe lives")
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the pipe was not cut")
		}
	}
	for limit := time.Now().Add(5 * time.Second); s.relay.Holds(serial) && time.Now().Before(limit); time.Sleep(time.Millisecond) {
	}
	if s.relay.Holds(serial) {
		t.Error("the relay has not forgotten connections that ended")
	}
	if _, err := s.join(t, s.Agent, wire.NewTicket("n1")); err == nil {
		t.Error("a revoked certificate may join")
	}
}
