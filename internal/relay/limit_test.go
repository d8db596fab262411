package relay_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/wire"
)

// startLimited serves a relay that holds to a book.
func startLimited(t *testing.T, defaults limit.Table) (*site, *limit.Book) {
	t.Helper()
	b := limit.NewBook(limit.Options{Defaults: defaults})
	return start(t, func(c *relay.Config) { c.Limits = b }), b
}

// meetAs brings two parties together.
func (s *site) meetAs(t *testing.T, proxy, agent *identity.Credentials) (p, a net.Conn, proxyErr, agentErr error) {
	t.Helper()
	ticket := wire.NewTicket("n1")
	var wg sync.WaitGroup
	wg.Go(func() { a, agentErr = s.join(t, agent, ticket) })
	p, proxyErr = s.join(t, proxy, ticket)
	wg.Wait()
	return p, a, proxyErr, agentErr
}

// settle waits until nothing is counted any more.
func settle(t *testing.T, b *limit.Book, org string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := int64(0)
		for _, u := range b.Usage(org) {
			left += u.Streams + u.Pipes
		}
		switch {
		case left == 0:
			return
		case time.Now().After(deadline):
			t.Fatalf("%d are still counted: %+v", left, b.Usage(org))
		}
		time.Sleep(time.Millisecond)
	}
}

func TestJoinsPerSecondAreLimited(t *testing.T) {
	s, b := startLimited(t, limit.Table{limit.Proxy: {Opens: 1}})
	org := s.Proxy.ID.Organization
	var held []net.Conn
	refused := 0
	for range 6 {
		p, a, perr, aerr := s.meetAs(t, s.Proxy, s.Agent)
		if perr == nil && aerr == nil {
			held = append(held, p, a)
			continue
		}
		refused++
		for _, err := range []error{perr, aerr} {
			var f *wire.Failure
			if !errors.As(err, &f) || f.Leg != wire.LegRelay || f.Code != wire.CodeOverloaded ||
				f.Text != "proxy near of organization "+org+" has reached its limit of 1 opens per second" {
				t.Fatalf("refused with %v", err)
			}
		}
	}
	if refused == 0 {
		t.Error("no join was refused, at one per second")
	}
	for _, c := range held {
		_ = c.Close()
	}
	settle(t, b, org)
}

// TestOneOrganizationDoesNotSlowAnother has one organization push against its limit,
// over several pipes, while another moves many times of what that limit allows.
func TestOneOrganizationDoesNotSlowAnother(t *testing.T) {
	const rate, bulk = 100_000, 24 << 20
	s, b := startLimited(t, limit.Table{})
	b.Set(limit.Key{Level: limit.Organization, Organization: "greedy"}, limit.Limits{Bytes: rate})
	proxy := s.Credentials(t, identity.ID{Organization: "greedy", Role: identity.RoleProxy, Name: "near", Replica: "p1"})
	agent := s.Credentials(t, identity.ID{Organization: "greedy", Role: identity.RoleAgent, Name: "edge", Replica: "r1"})
	var greedy sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	begin := time.Now()
	var conns []net.Conn
	for range 8 {
		p, a, perr, aerr := s.meetAs(t, proxy, agent)
		if perr != nil || aerr != nil {
			t.Fatal(perr, aerr)
		}
		conns = append(conns, p, a)
		greedy.Go(func() {
			for b := make([]byte, 1<<16); ; {
				if _, err := p.Write(b); err != nil {
					return
				}
			}
		})
		greedy.Go(func() {
			for b := make([]byte, 1<<16); ; {
				n, err := a.Read(b)
				mu.Lock()
				passed += n
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	p, a := s.meet(t)
	go func() { _, _ = p.Write(make([]byte, bulk)); _ = p.Close() }()
	n, err := io.Copy(io.Discard, a)
	took := time.Since(begin)
	_ = a.Close()
	if n != bulk || err != nil {
		t.Errorf("%d bytes of %d arrived: %v", n, bulk, err)
	}
	mu.Lock()
	got := passed
	mu.Unlock()
	if until := time.Since(begin); got > rate+int(rate*until.Seconds())+16*128 {
		t.Errorf("%d bytes passed in %s", got, until)
	}
	if most := 30 * time.Second; took > most { // under the other's limit it would take four minutes
		t.Errorf("%d bytes of the other organization took %s", bulk, took)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	greedy.Wait()
	settle(t, b, "greedy")
	if u := b.Usage("greedy")[0]; u.Throttled == 0 {
		t.Error("nothing was throttled")
	}
	if u := b.Usage(s.Proxy.ID.Organization)[0]; u.Throttled != 0 {
		t.Errorf("the other organization waited for %s", u.Throttled)
	}
}

// hidden is a connection that cannot be spliced.
type hidden struct{ net.Conn }

// TestLimitOfAPipeThatIsOpen sets a limit, changes and lifts it under one transfer,
// over sockets and over what is none.
func TestLimitOfAPipeThatIsOpen(t *testing.T) {
	for _, name := range []string{"spliced", "copied"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, b := startLimited(t, limit.Table{})
			if name == "copied" {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				s.addr = ln.Addr().String()
				var taking sync.WaitGroup
				taking.Go(func() {
					for {
						c, err := ln.Accept()
						if err != nil {
							return
						}
						s.relay.Take(t.Context(), hidden{c})
					}
				})
				t.Cleanup(func() { _ = ln.Close(); taking.Wait() })
			}
			p, a := s.meet(t)
			var writing sync.WaitGroup
			writing.Go(func() { _, _ = p.Write(make([]byte, 24<<20)); _ = p.Close() })
			defer writing.Wait()
			defer func() { _ = a.Close() }()
			read := func(n int64) time.Duration {
				begin := time.Now()
				if m, err := io.CopyN(io.Discard, a, n); err != nil {
					t.Fatalf("%d of %d bytes: %v", m, n, err)
				}
				return time.Since(begin)
			}
			read(1 << 20)
			key := limit.Key{Level: limit.Proxy, Organization: s.Proxy.ID.Organization, Name: s.Proxy.ID.Name}
			b.Set(key, limit.Limits{Bytes: 4 << 20})
			// Ten mebibytes at most are on their way in the buffers of sockets, or are the
			// first second's worth, and what remains of seventeen takes its time.
			if took := read(17 << 20); took < 500*time.Millisecond {
				t.Errorf("17 MiB took %s under a limit of 4 MiB per second", took)
			}
			b.Set(key, limit.Limits{Bytes: 16 << 10})
			b.Set(key, limit.Limits{})
			if took := read(6 << 20); took > 20*time.Second {
				t.Errorf("the rest took %s, though there was no limit", took)
			}
		})
	}
}

// TestSignsOfLifePassTheLine has a pipe whose organization has more waiting than it
// will be allowed for a long time.
func TestSignsOfLifePassTheLine(t *testing.T) {
	s, b := startLimited(t, limit.Table{limit.Organization: {Bytes: 16 << 10}})
	org := s.Proxy.ID.Organization
	p, a := s.meet(t)
	line, refusal := b.Enter(limit.OneStream, org, "", "")
	if refusal != nil {
		t.Fatal(refusal)
	}
	left := &living{ended: make(chan struct{})}
	var waiting sync.WaitGroup
	waiting.Go(func() { line.Take(1<<30, left) }) // eighteen hours
	for line.Chunk(1<<20) > 16<<10 {              // until two share what there is
		time.Sleep(time.Millisecond)
	}
	for _, way := range [][2]net.Conn{{p, a}, {a, p}} {
		sign := make([]byte, 48)
		if _, err := way[0].Write(sign); err != nil {
			t.Fatal(err)
		}
		_ = way[1].SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(way[1], sign); err != nil {
			t.Errorf("a sign of life did not pass: %v", err)
		}
	}
	// What is no sign of life waits, and ends with its pipe.
	if _, err := p.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	close(left.ended)
	waiting.Wait()
	line.Leave()
	_, _ = p.Close(), a.Close()
	settle(t, b, org)
}

type living struct{ ended chan struct{} }

func (l *living) Alive() bool {
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// TestManyRefusalsLeaveNothing counts out whatever was counted in.
func TestManyRefusalsLeaveNothing(t *testing.T) {
	s, b := startLimited(t, limit.Table{limit.Organization: {Opens: 10}})
	var all sync.WaitGroup
	turns := make(chan struct{}, 16)
	for range 150 {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			p, a, _, _ := s.meetAs(t, s.Proxy, s.Agent)
			for _, c := range []net.Conn{p, a} {
				if c != nil {
					_ = c.Close()
				}
			}
		})
	}
	all.Wait()
	settle(t, b, s.Proxy.ID.Organization)
	if waiting, _ := s.relay.Waiting(); waiting != 0 {
		t.Errorf("%d parties still wait", waiting)
	}
}
