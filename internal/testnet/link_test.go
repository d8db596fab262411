package testnet_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/testnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs handle for each connection to a loopback port until the test ends.
func serve(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// echo sends back what it reads and ends when its reader does.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func listen(t *testing.T, cfg testnet.Config) *testnet.Link {
	t.Helper()
	l, err := testnet.Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// ping sends one byte through an echo and returns how long it took.
func ping(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func TestLinkCarriesEveryByteBothWaysAndHalfCloses(t *testing.T) {
	t.Parallel()
	l := listen(t, testnet.Config{Target: serve(t, echo), Delay: 2 * time.Millisecond, Rate: 50 << 20})
	c := dial(t, l.Addr())
	sent := make([]byte, 5<<20+17)
	rand.Read(sent)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatalf("got %d bytes that differ from the %d sent", len(got), len(sent))
	}
	if up, down := l.Delivered(testnet.Up), l.Delivered(testnet.Down); up != int64(len(sent)) || down != up {
		t.Errorf("delivered %d up and %d down, want %d both", up, down, len(sent))
	}
}

func TestLinkDelaysARoundTripByTwiceItsDelay(t *testing.T) {
	t.Parallel()
	l := listen(t, testnet.Config{Target: serve(t, echo), Delay: 40 * time.Millisecond})
	c := dial(t, l.Addr())
	ping(t, c)
	best := time.Hour // a busy machine delays some of them further
	for range 20 {
		rtt := ping(t, c)
		if rtt < 80*time.Millisecond {
			t.Errorf("round trip took %v, less than 80ms", rtt)
		}
		if best = min(best, rtt); best <= 160*time.Millisecond {
			return
		}
	}
	t.Errorf("the quickest of 20 round trips took %v, want about 80ms", best)
}

// pour writes zeros until the connection fails.
func pour(c *net.TCPConn) {
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// receive reads n bytes and returns the rate in bytes per second.
func receive(t *testing.T, c net.Conn, n int64) float64 {
	t.Helper()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
		return 0
	}
	start := time.Now()
	if _, err := io.CopyN(io.Discard, c, n); err != nil {
		t.Error(err)
		return 0
	}
	return float64(n) / time.Since(start).Seconds()
}

func TestLinkKeepsItsRate(t *testing.T) {
	t.Parallel()
	const rate = 20 << 20
	for _, tt := range []struct {
		name   string
		shared bool
		conns  int
		want   float64 // of all connections together
	}{
		{"one connection", false, 1, rate},
		{"each its own", false, 2, 2 * rate},
		{"shared", true, 4, rate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, testnet.Config{
				Target: serve(t, pour), Delay: 10 * time.Millisecond, Rate: rate, Shared: tt.shared,
			})
			var wg sync.WaitGroup
			rates := make([]float64, tt.conns)
			for i := range rates {
				c := dial(t, l.Addr())
				wg.Go(func() { rates[i] = receive(t, c, 8<<20) })
			}
			wg.Wait()
			var sum float64
			for _, r := range rates {
				sum += r
			}
			if sum < tt.want/10 || sum > tt.want*2 { // a busy machine may be slower, and never faster
				t.Errorf("%d connections moved %.1f MB/s, want about %.1f", tt.conns, sum/1e6, tt.want/1e6)
			}
		})
	}
}

func TestLinkHoldsOnlyItsQueueForAStalledReader(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	written, last := 0, time.Now()
	target := serve(t, func(c *net.TCPConn) {
		_ = c.SetWriteBuffer(64 << 10)
		b := make([]byte, 64<<10)
		for {
			n, err := c.Write(b)
			mu.Lock()
			written, last = written+n, time.Now()
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	l := listen(t, testnet.Config{Target: target, Rate: 100 << 20, Queue: 1 << 20})
	c := dial(t, l.Addr())
	_ = c.SetReadBuffer(64 << 10)
	for { // wait until the sender has been held back for a while
		mu.Lock()
		n, idle := written, time.Since(last)
		mu.Unlock()
		if n > 0 && idle > 300*time.Millisecond {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	// Queue, chunks in hand, and the kernel's buffers of four sockets.
	if written > 6<<20 {
		t.Errorf("the sender got rid of %d bytes although nobody reads", written)
	}
}

func TestFreezeStopsBytesAndThawLosesNone(t *testing.T) {
	t.Parallel()
	l := listen(t, testnet.Config{Target: serve(t, echo)})
	c := dial(t, l.Addr())
	ping(t, c)
	l.Freeze()
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes and error %v through a frozen link, want a time-out", n, err)
	}
	l.Thaw()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, []byte("held")) {
		t.Fatalf("after the thaw: %q, %v", got, err)
	}
}

func TestIdleCutsOnlyWhatIsSilent(t *testing.T) {
	t.Parallel()
	const idle = time.Second // for which a busy machine does not stand still while it writes one byte
	l := listen(t, testnet.Config{Target: serve(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }), Idle: idle})
	started := time.Now()
	busy, silent := dial(t, l.Addr()), dial(t, l.Addr())
	ended := make(chan error, 1)
	go func() {
		_, err := silent.Read(make([]byte, 1))
		ended <- err
	}()
	for cut := false; !cut || time.Since(started) < 3*idle; { // one direction is enough to be busy
		if _, err := busy.Write([]byte("x")); err != nil {
			t.Fatalf("after %s: %v", time.Since(started), err)
		}
		select {
		case err := <-ended:
			if cut = true; err == nil || time.Since(started) < idle {
				t.Errorf("the silent connection ended with %v after %s", err, time.Since(started))
			}
		case <-time.After(idle / 20):
		}
	}
	if n := l.Idled(); n != 1 {
		t.Errorf("%d connections were cut for their silence, want 1", n)
	}
}

func TestCutResetsBothEnds(t *testing.T) {
	t.Parallel()
	targetErr := make(chan error, 1)
	l := listen(t, testnet.Config{Target: serve(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		targetErr <- err
	})})
	c := dial(t, l.Addr())
	ping(t, c)
	if n := l.Conns(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	l.Cut()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("dialling end read %v, want a reset", err)
	}
	if err := <-targetErr; err == nil {
		t.Error("target saw a clean end, want a reset")
	}
	ping(t, dial(t, l.Addr())) // the link itself is as before
}

func TestCutAfterDeliversExactlyThatMany(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, 1000, 300_001} {
		got := make(chan int64, 1)
		l := listen(t, testnet.Config{Target: serve(t, func(c *net.TCPConn) {
			k, _ := io.Copy(io.Discard, c)
			got <- k
		})})
		l.CutAfter(testnet.Up, n)
		c := dial(t, l.Addr())
		if _, err := c.Write(make([]byte, 1<<20)); err == nil {
			_, err = c.Read(make([]byte, 1))
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("after %d bytes: %v, want a reset", n, err)
			}
		}
		if k := <-got; k > n {
			t.Errorf("target received %d bytes, want at most %d", k, n)
		}
		if d := l.Delivered(testnet.Up); d != n {
			t.Errorf("delivered %d bytes, want %d", d, n)
		}
	}
}

func TestHalfOpenIsDeafOneWay(t *testing.T) {
	t.Parallel()
	heard := make(chan byte, 16)
	l := listen(t, testnet.Config{Target: serve(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			heard <- b[0]
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})})
	c := dial(t, l.Addr())
	ping(t, c)
	<-heard
	l.HalfOpen(testnet.Down)
	if _, err := c.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	if b := <-heard; b != 7 {
		t.Errorf("target heard %d, want 7", b)
	}
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read through the deaf direction: %v, want a time-out", err)
	}
}

func TestRefuseResetsOnlyNewConnections(t *testing.T) {
	t.Parallel()
	l := listen(t, testnet.Config{Target: serve(t, echo)})
	old := dial(t, l.Addr())
	ping(t, old)
	l.Refuse(true)
	if c, err := net.Dial("tcp", l.Addr()); err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a new connection was served")
		}
		c.Close()
	}
	ping(t, old)
	l.Refuse(false)
	ping(t, dial(t, l.Addr()))
}

func TestClosingAFrozenLinkEndsEverything(t *testing.T) {
	t.Parallel()
	l := listen(t, testnet.Config{Target: serve(t, echo), Delay: time.Hour})
	c := dial(t, l.Addr())
	if _, err := c.Write([]byte("never arrives")); err != nil {
		t.Fatal(err)
	}
	l.Freeze()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := l.Conns(); n != 0 {
		t.Errorf("%d connections after Close", n)
	}
}
