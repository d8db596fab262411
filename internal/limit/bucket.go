package limit

import (
	"math"
	"slices"
	"sync"
	"time"
)

// bucket gives out tokens at a rate. Whoever may not wait asks with allow; who
// waits does so with take, in the order of arrival: each waiter has a place on the
// line of all tokens ever asked for, and goes when the tokens granted have reached
// it. So the rate may change while they wait. Safe for concurrent use; no lock is
// held while one waits.
type bucket struct {
	mu      sync.Mutex
	rate    float64 // tokens per second
	burst   int64   // tokens that an idle bucket saves up
	last    time.Time
	rest    float64 // less than one token
	granted int64   // tokens given out since the start, with those that may be
	asked   int64   // tokens asked for since the start
	gaps    []gap   // places of those that gave up, in order
	waiting int
	changed chan struct{} // closed when the rate changes
	lifted  bool          // there is no limit any more

	timers sync.Pool // of *time.Timer, for waiters
}

// gap is the place of a waiter that gave up: tokens that nobody takes.
type gap struct{ start, n int64 }

// lookAgain is how often a waiter looks whether it is still wanted.
const lookAgain = time.Second

func newBucket(rate float64, burst int64, now time.Time) *bucket {
	return &bucket{rate: rate, burst: burst, last: now, granted: burst, changed: make(chan struct{})}
}

// set changes the rate; what was saved up or is owed stays.
func (b *bucket) set(rate float64, burst int64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accrue(now)
	b.rate, b.burst = rate, burst
	b.granted = min(b.granted, b.asked+burst)
	close(b.changed)
	b.changed = make(chan struct{})
}

// lift lets all go that wait.
func (b *bucket) lift() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lifted = true
	close(b.changed)
	b.changed = make(chan struct{})
}

// accrue grants what has become due; mu is held.
func (b *bucket) accrue(now time.Time) {
	if d := now.Sub(b.last); d > 0 {
		due := b.rate*d.Seconds() + b.rest
		whole := math.Floor(min(due, 1<<60))
		b.rest, b.last = due-whole, now
		b.give(int64(whole))
	}
}

// give grants n tokens; mu is held.
func (b *bucket) give(n int64) {
	b.granted += n
	for len(b.gaps) > 0 && b.gaps[0].start <= b.granted {
		b.granted += b.gaps[0].n
		b.gaps = slices.Delete(b.gaps, 0, 1)
	}
	if limit := b.asked + b.burst; b.granted >= limit {
		b.granted, b.rest = limit, 0
	}
}

// allow takes a token, or says when there will be one.
func (b *bucket) allow(now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accrue(now)
	if b.granted > b.asked || b.lifted {
		b.asked++
		return 0, true
	}
	return b.until(b.asked + 1), false
}

// refund gives back n tokens that were taken and not used.
func (b *bucket) refund(n int64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accrue(now)
	b.give(n)
}

// until returns how long it takes to grant all up to a place; mu is held.
func (b *bucket) until(place int64) time.Duration {
	seconds := (float64(place-b.granted) - b.rest) / b.rate
	return time.Duration(min(seconds, 3600)*float64(time.Second)) + 1
}

// Living says whether somebody who waits is still wanted. It is asked from time to
// time, and must not wait itself.
type Living interface{ Alive() bool }

// take takes n tokens, and waits until they are granted. It reports for how long,
// and false when it gave up because nobody was alive any more.
func (b *bucket) take(n int64, who Living) (waited time.Duration, ok bool) {
	b.mu.Lock()
	begin := time.Now()
	b.accrue(begin)
	b.asked += n
	place := b.asked
	if b.granted >= place || b.lifted {
		b.mu.Unlock()
		return 0, true
	}
	b.waiting++
	timer, _ := b.timers.Get().(*time.Timer)
	if timer == nil {
		timer = time.NewTimer(lookAgain)
	}
	now := begin
	for b.granted < place && !b.lifted {
		wait, changed := min(b.until(place), lookAgain), b.changed
		b.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-changed:
		}
		alive := who.Alive()
		b.mu.Lock()
		now = time.Now()
		b.accrue(now)
		if !alive && b.granted < place && !b.lifted {
			b.leave(place-n, n)
			b.waiting--
			b.mu.Unlock()
			b.timers.Put(timer)
			return now.Sub(begin), false
		}
	}
	b.waiting--
	b.mu.Unlock()
	timer.Stop()
	b.timers.Put(timer)
	return now.Sub(begin), true
}

// leave gives up a place that begins at start; mu is held.
func (b *bucket) leave(start, n int64) {
	i, _ := slices.BinarySearchFunc(b.gaps, start, func(g gap, at int64) int { return int(g.start - at) })
	b.gaps = slices.Insert(b.gaps, i, gap{start, n})
	b.give(0)
}

// share returns how many tokens one of those that wait should take at a time, so
// that each of them has its turn within the time d.
func (b *bucket) share(d time.Duration) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(b.rate * d.Seconds() / float64(b.waiting+1))
}
