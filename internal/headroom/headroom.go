// Package headroom suits the garbage collector to programs that hold many connections
// and little else.
//
// By itself the collector runs whenever the heap has grown by a share of what is in use.
// Of a few megabytes that is so little that one in a hundred requests meets a collection,
// and waits for it. And what a burst of connections has left behind in memory, most of it
// garbage of their handshakes, stays there while nothing more happens.
package headroom

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Config says how the collector is to run.
type Config struct {
	Percent int    // by which the heap may grow between two collections, as GOGC
	Floor   uint64 // bytes that it may grow by in any case
}

// When memory is given back to the system: once little was allocated for a moment after
// a collection, if it is worth while and was not done lately.
const (
	quietTime  = 500 * time.Millisecond
	quietBytes = 512 << 10
	worth      = 4 << 20
	freeEvery  = 5 * time.Second
)

// maxPercent bounds what a nearly empty heap is given.
const maxPercent = 1000

// Keep suits the collector until ctx ends. One call of it in a process.
func Keep(ctx context.Context, c Config) {
	collected := make(chan struct{}, 1)
	watch(ctx, collected)
	defer debug.SetGCPercent(debug.SetGCPercent(c.Percent))
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	last, freed := c.Percent, time.Time{}
	before := look()
	for {
		now := look()
		if next := c.percent(now.base); next < last || next >= last+last/4 { // each change stops the world
			debug.SetGCPercent(next)
			last = next
		}
		select {
		case <-ctx.Done():
			return
		case <-collected:
			before = look()
			quiet.Reset(quietTime)
		case <-quiet.C:
			now = look()
			if now.allocated-before.allocated > quietBytes || time.Since(freed) < freeEvery {
				before = now
				quiet.Reset(quietTime)
			} else if now.spare() > max(worth, now.base/4) {
				runtime.GC() // stacks shrink by half at a time, and pools are emptied by the second
				runtime.GC()
				debug.FreeOSMemory()
				freed = time.Now()
			}
		}
	}
}

// percent returns what the collector is told when so much is in use.
func (c Config) percent(base uint64) int {
	const step = 25
	p := maxPercent
	if base > 0 {
		p = int(min(c.Floor*100/base, maxPercent))
	}
	return max(p/step*step, c.Percent)
}

// state is the state of the memory, in bytes.
type state struct {
	allocated uint64 // so far
	live      uint64 // that the last collection found in use
	base      uint64 // that the collector counts from: live, stacks and globals
	objects   uint64 // in use, or not known to be garbage
	free      uint64 // that could be given back as they are
}

// spare returns what would be given back.
func (s state) spare() uint64 { return s.free + max(s.objects, s.live) - s.live }

func look() state {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	n := func(i int) uint64 {
		if s[i].Value.Kind() != metrics.KindUint64 {
			return 0 // a runtime that does not tell
		}
		return s[i].Value.Uint64()
	}
	return state{allocated: n(0), live: n(1), base: n(1) + n(2) + n(3), objects: n(4), free: n(5)}
}

// watch says after each collection that there was one, until ctx ends.
func watch(ctx context.Context, collected chan<- struct{}) {
	sentinel := new([16]byte) // not so small that it shares its place with others
	runtime.AddCleanup(sentinel, func(collected chan<- struct{}) {
		if ctx.Err() != nil {
			return
		}
		select {
		case collected <- struct{}{}:
		default:
		}
		watch(ctx, collected)
	}, collected)
}
