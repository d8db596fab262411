package headroom

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	t.Parallel()
	c := Config{Percent: 75, Floor: 8 << 20}
	for live, want := range map[uint64]int{0: maxPercent, 1 << 10: maxPercent, 2 << 20: 400, 3 << 20: 250, 8 << 20: 100, 9 << 20: 75, 1 << 30: 75} {
		if got := c.percent(live); got != want {
			t.Errorf("%d bytes: %d, want %d", live, got, want)
		}
	}
}

// TestKeep sees the collector follow the heap. It is alone with it.
func TestKeep(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	now := func() int {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return int(s[0].Value.Uint64())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Keep(ctx, Config{Percent: 60, Floor: 64 << 20})
	}()
	for now() < 300 { // the heap of a test is small
		runtime.GC()
		runtime.Gosched()
	}
	func() {
		held := make([]byte, 256<<20)
		for now() != 60 {
			runtime.GC()
			runtime.Gosched()
		}
		runtime.KeepAlive(held)
	}()
	runtime.GC()
	for look().spare() > 128<<20 { // given back when all is quiet
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if p := now(); p != 100 {
		t.Errorf("left at %d", p)
	}
}
