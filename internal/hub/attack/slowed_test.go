package attack_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// TestAttackSlowsNobody has one organization use all it can get: tickets for nobody,
// connections that say nothing, bad tokens, messages on the bus, streams. The other
// one's streams open and carry bytes meanwhile, all of them.
func TestAttackSlowsNobody(t *testing.T) {
	w := newWorld(t)
	mine, theirs := serve(t, echo("acme")), serve(t, echo("evil"))
	for _, org := range []string{acme, evil} {
		w.agent(org, w.url(), "tcp:127.0.0.1:*")
	}
	near, far := w.proxy(acme), w.proxy(evil)
	for target, proxy := range map[*target]client{mine: near, theirs: far} {
		eventually(t, func() error { _, err := visit(proxy.http, target.addr); return err })
	}
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var done [6]atomic.Int64
	attack := func(i, workers int, f func() error) {
		for range workers {
			flood.Go(func() {
				for ctx.Err() == nil {
					if f() == nil {
						done[i].Add(1)
					}
				}
			})
		}
	}
	mallory, other := w.enrol(evil, identity.RoleProxy, "m1", "p1"), w.enrol(evil, identity.RoleAgent, "m2", "r1")
	attack(0, 3, func() error { // tickets for nobody
		joining, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := w.join(joining, mallory, wire.NewTicket("")); ctx.Err() != nil && err != nil {
			return err
		}
		return nil
	})
	attack(1, 2, func() error { // a login on the bus, and silence
		c, err := w.uplink.DialTLS(ctx, wire.ALPNBus, certificate(other))
		if err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = io.Copy(io.Discard, c)
		return c.Close()
	})
	attack(2, 2, func() error { // tokens that are none
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.uplink.BaseURL()+"/v1/agents", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+strings.Repeat("e30.", 1000))
		res, err := w.uplink.HTTPClient().Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		return res.Body.Close()
	})
	asking := w.conn(mallory)
	defer asking.Close()
	attack(3, 4, func() error { // requests that nobody serves
		meeting, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = asking.Meet(meeting, agentID, "r1", bus.MeetRequest{Tickets: []wire.Ticket{wire.NewTicket("")}, Proxy: "x", Expires: 100 * time.Millisecond})
		return nil
	})
	attack(4, 4, func() error { _, err := visit(far.http, theirs.addr); return err })
	attack(5, 2, func() error { // half a handshake
		c, err := net.DialTimeout("tcp", w.info.Listen.String(), patience)
		if err != nil {
			return err
		}
		hello := tls.Client(c, &tls.Config{NextProtos: []string{wire.ALPNPipe}, InsecureSkipVerify: true})
		shaking, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_ = hello.HandshakeContext(shaking)
		return c.Close()
	})

	held, _, err := connect(near.http, mine.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if name, err := readUntil(held, "\n"); name != "acme\n" {
		t.Fatal(name, err)
	}
	longest := time.Duration(0)
	const rounds = 15
	for i := range rounds {
		begin := time.Now()
		_ = held.SetDeadline(begin.Add(patience)) // which had one for all rounds together
		if name, err := visit(near.http, mine.addr); err != nil || name != "acme" {
			t.Errorf("stream %d: %q, %v", i, name, err)
		}
		if _, err := fmt.Fprintf(held, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
		if line, err := readUntil(held, "\n"); err != nil || line != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("the stream that runs: %q, %v", line, err)
		}
		longest = max(longest, time.Since(begin))
	}
	fresh := w.enrol(acme, identity.RoleProxy, "late", "p1")
	if err := w.probe(&fresh.Credentials.Certificate); err != nil {
		t.Errorf("a new party: %v", err)
	}
	stop()
	flood.Wait()
	for i := range done {
		if done[i].Load() == 0 {
			t.Errorf("attack %d did not run", i)
		}
	}
	t.Logf("%d of the other's did not keep %d streams from opening; the slowest took %s", sum(done[:]), rounds, longest)
	if longest > 10*time.Second { // generous: the machine is busy with the attack itself
		t.Errorf("a stream took %s", longest)
	}
}

func sum(of []atomic.Int64) (n int64) {
	for i := range of {
		n += of[i].Load()
	}
	return n
}
