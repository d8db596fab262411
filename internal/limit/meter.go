package limit

import (
	"fmt"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/wire"
)

// Key names a party that has limits.
type Key struct {
	Level        Level
	Organization string
	Name         string // of the agent or proxy; empty for an organization
}

// String returns the party for people.
func (k Key) String() string {
	if k.Level == Organization {
		return "organization " + k.Organization
	}
	return fmt.Sprintf("%s %s of organization %s", k.Level, k.Name, k.Organization)
}

// Unit is what a Use is one of.
type Unit uint8

// The units.
const (
	// OneStream is a stream that whoever asks can see the ends of.
	OneStream Unit = iota

	// OnePipe is a pipe of which nobody here knows whether it carries a stream now.
	// So a quarter more of them are allowed than streams, 64 at least: proxies keep
	// some pipes idle.
	OnePipe
)

// pipesFor returns how many pipes are allowed where so many streams are.
func pipesFor(streams Value) int64 { return int64(streams) + max(64, int64(streams)/4) }

// meter counts what one party uses, and holds it to its limits. The counts of
// streams and pipes and the limits change only under Book.mu; bytes do not take it.
type meter struct {
	key    Key
	limits Limits

	streams, pipes int64
	opens          *bucket                // nil: unlimited
	bytes          atomic.Pointer[bucket] // nil: unlimited

	used      time.Time // last
	told      [Kinds]time.Time
	refused   [Kinds]uint64
	throttled atomic.Int64 // nanoseconds that bytes have waited
}

// Opens may come in bursts of so many seconds' worth, bytes of one.
const openBurst = 2

// set makes limits hold, for what is open as well.
func (m *meter) set(l Limits, now time.Time) {
	m.limits = l
	m.opens = adjust(m.opens, l.Opens, openBurst*int64(max(l.Opens, 0)), now)
	m.bytes.Store(adjust(m.bytes.Load(), l.Bytes, int64(max(l.Bytes, 0)), now))
}

func adjust(b *bucket, v Value, burst int64, now time.Time) *bucket {
	switch {
	case v <= 0:
		if b != nil {
			b.lift()
		}
		return nil
	case b == nil:
		return newBucket(float64(v), burst, now)
	default:
		b.set(float64(v), burst, now)
		return b
	}
}

// enter counts a stream or pipe in, or says which limit forbids it.
func (m *meter) enter(u Unit, now time.Time) *Refusal {
	m.used = now
	count, most := &m.streams, int64(m.limits.Streams)
	if u == OnePipe {
		count, most = &m.pipes, pipesFor(m.limits.Streams)
	}
	if m.limits.Streams > 0 && *count >= most {
		return m.refuse(Streams, 0)
	}
	if m.opens != nil {
		if wait, ok := m.opens.allow(now); !ok {
			return m.refuse(Opens, wait)
		}
	}
	*count++
	return nil
}

// undo takes back an enter that came to nothing, as others refused.
func (m *meter) undo(u Unit, now time.Time) {
	m.leave(u, now)
	if m.opens != nil {
		m.opens.refund(1, now)
	}
}

func (m *meter) leave(u Unit, now time.Time) {
	m.used = now
	if u == OnePipe {
		m.pipes--
	} else {
		m.streams--
	}
}

func (m *meter) refuse(k Kind, wait time.Duration) *Refusal {
	m.refused[k]++
	return &Refusal{Key: m.key, Kind: k, Limit: m.limits.Get(k), RetryAfter: wait}
}

// Refusal says which limit of whom was reached. It is an error.
type Refusal struct {
	Key        Key
	Kind       Kind
	Limit      Value
	RetryAfter time.Duration // 0 if nobody knows
	Hint       string        // what to do
}

// Error names the limit and its value, and nothing of what others use.
func (r *Refusal) Error() string {
	what := map[Kind]string{
		Streams: "streams at once", Opens: "opens per second", Bytes: "bytes per second", Agents: "agents", Connections: "connections to the bus",
	}[r.Kind]
	return fmt.Sprintf("%s has reached its limit of %s %s", r.Key, r.Limit.Text(r.Kind), what)
}

// Failure returns the refusal as it travels, on a leg.
func (r *Refusal) Failure(leg wire.Leg) *wire.Failure {
	return &wire.Failure{Leg: leg, Code: wire.CodeOverloaded, Text: r.Error(), Hint: r.Hint, Err: r}
}

// Use is a stream or pipe that was admitted, until Leave. A nil Use has no limits.
// Safe for concurrent use.
type Use struct {
	book   *Book
	unit   Unit
	chain  [Levels]*meter // the narrowest first
	length int
	left   atomic.Bool
}

// Leave counts the stream or pipe out. Further calls do nothing.
func (u *Use) Leave() {
	if u != nil && !u.left.Swap(true) {
		u.book.leave(u)
	}
}

// Throttled reports whether bytes have a limit now.
func (u *Use) Throttled() bool {
	if u == nil {
		return false
	}
	for _, m := range u.chain[:u.length] {
		if m.bytes.Load() != nil {
			return true
		}
	}
	return false
}

// turnTime is within what time each of those that wait for bytes has a turn: less
// than a pipe may be silent before it is given up.
const turnTime = 2 * time.Second

// minChunk bounds the smallest turn, in bytes.
const minChunk = 512

// Chunk returns how many bytes to take in one turn, most at most: the fewer the more
// there are who wait.
func (u *Use) Chunk(most int) int {
	if u == nil {
		return most
	}
	for _, m := range u.chain[:u.length] {
		if b := m.bytes.Load(); b != nil {
			most = min(most, max(minChunk, int(min(b.share(turnTime), 1<<30))))
		}
	}
	return most
}

// Take waits until all levels allow n bytes to pass. It returns false when it gave up
// because nobody was alive any more. It is cheap where there is no limit.
func (u *Use) Take(n int, who Living) bool {
	if u == nil {
		return true
	}
	// One after the other, the narrowest first: who waits for its own limit keeps
	// no place in the line of the organization.
	for i, m := range u.chain[:u.length] {
		b := m.bytes.Load()
		if b == nil {
			continue
		}
		waited, ok := b.take(int64(n), who)
		if waited > 0 {
			m.throttled.Add(int64(waited))
		}
		if ok {
			continue
		}
		for _, before := range u.chain[:i] {
			if b := before.bytes.Load(); b != nil {
				b.refund(int64(n), time.Now())
			}
		}
		return false
	}
	return true
}
