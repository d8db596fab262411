package testnet

import (
	"sync"
	"time"
)

// line is one direction of a path: it serves one chunk after another at a fixed
// rate. It keeps no bytes, only the moment until which it is busy, so that the
// rate holds over any time however late a goroutine wakes up.
type line struct {
	rate  float64       // bytes per second; 0 means unbounded
	queue time.Duration // how long a full queue takes to drain

	mu   sync.Mutex
	busy time.Time // when the last chunk that was accepted will have left
}

func newLine(rate, queue int64) *line {
	ln := &line{rate: float64(rate)}
	if rate > 0 {
		ln.queue = time.Duration(float64(queue) / float64(rate) * float64(time.Second))
	}
	return ln
}

// send puts n bytes at the end of the queue. It returns when their last byte
// leaves the line, and when the sender may offer its next chunk: at once while
// the queue has room, otherwise when this chunk has come within the queue's
// length of the line. Each sender overshoots the queue by at most one chunk.
func (ln *line) send(n int, now time.Time) (leaves, next time.Time) {
	if ln.rate == 0 {
		return now, now
	}
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.busy.Before(now) {
		ln.busy = now
	}
	ln.busy = ln.busy.Add(time.Duration(float64(n) / ln.rate * float64(time.Second)))
	return ln.busy, ln.busy.Add(-ln.queue)
}

// chunkSize returns how much to read at a time: about half a millisecond of the
// line, so that connections share it smoothly, within what is cheap to move.
func (ln *line) chunkSize() int {
	if ln.rate == 0 {
		return maxChunk
	}
	return min(maxChunk, max(minChunk, int(ln.rate/2000)))
}

// window returns how many bytes one direction of a connection may hold: what is
// on the way for delay, what waits in the queue, and some chunks.
func (ln *line) window(delay time.Duration) int {
	if ln.rate == 0 {
		return unboundedWindow
	}
	return int(ln.rate*(delay+ln.queue).Seconds()) + 4*maxChunk
}
