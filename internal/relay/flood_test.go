package relay_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/wire"
)

// from dials the relay from one of the many addresses that loopback has, so that a
// flood does not meet the bound of one source.
func (s *site) from(i int) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 0, byte(2+i%16))}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	_ = tcp.SetLinger(0) // leave nothing behind
	_ = tcp.SetDeadline(time.Now().Add(30 * time.Second))
	return tcp, nil
}

// hello is the first flight of a TLS client.
func hello(cfg *tls.Config) []byte {
	var first []byte
	_ = tls.Client(&capture{first: &first}, cfg).Handshake()
	return first
}

type capture struct {
	net.Conn
	first *[]byte
}

func (c *capture) Write(b []byte) (int, error) { *c.first = append(*c.first, b...); return len(b), nil }
func (c *capture) Read([]byte) (int, error)    { return 0, io.EOF }

func (c *capture) SetDeadline(time.Time) error { return nil }
func (c *capture) Close() error                { return nil }

// TestFlood sends ten thousand callers who never do what they should: they are
// silent, say anything, stop in the middle of a handshake, prove nothing, or prove who
// they are and then dawdle. All are gone in the end, with what they cost, and a
// pipe can be joined as ever.
func TestFlood(t *testing.T) {
	const short = time.Second // callers dawdle for so long, and good ones meet within it
	s := start(t, func(c *relay.Config) { c.HandshakeTime, c.JoinTime, c.MeetTime = short, short, short })
	a, b := s.meet(t)
	_, _ = a.Close(), b.Close()
	flight := hello(s.outer(s.Agent))
	read := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	proved := func(c net.Conn, say []byte) {
		tc := tls.Client(c, s.outer(s.Agent))
		if tc.Handshake() == nil {
			if len(say) > 0 {
				_, _ = tc.Write(say)
			}
			read(tc)
		}
	}
	kinds := []struct {
		name string
		n    int
		do   func(net.Conn)
	}{
		{"silent", 3600, read},
		{"gone at once", 2400, func(net.Conn) {}},
		{"garbage", 2000, func(c net.Conn) {
			b := make([]byte, 200)
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			_, _ = c.Write(b)
			read(c)
		}},
		{"a record that never ends", 700, func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1, 64, 0}); read(c) }},
		{"half a hello", 800, func(c net.Conn) { _, _ = c.Write(flight[:len(flight)/2]); read(c) }},
		{"a hello and no more", 200, func(c net.Conn) { _, _ = c.Write(flight); read(c) }},
		{"no certificate", 50, func(c net.Conn) { tc := tls.Client(c, s.outer(nil)); _ = tc.Handshake(); read(c) }},
		{"no protocol of ours", 50, func(c net.Conn) {
			cfg := s.outer(nil)
			cfg.NextProtos = []string{"smtp"}
			_ = tls.Client(c, cfg).Handshake()
			read(c)
		}},
		{"a party that says nothing", 50, func(c net.Conn) { proved(c, nil) }},
		{"a party that says anything", 50, func(c net.Conn) { proved(c, []byte("JOIN me if you can")) }},
		{"a ticket for nobody", 50, func(c net.Conn) {
			proved(c, wire.Join{Kind: wire.JoinMeet, Ticket: wire.NewTicket("n1")}.Append(nil))
		}},
		{"half a probe", 50, func(c net.Conn) {
			if bare, err := pipe.Join(t.Context(), c, s.outer(s.Agent), wire.Join{Kind: wire.JoinProbe}); err == nil {
				_, _ = bare.Write(make([]byte, wire.ProbeLen/2))
				read(bare)
			}
		}},
	}
	var work []func(net.Conn)
	for _, k := range kinds {
		for range k.n {
			work = append(work, k.do)
		}
	}
	if len(work) != 10_000 {
		t.Fatal(len(work))
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(work), func(i, j int) { work[i], work[j] = work[j], work[i] })

	goroutines, memory := runtime.NumGoroutine(), heap()
	peak := int64(0)
	var next, refused atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range 800 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(work) {
					return
				}
				c, err := s.from(i)
				if err != nil {
					refused.Add(1)
					continue
				}
				work[i](c)
				_ = c.Close()
			}
		})
	}
	wg.Go(func() {
		for int(next.Load()) < len(work) {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, int64(m.HeapAlloc+m.StackInuse))
			time.Sleep(20 * time.Millisecond)
		}
	})
	wg.Wait()
	t.Logf("%d callers in %s, %d could not connect; memory %d KiB before, %d at most", len(work), time.Since(begin).Round(time.Millisecond),
		refused.Load(), memory>>10, peak>>10)
	if refused.Load() > 100 {
		t.Errorf("%d callers could not even connect", refused.Load())
	}
	if peak > memory+256<<20 { // both sides of 800 handshakes at once, in one process
		t.Errorf("memory rose to %d MiB", peak>>20)
	}

	within(t, 10*time.Second, func() string {
		if n := runtime.NumGoroutine(); n > goroutines+5 {
			return fmt.Sprintf("%d goroutines; there were %d", n, goroutines)
		}
		if parties, _ := s.relay.Waiting(); parties > 0 {
			return fmt.Sprintf("%d parties wait", parties)
		}
		if n := s.relay.Pipes(); n > 0 {
			return fmt.Sprintf("%d pipes", n)
		}
		return ""
	})
	if left := heap() - memory; left > 4<<20 {
		t.Errorf("%d KiB are left of the flood", left>>10)
	}
	a, b = s.meet(t)
	_, _ = a.Close(), b.Close()
}

// heap returns what is in use on the heap, garbage and idle pools not counted.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// within waits until what tells nothing wrong.
func within(t *testing.T, limit time.Duration, what func() string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		wrong := what()
		if wrong == "" {
			return
		}
		if time.Since(begin) > limit {
			t.Errorf("after %s: %s", limit, wrong)
			return
		}
	}
}
