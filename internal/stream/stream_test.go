package stream_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a stream.Host that remembers how pipes came back.
type host struct {
	wg      sync.WaitGroup
	bufs    *pipe.Buffers
	done    chan bool
	in, out atomic.Int64
}

func newHost(bufs *pipe.Buffers) *host { return &host{bufs: bufs, done: make(chan bool, 16)} }

func (h *host) Done(p *pipe.Pipe, clean bool) {
	if !clean {
		p.Close()
	}
	h.done <- clean
}
func (h *host) Go(f func())            { h.wg.Go(f) }
func (h *host) Buffers() *pipe.Buffers { return h.bufs }
func (h *host) Count(in, out int)      { h.in.Add(int64(in)); h.out.Add(int64(out)) }

// world is a pipe with a host at each end.
type world struct {
	*pipetest.World
	client, server         *pipe.Pipe
	clientHost, serverHost *host
}

func newWorld(t testing.TB) *world {
	w := &world{World: pipetest.NewWorld(t)}
	w.client, w.server = w.Pair(t, nil)
	w.clientHost, w.serverHost = newHost(w.Buffers), newHost(w.Buffers)
	t.Cleanup(func() { w.clientHost.wg.Wait(); w.serverHost.wg.Wait() })
	return w
}

// open makes a stream over the world's pipe.
func (w *world) open(t testing.TB) (client, server *stream.Stream) {
	t.Helper()
	client, server, err := w.connect(t.Context())
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	return client, server
}

func (w *world) connect(ctx context.Context) (client, server *stream.Stream, err error) {
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() {
		var in *stream.Incoming
		if in, serverErr = stream.Accept(w.server); serverErr == nil {
			server, serverErr = in.Accept("192.0.2.1:80", w.serverHost)
		}
	})
	client, err = stream.Open(ctx, w.client, wire.Open{Stream: stream.NewID(), Target: "tcp:example.com:80"}, nil, w.clientHost)
	wg.Wait()
	return client, server, errors.Join(err, serverErr)
}

func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		w := newWorld(t)
		c, s := w.open(t)
		return c, s, func() {
			_, _ = c.Close(), s.Close()
			w.clientHost.wg.Wait()
			w.serverHost.wg.Wait()
		}, nil
	})
}

func TestHalfCloseBothWaysAndReuse(t *testing.T) {
	w := newWorld(t)
	for round := range 3 {
		c, s := w.open(t)
		if got := c.RemoteAddr().String(); got != "192.0.2.1:80" {
			t.Errorf("RemoteAddr = %q", got)
		}
		exchange(t, c, s, "question")
		exchange(t, s, c, "answer")
		_, _ = c.Close(), s.Close()
		if a, b := <-w.clientHost.done, <-w.serverHost.done; !a || !b {
			t.Fatalf("round %d: pipe came back clean: %v, %v", round, a, b)
		}
	}
}

// exchange writes text to a, ends that direction, and wants b to read just that.
func exchange(t *testing.T, a, b *stream.Stream, text string) {
	t.Helper()
	if _, err := a.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	if err != nil || string(got) != text {
		t.Fatalf("read %q, %v; want %q", got, err, text)
	}
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	if _, err := c.Write(bytes.Repeat([]byte("x"), 200_000)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	got, err := io.ReadAll(s)
	if err != nil || len(got) != 200_000 {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if _, err := s.Write([]byte("late")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to a closed stream: %v; want EPIPE", err)
	}
	_ = s.Close()
	if a, b := <-w.clientHost.done, <-w.serverHost.done; !a || !b {
		t.Errorf("pipe came back clean: %v, %v", a, b)
	}
}

func TestResetReachesThePeer(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	c.Reset(wire.Fail(wire.LegClient, wire.CodeReset, "client went away"))
	_, err := s.Read(make([]byte, 1))
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeReset || f.Leg != wire.LegClient {
		t.Fatalf("read after reset: %v", err)
	}
	_ = s.Close()
	if a, b := <-w.clientHost.done, <-w.serverHost.done; a || b {
		t.Errorf("pipe came back clean after a reset: %v, %v", a, b)
	}
}

func TestBrokenPipeIsNeverACleanEnd(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	if _, err := c.Write([]byte("part")); err != nil {
		t.Fatal(err)
	}
	w.client.Close()
	_, err := io.ReadAll(s)
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeLost {
		t.Fatalf("read from a broken pipe: %v; want CodeLost", err)
	}
	_, _ = c.Close(), s.Close()
	<-w.clientHost.done
	<-w.serverHost.done
}

func TestRefusalLeavesThePipeUsable(t *testing.T) {
	w := newWorld(t)
	want := wire.Fail(wire.LegPolicy, wire.CodeDenied, "no rule allows it").WithHint("add one")
	var wg sync.WaitGroup
	wg.Go(func() {
		in, err := stream.Accept(w.server)
		if err == nil {
			err = in.Refuse(want, w.serverHost)
		}
		if err != nil {
			t.Errorf("refusing: %v", err)
		}
	})
	_, err := stream.Open(t.Context(), w.client, wire.Open{Target: "tcp:example.com:80"}, nil, w.clientHost)
	wg.Wait()
	var f *wire.Failure
	if !errors.As(err, &f) || f.Error() != want.Error() {
		t.Fatalf("got %v, want %v", err, want)
	}
	if !<-w.clientHost.done {
		t.Fatal("pipe did not come back clean")
	}
	c, s := w.open(t)
	exchange(t, c, s, "still works")
	_, _ = c.Close(), s.Close()
}

func TestOpenGivesUpWithItsContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // OPEN is to be out by then
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := stream.Accept(w.server); err != nil {
			t.Errorf("accept: %v", err)
		}
		if _, err := w.server.Next(); err != nil {
			t.Errorf("next: %v", err)
		}
		w.server.Close()
	})
	_, err := stream.Open(ctx, w.client, wire.Open{Target: "tcp:example.com:80"}, nil, w.clientHost)
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeTimeout {
		t.Fatalf("got %v, want a time-out", err)
	}
	wg.Wait()
	if <-w.clientHost.done {
		t.Error("pipe came back clean")
	}
}

// TestCarry moves different bytes both ways at once, through local sockets at
// both ends, and compares what arrives.
func TestCarry(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	near, nearLocal := pipetest.TCPPair(t, nil)
	far, farLocal := pipetest.TCPPair(t, nil)
	var wg sync.WaitGroup
	var a, b stream.Stats
	var aErr, bErr error
	early := []byte("early")
	wg.Go(func() { a, aErr = c.Carry(nearLocal, early, wire.LegClient) })
	wg.Go(func() { b, bErr = s.Carry(farLocal, nil, wire.LegTarget) })
	up, down := random(3<<20), random(5<<20)
	wg.Go(func() { sendAll(t, near, up) })
	wg.Go(func() { sendAll(t, far, down) })
	var gotUp, gotDown []byte
	wg.Go(func() { gotUp, _ = io.ReadAll(far) })
	wg.Go(func() { gotDown, _ = io.ReadAll(near) })
	wg.Wait()
	if aErr != nil || bErr != nil {
		t.Fatalf("carry: %v, %v", aErr, bErr)
	}
	if sha256.Sum256(gotUp) != sha256.Sum256(append(early, up...)) || sha256.Sum256(gotDown) != sha256.Sum256(down) {
		t.Errorf("bytes differ: up %d of %d, down %d of %d", len(gotUp), len(up)+len(early), len(gotDown), len(down))
	}
	if a.Out != int64(len(gotUp)) || a.In != int64(len(gotDown)) || b.In != a.Out || b.Out != a.In {
		t.Errorf("stats %+v and %+v", a, b)
	}
	if x, y := <-w.clientHost.done, <-w.serverHost.done; !x || !y {
		t.Errorf("pipe came back clean: %v, %v", x, y)
	}
	_, _ = near.Close(), far.Close()
}

func TestCarryTurnsResetIntoReset(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	near, nearLocal := pipetest.TCPPair(t, nil)
	far, farLocal := pipetest.TCPPair(t, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Carry(nearLocal, nil, wire.LegClient); err == nil {
			t.Error("carry at the client: no error")
		}
	})
	wg.Go(func() {
		_, err := s.Carry(farLocal, nil, wire.LegTarget)
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != wire.CodeReset {
			t.Errorf("carry at the target: %v", err)
		}
	})
	_ = far.(*net.TCPConn).SetLinger(0)
	_ = far.Close()
	_, err := near.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %v; want a connection reset", err)
	}
	_ = near.Close()
	wg.Wait()
}

func TestCarryResetsTheClientWhenThePipeBreaks(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	near, nearLocal := pipetest.TCPPair(t, nil)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Carry(nearLocal, nil, wire.LegClient) })
	w.server.Close()
	_, err := near.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %v; want a connection reset, never an end", err)
	}
	_, _ = near.Close(), s.Close()
	wg.Wait()
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func sendAll(t *testing.T, c net.Conn, b []byte) {
	if _, err := c.Write(b); err != nil {
		t.Errorf("sending: %v", err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
}
