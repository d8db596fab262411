package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/wire"
)

// patience bounds what a test waits for; reaching it is a failure.
const patience = 20 * time.Second

// fakeOpener opens streams to targets of this process.
type fakeOpener struct {
	dial func(ctx context.Context, agent AgentRef, target wire.Target) (net.Conn, error)

	leaving context.Context // of streams opened from now on; nil if the other side stays

	mu    sync.Mutex
	asked []string
}

func (o *fakeOpener) Open(ctx context.Context, r Request) (Stream, error) {
	o.mu.Lock()
	o.asked = append(o.asked, r.Agent.String()+" "+r.Target.String())
	o.mu.Unlock()
	conn, err := o.dial(ctx, r.Agent, r.Target)
	if err != nil {
		return nil, err
	}
	if len(r.Early) > 0 {
		if _, err := conn.Write(r.Early); err != nil {
			return nil, err
		}
	}
	return &fakeStream{conn.(*net.TCPConn), o.leaving}, nil
}

func (o *fakeOpener) opened() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.asked...)
}

type fakeStream struct {
	*net.TCPConn
	leaving context.Context // nil if the other side stays
}

func (s *fakeStream) OnLeave(f func()) func() bool {
	if s.leaving == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(s.leaving, f)
}

func (s *fakeStream) Carry(local net.Conn, early []byte) (Stats, error) {
	l := local.(*net.TCPConn)
	var stats Stats
	var wg sync.WaitGroup
	var errs [2]error
	move := func(err *error, n *int64, dst, src *net.TCPConn, first []byte) {
		written, e := io.Copy(dst, io.MultiReader(strings.NewReader(string(first)), src))
		*n = written
		if e != nil {
			*err = e
			_ = l.SetLinger(0)
			_ = s.SetLinger(0)
			_ = l.Close()
			_ = s.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	wg.Go(func() { move(&errs[0], &stats.BytesIn, l, s.TCPConn, nil) })
	wg.Go(func() { move(&errs[1], &stats.BytesOut, s.TCPConn, l, early) })
	wg.Wait()
	_ = l.Close()
	_ = s.Close()
	return stats, errors.Join(errs[:]...)
}

// serveTarget runs handle for each connection to a new listener.
func serveTarget(t *testing.T, handle func(*net.TCPConn)) (dial func(context.Context, AgentRef, wire.Target) (net.Conn, error)) {
	t.Helper()
	ln := listen(t, "127.0.0.1:0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return func(ctx context.Context, _ AgentRef, _ wire.Target) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	}
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func fails(f *wire.Failure) *fakeOpener {
	return &fakeOpener{dial: func(context.Context, AgentRef, wire.Target) (net.Conn, error) { return nil, f }}
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// recorder keeps what an Observer is told.
type recorder struct {
	mu     sync.Mutex
	events map[string][]Event
	closed chan Event
}

func newRecorder() *recorder {
	return &recorder{events: make(map[string][]Event), closed: make(chan Event, 1000)}
}

func (r *recorder) add(kind string, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events[kind] = append(r.events[kind], e)
}

func (r *recorder) get(kind string) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events[kind]...)
}

func (r *recorder) Accepted(f Front) { r.add("accepted", Event{Front: f}) }
func (r *recorder) Refused(e Event)  { r.add("refused", e) }
func (r *recorder) Opened(e Event)   { r.add("opened", e) }
func (r *recorder) Failed(e Event)   { r.add("failed", e) }
func (r *recorder) Closed(e Event)   { r.add("closed", e); r.closed <- e }

func frontConfig(o Opener) FrontConfig {
	return FrontConfig{
		Opener:        o,
		Router:        Router{Suffix: "postern.internal", Organization: "default", Agent: "edge", Organizations: true},
		Log:           slog.New(slog.DiscardHandler),
		HeaderTimeout: patience,
		OpenTimeout:   patience,
	}
}

type runnable interface {
	Serve() error
	Shutdown(ctx context.Context) error
	Addr() net.Addr
}

// run serves until the test ends.
func run[T runnable](t *testing.T, front T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := front.Serve(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := front.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		wg.Wait()
	})
	return front
}

func startHTTP(t *testing.T, access *Access, cfg FrontConfig) *HTTP {
	t.Helper()
	h, err := NewHTTP(listen(t, "127.0.0.1:0"), access, cfg)
	return run(t, h, err)
}

func startSOCKS(t *testing.T, access *Access, cfg FrontConfig) *SOCKS5 {
	t.Helper()
	s, err := NewSOCKS5(listen(t, "127.0.0.1:0"), access, cfg)
	return run(t, s, err)
}

// dialFront connects a client.
func dialFront(t *testing.T, front runnable) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if string(got[:n]) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

// exchange sends a request and reads one response.
func exchange(t *testing.T, conn net.Conn, request string) (*http.Response, string) {
	t.Helper()
	send(t, conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: read body: %v", request, err)
	}
	return res, string(body)
}
