package relay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type site struct {
	*pipetest.World
	relay *relay.Relay
	addr  string
}

// start serves a relay on loopback for one test.
func start(t *testing.T, change func(*relay.Config)) *site {
	t.Helper()
	w := pipetest.NewWorld(t)
	server, err := w.Authority.IssueServer("n1", []string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := relay.Config{
		Node:        "n1",
		Certificate: func() (*tls.Certificate, error) { return &server, nil },
		Roots:       w.Authority.Pool,
		Log:         slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	r := relay.New(cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait(); r.Close() })
	return &site{World: w, relay: r, addr: l.Addr().String()}
}

func (s *site) outer(c *identity.Credentials) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNPipe}, RootCAs: s.Authority.Pool(), ServerName: "127.0.0.1"}
	if c != nil {
		cfg.Certificates = []tls.Certificate{c.Certificate}
	}
	return cfg
}

func (s *site) join(t *testing.T, c *identity.Credentials, ticket wire.Ticket) (net.Conn, error) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	return s.joinOver(t.Context(), conn, c, ticket)
}

func (s *site) joinOver(ctx context.Context, conn net.Conn, c *identity.Credentials, ticket wire.Ticket) (net.Conn, error) {
	return pipe.Join(ctx, conn, s.outer(c), wire.Join{Kind: wire.JoinMeet, Ticket: ticket})
}

// meet brings a proxy and an agent together.
func (s *site) meet(t *testing.T) (proxy, agent net.Conn) {
	t.Helper()
	ticket := wire.NewTicket("n1")
	var wg sync.WaitGroup
	var agentErr error
	wg.Go(func() { agent, agentErr = s.join(t, s.Agent, ticket) })
	proxy, err := s.join(t, s.Proxy, ticket)
	wg.Wait()
	if err != nil || agentErr != nil {
		t.Fatalf("join: proxy %v, agent %v", err, agentErr)
	}
	return proxy, agent
}

func TestBytesPassBothWaysAtOnce(t *testing.T) {
	s := start(t, nil)
	a, b := s.meet(t)
	sent := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(sent)
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = way[0].Write(sent)
			_ = way[0].(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(way[1])
			if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
				t.Errorf("%d bytes of %d arrived, or others than were sent: %v", len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	_, _ = a.Close(), b.Close()
}

// TestOuterTLSIsLeftExactly makes many pipes whose first bytes follow the outer
// TLS at once, and checks that none is lost or taken for TLS.
func TestOuterTLSIsLeftExactly(t *testing.T) {
	s := start(t, nil)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for i := range 100 {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			a, b := s.meet(t)
			var inner sync.WaitGroup
			var server *pipe.Pipe
			var serverErr error
			inner.Go(func() { server, serverErr = pipe.Server(t.Context(), b, s.ServerConfig(), s.Buffers) })
			client, err := pipe.Client(t.Context(), a, s.ClientConfig(), s.Buffers)
			inner.Wait()
			if err != nil || serverErr != nil {
				t.Errorf("pipe %d: %v, %v", i, err, serverErr)
				return
			}
			client.Close()
			server.Close()
		})
	}
	wg.Wait()
}

func TestHubsOwnProxyTakesTheConnection(t *testing.T) {
	for name, localFirst := range map[string]bool{"local first": true, "agent first": false} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			ticket := wire.NewTicket("n1")
			var wg sync.WaitGroup
			var local net.Conn
			var localErr error
			join := func() {
				id := s.Proxy.ID
				local, localErr = s.relay.JoinLocal(t.Context(), ticket, id)
			}
			await := func(n int) {
				for {
					if w, _ := s.relay.Waiting(); w == n {
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
			var agent net.Conn
			var agentErr error
			if localFirst {
				wg.Go(join)
				await(1)
				agent, agentErr = s.join(t, s.Agent, ticket)
			} else {
				wg.Go(func() { agent, agentErr = s.join(t, s.Agent, ticket) })
				await(1)
				join()
			}
			wg.Wait()
			if localErr != nil || agentErr != nil {
				t.Fatalf("local %v, agent %v", localErr, agentErr)
			}
			go func() { _, _ = local.Write([]byte("hello")); _ = local.Close() }()
			got, err := io.ReadAll(agent)
			if string(got) != "hello" || err != nil {
				t.Errorf("agent read %q, %v", got, err)
			}
			_ = agent.Close()
		})
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, nil)
	code := func(err error) wire.Code {
		var f *wire.Failure
		if !errors.As(err, &f) {
			t.Fatalf("got %v, want a failure", err)
		}
		return f.Code
	}
	t.Run("replayed ticket", func(t *testing.T) {
		ticket := wire.NewTicket("n1")
		var wg sync.WaitGroup
		wg.Go(func() {
			if c, err := s.join(t, s.Agent, ticket); err == nil {
				_ = c.Close()
			}
		})
		c, err := s.join(t, s.Proxy, ticket)
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if _, err := s.join(t, s.Proxy, ticket); code(err) != wire.CodeTicketUsed {
			t.Errorf("replay: %v", err)
		}
	})
	t.Run("two organizations", func(t *testing.T) {
		other := s.Credentials(t, identity.ID{Organization: "evil", Role: identity.RoleProxy, Name: "near", Replica: "p1"})
		ticket := wire.NewTicket("n1")
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.join(t, s.Agent, ticket); code(err) != wire.CodeWrongPeer {
				t.Errorf("agent: %v", err)
			}
		})
		if _, err := s.join(t, other, ticket); code(err) != wire.CodeWrongPeer {
			t.Errorf("stranger: %v", err)
		}
		wg.Wait()
	})
	t.Run("two agents", func(t *testing.T) {
		ticket := wire.NewTicket("n1")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = s.join(t, s.Agent, ticket) })
		if _, err := s.join(t, s.Agent, ticket); code(err) != wire.CodeWrongPeer {
			t.Errorf("got %v", err)
		}
		wg.Wait()
	})
	t.Run("another relay's ticket", func(t *testing.T) {
		if _, err := s.join(t, s.Proxy, wire.NewTicket("n2")); code(err) != wire.CodeWrongPeer {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pipe.Join(t.Context(), conn, s.outer(nil), wire.Join{Kind: wire.JoinMeet}); err == nil {
			t.Error("joined without a certificate")
		}
	})
	t.Run("forged certificate", func(t *testing.T) {
		forged := pipetest.NewWorld(t) // the same names from another authority
		if _, err := s.join(t, forged.Proxy, wire.NewTicket("n1")); err == nil {
			t.Error("joined with a forged certificate")
		}
	})
	if waiting, _ := s.relay.Waiting(); waiting != 0 {
		t.Errorf("%d parties still wait", waiting)
	}
}

func TestProbe(t *testing.T) {
	s := start(t, nil)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	if rtt, err := pipe.Probe(t.Context(), conn, s.outer(s.Agent)); err != nil || rtt <= 0 {
		t.Errorf("probe: %v, %v", rtt, err)
	}
}

// TestGarbage throws what is no TLS at the port, and TLS that is no JOIN; the
// relay drops each and keeps working.
func TestGarbage(t *testing.T) {
	s := start(t, nil)
	for _, b := range [][]byte{nil, []byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0x16}, 1<<16), {0x16, 3, 1, 0xff, 0xff}} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(b)
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
	conn, err := tls.Dial("tcp", s.addr, s.outer(s.Agent))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("not a JOIN"))
	answer := make([]byte, wire.MaxJoinAnswerLen)
	n, err := conn.Read(answer)
	if f, perr := wire.ParseJoinAnswer(answer[:n]); err != nil || perr != nil || f == nil || f.Code != wire.CodeProtocol {
		t.Errorf("answer to garbage: %v, %v, %v", f, err, perr)
	}
	_ = conn.Close()
	a, b := s.meet(t)
	_, _ = a.Close(), b.Close()
}

func TestBoundsBeforeProof(t *testing.T) {
	s := start(t, func(c *relay.Config) { c.MaxUnprovedPerSource = 4 })
	var held []net.Conn
	for range 4 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	deadline := time.Now().Add(5 * time.Second)
	for { // the bound is felt once all four are admitted
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
		if err == io.EOF {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a fifth connection was admitted: %v", err)
		}
	}
	for _, c := range held {
		_ = c.Close()
	}
}

// TestLongHandshake sends a chain of certificates that never ends. What a caller may
// say before it has proved who it is stays short.
func TestLongHandshake(t *testing.T) {
	s := start(t, nil)
	for copies, want := range map[int]bool{0: true, 4: true, 100: false} {
		c := *s.Agent
		for range copies {
			c.Certificate.Certificate = append(slices.Clip(c.Certificate.Certificate), c.Certificate.Leaf.Raw)
		}
		conn, err := tls.Dial("tcp", s.addr, s.outer(&c))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Write(wire.Join{Kind: wire.JoinProbe}.Append(nil))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if (err == nil) != want {
			t.Errorf("%d bytes of certificates: %v", (1+copies)*len(c.Certificate.Leaf.Raw), err)
		}
		_ = conn.Close()
	}
}
