package stream_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// use returns what one stream may use at a rate of bytes per second.
func use(t testing.TB, rate limit.Value) *limit.Use {
	t.Helper()
	b := limit.NewBook(limit.Options{Defaults: limit.Table{limit.Organization: {Bytes: rate}}})
	u, refusal := b.Enter(limit.OneStream, "acme", "west", "near")
	if refusal != nil {
		t.Fatal(refusal)
	}
	return u
}

// TestConnWithinLimits: a limit that is wide enough changes nothing.
func TestConnWithinLimits(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		w := newWorld(t)
		c, s := w.open(t)
		c.Limit(use(t, 1<<30))
		s.Limit(use(t, 1<<30))
		return c, s, func() {
			_, _ = c.Close(), s.Close()
			w.clientHost.wg.Wait()
			w.serverHost.wg.Wait()
		}, nil
	})
}

// TestBytesOfAStreamWait moves two seconds' worth each way, where the first is there
// at once: it takes three at least, as both directions count.
func TestBytesOfAStreamWait(t *testing.T) {
	const rate = 64 << 10
	w := newWorld(t)
	c, s := w.open(t)
	s.Limit(use(t, rate))
	near, nearLocal := pipetest.TCPPair(t, nil)
	far, farLocal := pipetest.TCPPair(t, nil)
	begin := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Carry(nearLocal, nil, wire.LegClient) })
	wg.Go(func() { _, _ = s.Carry(farLocal, nil, wire.LegTarget) })
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		wg.Go(func() {
			_, _ = way[0].Write(make([]byte, 2*rate))
			_ = way[0].(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, way[1]); n != 2*rate || err != nil {
				t.Errorf("%d bytes arrived: %v", n, err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took < 3*time.Second-time.Millisecond {
		t.Errorf("took %s", took)
	}
	if a, b := <-w.clientHost.done, <-w.serverHost.done; !a || !b {
		t.Errorf("pipe came back clean: %v, %v", a, b)
	}
	_, _ = near.Close(), far.Close()
}

// TestResetEndsTheWait cuts a stream whose bytes would wait for hours.
func TestResetEndsTheWait(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	u := use(t, 16<<10)
	if !u.Take(16<<10, s) {
		t.Fatal("gave up")
	}
	s.Limit(u)
	near, nearLocal := pipetest.TCPPair(t, nil)
	far, farLocal := pipetest.TCPPair(t, nil)
	errs := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { _, err := c.Carry(nearLocal, nil, wire.LegClient); errs <- err })
	wg.Go(func() { _, err := s.Carry(farLocal, nil, wire.LegTarget); errs <- err })
	wg.Go(func() { _ = flood(near) })
	wg.Go(func() { _ = flood(far) })
	for u.Chunk(1<<20) > 16<<10 { // until one waits
		time.Sleep(time.Millisecond)
	}
	cut := wire.Fail(wire.LegPolicy, wire.CodeDenied, "no longer allowed")
	s.Reset(cut)
	for range 2 {
		var f *wire.Failure
		if err := <-errs; !errors.As(err, &f) || f.Code != wire.CodeDenied {
			t.Errorf("carry: %v; want %v", err, cut)
		}
	}
	_, _ = near.Close(), far.Close()
	wg.Wait()
	<-w.clientHost.done
	<-w.serverHost.done
	u.Leave()
}
