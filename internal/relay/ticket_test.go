package relay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/wire"
)

// refusal returns the code and the leg of a failure.
func refusal(t *testing.T, err error) (wire.Code, wire.Leg) {
	t.Helper()
	var f *wire.Failure
	if !errors.As(err, &f) {
		t.Errorf("got %v; want a failure", err)
		return 0, 0
	}
	return f.Code, f.Leg
}

// TestLateTicket has the second bearer of a ticket come when the first has given up.
func TestLateTicket(t *testing.T) {
	s := start(t, func(c *relay.Config) { c.MeetTime = 50 * time.Millisecond })
	ticket := wire.NewTicket("n1")
	_, err := s.join(t, s.Agent, ticket)
	if code, leg := refusal(t, err); code != wire.CodeTicketExpired || leg != wire.LegRelay {
		t.Errorf("the first bearer: %v", err)
	}
	_, err = s.join(t, s.Proxy, ticket)
	if code, _ := refusal(t, err); code != wire.CodeTicketUsed {
		t.Errorf("the second bearer, too late: %v", err)
	}
	if parties, tickets := s.relay.Waiting(); parties != 0 || tickets != 1 {
		t.Errorf("%d parties wait, %d tickets are remembered", parties, tickets)
	}
}

// TestForgedTicket changes every byte of a ticket in turn: nobody is joined to the
// one who holds the real one, who still is by the right party.
func TestForgedTicket(t *testing.T) {
	s := start(t, func(c *relay.Config) { c.MeetTime = 30 * time.Second })
	ticket := wire.NewTicket("n1")
	var wg sync.WaitGroup
	var agent net.Conn
	var agentErr error
	wg.Go(func() { agent, agentErr = s.join(t, s.Agent, ticket) })
	within(t, 5*time.Second, func() string {
		if n, _ := s.relay.Waiting(); n != 1 {
			return "the agent does not wait"
		}
		return ""
	})
	for i := range ticket {
		wg.Go(func() {
			forged := ticket
			forged[i] ^= 1
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if c, err := s.relay.JoinLocal(ctx, forged, s.Proxy.ID); err == nil {
				t.Errorf("byte %d of a ticket does not matter", i)
				_ = c.Close()
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	proxy, err := s.join(t, s.Proxy, ticket)
	wg.Wait()
	if err != nil || agentErr != nil {
		t.Fatalf("after the forgeries: proxy %v, agent %v", err, agentErr)
	}
	_, _ = proxy.Close(), agent.Close()
}

// TestHubsOwnProxyGivesUp: what it is told is that it gave up, and not that the
// relay stops; the agent that comes later is refused.
func TestHubsOwnProxyGivesUp(t *testing.T) {
	s := start(t, nil)
	ticket := wire.NewTicket("n1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := s.relay.JoinLocal(ctx, ticket, s.Proxy.ID)
	if code, leg := refusal(t, err); code != wire.CodeTimeout || leg != wire.LegRelay || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	_, err = s.join(t, s.Agent, ticket)
	if code, _ := refusal(t, err); code != wire.CodeTicketUsed {
		t.Errorf("the agent, too late: %v", err)
	}
}

// TestPeerLeavesWhileItWaits: who meets one that has gone in the meantime is not left
// hanging.
func TestPeerLeavesWhileItWaits(t *testing.T) {
	s := start(t, nil)
	ticket := wire.NewTicket("n1")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _, _ = s.joinOver(ctx, conn, s.Agent, ticket) })
	within(t, 5*time.Second, func() string {
		if n, _ := s.relay.Waiting(); n != 1 {
			return "the agent does not wait"
		}
		return ""
	})
	cancel()
	wg.Wait()
	proxy, err := s.join(t, s.Proxy, ticket)
	if err != nil {
		return // it was told so
	}
	_ = proxy.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := proxy.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read %d bytes from one who is gone, %v", n, err)
	}
	_ = proxy.Close()
}

// TestEndsPassTheRelay: what is left when a side ends is delivered, and a reset does
// not leave the other side waiting.
func TestEndsPassTheRelay(t *testing.T) {
	s := start(t, nil)
	for name, end := range map[string]func(*net.TCPConn){
		"close": func(c *net.TCPConn) { _ = c.Close() },
		"reset": func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			proxy, agent := s.meet(t)
			_, _ = proxy.Write([]byte("last words"))
			b := make([]byte, 10)
			if _, err := io.ReadFull(agent, b); err != nil {
				t.Error(err)
			}
			end(proxy.(*net.TCPConn))
			_ = agent.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := agent.Read(b); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
			_ = agent.Close()
			within(t, 5*time.Second, func() string {
				if s.relay.Pipes() != 0 {
					return "the pipe is still counted"
				}
				return ""
			})
		})
	}
}
