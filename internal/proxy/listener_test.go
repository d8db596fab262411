package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/wire"
)

func TestPortForward(t *testing.T) {
	t.Parallel()
	addrs := []string{"127.0.0.1:0"}
	if ln, err := net.Listen("tcp", "[::1]:0"); err == nil { // some containers have no IPv6
		ln.Close()
		addrs = append(addrs, "[::1]:0")
	}
	for _, addr := range addrs {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
				_, _ = io.WriteString(c, "greeting ") // the target speaks first
				echo(c)
			})}
			rec := newRecorder()
			cfg := frontConfig(o)
			cfg.Observer = rec
			target, err := wire.TCP("db", 5432)
			if err != nil {
				t.Fatal(err)
			}
			p, err := NewPortForward(listen(t, addr), ForwardTarget{Agent: AgentRef{Agent: "lab"}, Target: target}, cfg)
			run(t, p, err)
			conn := dialFront(t, p)
			expect(t, conn, "greeting ")
			send(t, conn, "hello")
			expect(t, conn, "hello")
			_ = conn.CloseWrite()
			if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
				t.Errorf("at the end: %q, %v", rest, err)
			}
			if e := <-rec.closed; e.Stats != (Stats{14, 5}) || e.Agent != (AgentRef{"default", "lab"}) || e.Target != target {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestPortForwardFailureResets(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	connected := make(chan struct{})
	cfg := frontConfig(&fakeOpener{dial: func(context.Context, AgentRef, wire.Target) (net.Conn, error) {
		<-connected // or else the reset may come before net.Dial returns
		return nil, wire.Fail(wire.LegTCP, wire.CodeRefused, "t").WithHint("h")
	}})
	cfg.Observer = rec
	p, err := NewPortForward(listen(t, "127.0.0.1:0"), ForwardTarget{Target: wire.Kubernetes()}, cfg)
	run(t, p, err)
	conn := dialFront(t, p)
	close(connected)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if got := rec.get("failed"); len(got) != 1 || got[0].Failure.Code != wire.CodeRefused || got[0].Agent.Agent != "edge" {
		t.Errorf("reported %+v", got)
	}
}

func TestPortForwardRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		addr  string
		to    ForwardTarget
		agent string
		want  string
	}{
		{"0.0.0.0:0", ForwardTarget{Target: wire.Kubernetes()}, "edge", "no credentials"},
		{"0.0.0.0:0", ForwardTarget{Target: wire.Kubernetes(), AllowOthers: true}, "edge", ""},
		{"127.0.0.1:0", ForwardTarget{Target: wire.Kubernetes()}, "", "no agent"},
	} {
		ln := listen(t, c.addr)
		cfg := frontConfig(nil)
		cfg.Router.Agent = c.agent
		p, err := NewPortForward(ln, c.to, cfg)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.addr, err, c.want)
		}
		if p != nil {
			_ = p.Shutdown(t.Context())
		}
		ln.Close()
	}
}

// flakyListener fails to accept, then blocks until it is closed.
type flakyListener struct {
	net.Listener
	mu    sync.Mutex
	errs  []error
	calls []time.Time
	done  chan struct{}
}

func (l *flakyListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.calls = append(l.calls, time.Now())
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		l.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	l.mu.Unlock()
	<-l.done
	return nil, net.ErrClosed
}

func (l *flakyListener) Addr() net.Addr { return tcpAddr("127.0.0.1:1") }
func (l *flakyListener) Close() error   { close(l.done); return nil }

func TestAcceptBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := &flakyListener{done: make(chan struct{})}
		for range 12 {
			ln.errs = append(ln.errs, os.NewSyscallError("accept4", syscall.EMFILE))
		}
		p, err := NewPortForward(ln, ForwardTarget{Target: wire.Kubernetes()}, frontConfig(nil))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- p.Run(ctx, time.Second) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if len(ln.calls) != 13 {
			t.Fatalf("%d calls of accept", len(ln.calls))
		}
		last := acceptPauseMin / 2
		for i := 1; i < len(ln.calls); i++ {
			pause := ln.calls[i].Sub(ln.calls[i-1])
			if want := min(2*last, acceptPauseMax); pause != want {
				t.Errorf("pause %d: %s, want %s", i, pause, want)
			}
			last = pause
		}
	})
}

func TestAcceptFailsForGood(t *testing.T) {
	t.Parallel()
	ln := &flakyListener{done: make(chan struct{}), errs: []error{syscall.EBADF}}
	h, err := NewHTTP(ln, nil, frontConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Run(t.Context(), time.Second); !errors.Is(err, syscall.EBADF) {
		t.Errorf("Run: %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.MaxConns = 2
	cfg.Observer = rec
	for _, c := range []struct {
		front runnable
		want  string
	}{
		{startHTTP(t, nil, cfg), "HTTP/1.1 503 Service Unavailable: postern: proxy: "},
		{startSOCKS(t, nil, cfg), "\x05\xff"},
	} {
		// Each connection is seen by the proxy before the next is opened.
		for range 2 {
			conn := dialFront(t, c.front)
			if _, ok := c.front.(*HTTP); ok {
				send(t, conn, "CONNECT x:1 HTTP/1.1\r\n\r\n")
				expect(t, conn, established)
			} else {
				send(t, conn, greetNone)
				expect(t, conn, "\x05\x00")
			}
		}
		expect(t, dialFront(t, c.front), c.want)
	}
	if got := rec.get("refused"); len(got) != 2 || got[0].Failure.Code != wire.CodeOverloaded {
		t.Errorf("refused: %+v", got)
	}
}

// TestPendingPerSource checks the bookkeeping with sources that a test cannot
// connect from.
func TestPendingPerSource(t *testing.T) {
	t.Parallel()
	cfg := frontConfig(nil)
	cfg.MaxPending = 2
	s := makeServer(FrontHTTP, listen(t, "127.0.0.1:0"), nil, cfg)
	connect := func(addr string) *client {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { theirs.Close() })
		return &client{Conn: ours, s: s, addr: netip.MustParseAddrPort(addr)}
	}
	a, b := connect("192.0.2.1:1"), connect("192.0.2.1:2")
	for _, c := range []*struct {
		*client
		ok bool
	}{{a, true}, {b, true}, {connect("192.0.2.1:3"), false}, {connect("192.0.2.2:1"), true}, {connect("127.0.0.1:1"), true},
		{connect("127.0.0.1:2"), true}, {connect("127.0.0.1:3"), true}} {
		if f := s.admit(c.client); (f == nil) != c.ok {
			t.Errorf("%s: %v", c.addr, f)
		} else if f == nil {
			s.work.Done()
		}
	}
	a.said()
	c := connect("192.0.2.1:4")
	if f := s.admit(c); f != nil {
		t.Errorf("after one has said what it wants: %v", f)
	}
	s.work.Done()
	for cl := range s.clients {
		cl.Close()
		cl.Close() // counts once
	}
	if len(s.pending) != 0 || len(s.clients) != 0 {
		t.Errorf("left: %v, %v", s.pending, s.clients)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestShutdownWaits checks a drain: streams go on, new and idle connections end.
func TestShutdownWaits(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	h, err := NewHTTP(listen(t, "127.0.0.1:0"), nil, frontConfig(o))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx, patience) }()

	stream := dialFront(t, h)
	send(t, stream, "CONNECT x:1 HTTP/1.1\r\n\r\n")
	expect(t, stream, established)
	idle := dialFront(t, h)
	kept := dialFront(t, h)
	if res, _ := exchange(t, kept, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); res.StatusCode != 400 {
		t.Fatalf("status %d", res.StatusCode)
	}
	cancel()
	for name, conn := range map[string]net.Conn{"idle": idle, "kept alive": kept} {
		if b, err := io.ReadAll(conn); len(b) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the %s connection got %q, %v", name, b, err)
		}
	}
	if _, err := net.Dial("tcp", h.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v", err)
	}
	send(t, stream, "still here")
	expect(t, stream, "still here")
	select {
	case err := <-ran:
		t.Fatalf("the drain did not wait: %v", err)
	default:
	}
	stream.Close()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// TestShutdownCuts checks what becomes of streams that outlive the drain: a
// reset, since an end would look as if all had been said.
func TestShutdownCuts(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	web := serveWeb(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	opening := &fakeOpener{dial: func(ctx context.Context, _ AgentRef, _ wire.Target) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	for name, c := range map[string]struct {
		o       *fakeOpener
		request string
		answer  string
	}{
		"stream":  {o, "CONNECT x:1 HTTP/1.1\r\n\r\n", established},
		"request": {web, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		"opening": {opening, "CONNECT x:1 HTTP/1.1\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			arrived := make(chan struct{}, 1)
			dial := c.o.dial
			cfg := frontConfig(&fakeOpener{dial: func(ctx context.Context, a AgentRef, w wire.Target) (net.Conn, error) {
				arrived <- struct{}{}
				return dial(ctx, a, w)
			}})
			h, err := NewHTTP(listen(t, "127.0.0.1:0"), nil, cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- h.Run(ctx, 20*time.Millisecond) }()
			conn := dialFront(t, h)
			send(t, conn, c.request)
			expect(t, conn, c.answer)
			<-arrived
			cancel()
			if b, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client got %q, %v; want a reset", b, err)
			}
			if err := <-ran; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
