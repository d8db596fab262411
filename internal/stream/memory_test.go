package stream_test

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// memory returns what the heap and the stacks of this process take, in bytes.
func memory() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools give back at the second
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestMemoryOfStreams holds many streams open: idle ones, and ones whose reader
// reads nothing while their writer always has more. Both ends are in this process, and
// what is measured is for both.
func TestMemoryOfStreams(t *testing.T) {
	base, zeros := pipetest.NewWorld(t), make([]byte, 64<<10)
	for name, tt := range map[string]struct {
		stalled bool
		most    int64 // bytes per stream
	}{
		"idle":    {false, 80 << 10}, // 40 KiB at each end
		"stalled": {true, 640 << 10}, // a frame in the clear and one sealed at each end, and what TLS holds
	} {
		t.Run(name, func(t *testing.T) {
			const n = 20
			var all []*joined
			before := memory()
			for range n {
				all = append(all, narrow(t, base))
			}
			var floods sync.WaitGroup
			if tt.stalled {
				for _, j := range all {
					_ = j.target.SetWriteDeadline(time.Time{})
					floods.Go(func() {
						for {
							if _, err := j.target.Write(zeros); err != nil {
								return
							}
						}
					})
				}
				settle(t, all)
			}
			// Buffers go back as goroutines come to rest, which takes its time on a busy machine.
			per := (memory() - before) / n
			for begin := time.Now(); per > tt.most && time.Since(begin) < 20*time.Second; per = (memory() - before) / n {
				time.Sleep(100 * time.Millisecond)
			}
			if per > tt.most {
				t.Errorf("%d KiB per stream; want at most %d", per>>10, tt.most>>10)
			} else {
				t.Logf("%d KiB per stream", per>>10)
			}

			// Beside them another one works as ever.
			w := &world{World: base}
			w.client, w.server = base.Pair(t, nil)
			w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
			j := w.join(t, nil)
			b := random(1 << 20)
			go sendAll(t, j.target, b)
			if got, err := io.ReadAll(j.client); err != nil || len(got) != len(b) {
				t.Errorf("another stream: %d bytes of %d, %v", len(got), len(b), err)
			}
			if !j.end() {
				t.Error("another stream did not end well")
			}
			for _, j := range all {
				abort(j.client)
				abort(j.target)
				j.end()
			}
			floods.Wait()
		})
	}
}

// narrow joins a client and a target over connections with small kernel buffers, so
// that it does not take long to fill them.
func narrow(t *testing.T, base *pipetest.World) *joined {
	t.Helper()
	w := &world{World: base}
	w.client, w.server = base.Pair(t, func(addr string) (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			shrink(c)
		}
		return c, err
	})
	w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
	j := w.join(t, nil)
	for _, c := range []net.Conn{j.client, j.clientLocal, j.target, j.targetLocal} {
		shrink(c)
	}
	return j
}

func shrink(c net.Conn) {
	_ = c.(*net.TCPConn).SetReadBuffer(32 << 10)
	_ = c.(*net.TCPConn).SetWriteBuffer(32 << 10)
}

// settle waits until streams move nothing any more.
func settle(t *testing.T, all []*joined) {
	moved := func() (n int64) {
		for _, j := range all {
			n += j.clientHost.in.Load() + j.serverHost.out.Load()
		}
		return n
	}
	for last, since, begin := int64(-1), time.Now(), time.Now(); time.Since(since) < 300*time.Millisecond; {
		if n := moved(); n != last {
			last, since = n, time.Now()
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("streams whose client reads nothing move on and on")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if moved() < int64(len(all))*wire.MaxPayloadLen {
		t.Error("the streams are not stalled but never began")
	}
}
