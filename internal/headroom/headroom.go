// Package headroom keeps the garbage collector of a small process from running too
// often. By itself it runs whenever the heap has grown by a share of what is in use; of
// a few megabytes that is so little that one in a hundred requests meets a collection,
// and waits for it.
package headroom

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Config says how the collector is to run.
type Config struct {
	Percent int    // by which the heap may grow between two collections, as GOGC
	Floor   uint64 // bytes that it may grow by in any case
}

// Keep keeps the headroom until ctx ends. One call of it in a process.
func Keep(ctx context.Context, c Config) {
	collected := make(chan struct{}, 1)
	watch(ctx, collected)
	debug.SetGCPercent(c.Percent)
	last := c.Percent
	for {
		if next := c.percent(live()); next < last || next >= last+last/4 { // each change stops the world
			debug.SetGCPercent(next)
			last = next
		}
		select {
		case <-ctx.Done():
			debug.SetGCPercent(c.Percent)
			return
		case <-collected:
		}
	}
}

// maxPercent bounds what a nearly empty heap is given.
const maxPercent = 1000

// percent returns what the collector is told when so much is in use.
func (c Config) percent(live uint64) int {
	const step = 25
	p := maxPercent
	if live > 0 {
		p = int(min(c.Floor*100/live, maxPercent)) //nolint:gosec // small
	}
	return max(p/step*step, c.Percent)
}

// live returns the bytes that the collector counts from: those that it found in use,
// and the stacks.
func live() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(s)
	var sum uint64
	for _, one := range s {
		if one.Value.Kind() == metrics.KindUint64 {
			sum += one.Value.Uint64()
		}
	}
	return sum
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
