package attack_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// join presents a ticket at the relay.
func (w *world) join(ctx context.Context, g *enroll.Grant, ticket wire.Ticket) (net.Conn, error) {
	raw, err := w.uplink.DialRaw(ctx)
	if err != nil {
		return nil, err
	}
	cfg := w.uplink.TLSConfig(wire.ALPNPipe, certificate(g))
	return pipe.Join(ctx, raw, cfg, wire.Join{Kind: wire.JoinMeet, Ticket: ticket})
}

// pairing is what became of two bearers of one ticket.
type pairing struct {
	conns [2]net.Conn
	errs  [2]error
}

func (w *world) pair(a, b *enroll.Grant, ticket wire.Ticket) *pairing {
	p := &pairing{}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for i, g := range []*enroll.Grant{a, b} {
		wg.Go(func() {
			p.conns[i], p.errs[i] = w.join(ctx, g, ticket)
			if p.conns[i] != nil {
				w.t.Cleanup(func() { _ = p.conns[i].Close() })
			}
		})
	}
	wg.Wait()
	return p
}

func codeOf(err error) wire.Code { return wire.AsFailure(err, wire.LegUnknown).Code }

// TestAttackTickets presents tickets that are another's, used, guessed, or for
// elsewhere.
func TestAttackTickets(t *testing.T) {
	w := newWorld(t)
	near, edge := w.enrol(acme, identity.RoleProxy, "near", "p1"), w.enrol(acme, identity.RoleAgent, agentID, "r1")
	far, plant := w.enrol(acme, identity.RoleProxy, "far", "p1"), w.enrol(acme, identity.RoleAgent, "plant", "r1")
	thief, fake := w.enrol(evil, identity.RoleProxy, "near", "p1"), w.enrol(evil, identity.RoleAgent, agentID, "r1")

	used := wire.NewTicket("")
	if p := w.pair(near, edge, used); errors.Join(p.errs[:]...) != nil {
		t.Fatal("those whose ticket it is:", p.errs)
	}
	for name, g := range map[string]*enroll.Grant{"its proxy": near, "its agent": edge, "another organization": thief} {
		if _, err := w.join(t.Context(), g, used); codeOf(err) != wire.CodeTicketUsed {
			t.Errorf("%s comes again: %v", name, err)
		}
	}
	for name, two := range map[string][2]*enroll.Grant{
		"a proxy of another organization": {thief, edge}, "an agent of another organization": {near, fake},
		"two proxies": {near, far}, "two agents": {edge, plant}, "the same twice": {near, near},
	} {
		if p := w.pair(two[0], two[1], wire.NewTicket("")); codeOf(p.errs[0]) != wire.CodeWrongPeer || codeOf(p.errs[1]) != wire.CodeWrongPeer {
			t.Errorf("%s: %v; want that both are told so", name, p.errs)
		}
	}
	if _, err := w.join(t.Context(), near, wire.NewTicket("another-node")); codeOf(err) != wire.CodeWrongPeer {
		t.Errorf("a ticket for another node: %v", err)
	}

	// A guess waits for nobody; while it waits, others meet.
	ctx, cancel := context.WithCancel(t.Context())
	guessed := make(chan error, 1)
	go func() { _, err := w.join(ctx, thief, wire.NewTicket("")); guessed <- err }()
	if p := w.pair(near, edge, wire.NewTicket("")); errors.Join(p.errs[:]...) != nil {
		t.Error("beside a guess:", p.errs)
	}
	cancel()
	if err := <-guessed; err == nil {
		t.Error("a guess is joined")
	}
}

// TestAttackTicketOfAnotherAgent: an agent that got hold of another one's ticket is
// joined by the relay, which knows no better. The proxy does.
func TestAttackTicketOfAnotherAgent(t *testing.T) {
	w := newWorld(t)
	near, edge := w.enrol(acme, identity.RoleProxy, "near", "p1"), w.enrol(acme, identity.RoleAgent, agentID, "r1")
	wanted := func(id identity.ID) error {
		if id != edge.Credentials.ID {
			return wire.Fail(wire.LegAgent, wire.CodeWrongPeer, "%s came", id)
		}
		return nil
	}
	welcome := func(id identity.ID) error {
		if id.Role != identity.RoleProxy || id.Organization != acme {
			return wire.Fail(wire.LegAgent, wire.CodeWrongPeer, "%s came", id)
		}
		return nil
	}
	bufs := pipe.NewBuffers()
	meet := func(proxy, agent *enroll.Grant) (clientErr, serverErr error) {
		p := w.pair(near, edge, wire.NewTicket(""))
		if err := errors.Join(p.errs[:]...); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			var s *pipe.Pipe
			cfg := identity.InnerServerConfig(func() *identity.Credentials { return agent.Credentials }, welcome)
			if s, serverErr = pipe.Server(ctx, p.conns[1], cfg, bufs); s != nil {
				_, _ = s.Next() // until the other side has seen enough
				s.Close()
			}
		})
		c, err := pipe.Client(ctx, p.conns[0], identity.InnerClientConfig(func() *identity.Credentials { return proxy.Credentials }, wanted), bufs)
		if c != nil {
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, _ = c.Next()
			c.Close()
		}
		wg.Wait()
		return err, serverErr
	}
	if c, s := meet(near, edge); c != nil || s != nil {
		t.Fatal("those who are wanted:", c, s)
	}
	for name, imposter := range map[string]*enroll.Grant{
		"another agent":                       w.enrol(acme, identity.RoleAgent, "plant", "r1"),
		"another replica":                     w.enrol(acme, identity.RoleAgent, agentID, "r2"),
		"the same names of another org":       w.enrol(evil, identity.RoleAgent, agentID, "r1"),
		"a proxy that answers like an agent":  w.enrol(acme, identity.RoleProxy, "far", "p1"),
		"a proxy that is named like an agent": w.enrol(acme, identity.RoleProxy, agentID, "r1"),
	} {
		if c, _ := meet(near, imposter); codeOf(c) != wire.CodeWrongPeer {
			t.Errorf("%s comes in the agent's place: the proxy says %v", name, c)
		}
	}
	for name, imposter := range map[string]*enroll.Grant{
		"a proxy of another organization": w.enrol(evil, identity.RoleProxy, "near", "p1"),
		"an agent that asks like a proxy": w.enrol(acme, identity.RoleAgent, "plant", "r1"),
	} {
		if _, s := meet(imposter, edge); codeOf(s) != wire.CodeWrongPeer {
			t.Errorf("%s comes in the proxy's place: the agent says %v", name, s)
		}
	}
}

// TestAttackJoins says other things than one JOIN at the relay.
func TestAttackJoins(t *testing.T) {
	w := newWorld(t)
	g := w.enrol(evil, identity.RoleProxy, "near", "p1")
	say := func(records ...[]byte) (string, error) {
		c, err := w.uplink.DialTLS(t.Context(), wire.ALPNPipe, certificate(g))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		for _, r := range records {
			if _, err := c.Write(r); err != nil {
				return "", err
			}
		}
		b := make([]byte, wire.MaxJoinAnswerLen)
		n, err := c.Read(b)
		if err != nil {
			return "", err
		}
		f, err := wire.ParseJoinAnswer(b[:n])
		if f != nil {
			return f.Code.String(), nil
		}
		return "joined", err
	}
	probe := wire.Join{Kind: wire.JoinProbe}.Append(nil)
	if answer, err := say(probe); answer != "joined" || err != nil {
		t.Fatal(answer, err)
	}
	change := func(i int, b byte) []byte {
		out := append([]byte(nil), probe...)
		out[i] = b
		return out
	}
	for name, records := range map[string][][]byte{
		"two in one record": {append(append([]byte(nil), probe...), probe...)}, "one byte more": {append(append([]byte(nil), probe...), 0)},
		"one byte less": {probe[:len(probe)-1]}, "byte by byte": {probe[:1], probe[1:]}, "another version": {change(0, 2)},
		"another kind": {change(1, 9)}, "kind 0": {change(1, 0)}, "reserved bytes": {change(2, 1)}, "HTTP": {[]byte("GET / HTTP/1.1\r\n\r\n")},
		"a full record": {make([]byte, 16<<10)},
	} {
		if answer, err := say(records...); err == nil && answer != wire.CodeProtocol.String() {
			t.Errorf("%s: %s", name, answer)
		}
	}
}

func certificate(g *enroll.Grant) func() *tls.Certificate {
	return func() *tls.Certificate { return &g.Credentials.Certificate }
}
