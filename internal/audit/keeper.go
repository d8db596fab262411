package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/maphash"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/identity"
)

// Limits of a Keeper.
const (
	maxQueued   = 32768 // records in memory, of all organizations
	maxOfOne    = 16384 // of one of them, so that it leaves room for the others
	maxBlock    = 256   // records that are written together
	maxBlockLen = 192 << 10
	closingTime = 5 * time.Second // for what is queued when a Keeper ends

	// pace is how long after a write the next one begins, unless a block is full: each
	// waits for the disk, and costs as much for one record as for a hundred.
	pace = 20 * time.Millisecond
)

// ErrFull says that a Keeper has no room; try again later.
var ErrFull = errors.New("the audit log's queue is full")

// KeeperConfig is what a Keeper works with. All but Metrics, Log and Now are required.
type KeeperConfig struct {
	Journal Journal
	Heads   Heads
	Signer  *Signer
	Metrics Metrics      // nil for none
	Log     *slog.Logger // nil for none
	Now     func() time.Time
}

// Metrics is told what a Keeper does.
type Metrics interface {
	Queued(n int)         // records that wait now
	Written(n int)        // records are on disk
	Dropped(n int)        // records had no room
	Failed(err error)     // an attempt to write; it is repeated
	Repeated(n int)       // records that agents sent twice
	Took(d time.Duration) // to write a block
}

// Keeper writes records into the chains of a Journal. Whoever records only puts
// them into a queue; when that is full, records are dropped, and a record says how
// many. It is safe for concurrent use. Make one with NewKeeper and run it.
type Keeper struct {
	cfg    KeeperConfig
	prefix string // of the IDs that it draws
	drawn  atomic.Uint64
	wake   chan struct{} // holds at most one wish
	full   chan struct{} // the same, of a chain with a full block
	seed   maphash.Seed
	seen   recent // guarded by Run
	spare  []byte // for the lines of the next block; guarded by Run

	mu      sync.Mutex
	chains  map[string]*chain
	queued  int
	closed  bool
	changed chan struct{} // closed at the next change of any chain
}

// item is a record that waits, and who waits for it.
type item struct {
	r    Record
	wait *waiter // nil: nobody
}

// waiter waits for some records to be on disk.
type waiter struct {
	left int // guarded by Run
	done chan struct{}
}

func (w *waiter) one() {
	if w == nil {
		return
	}
	if w.left--; w.left == 0 {
		close(w.done)
	}
}

// NewKeeper returns a keeper.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Metrics == nil {
		cfg.Metrics = noMetrics{}
	}
	return &Keeper{
		cfg: cfg, prefix: rand.Text()[:16] + "-", wake: make(chan struct{}, 1), full: make(chan struct{}, 1), seed: maphash.MakeSeed(),
		chains: make(map[string]*chain), changed: make(chan struct{}),
	}
}

type noMetrics struct{}

func (noMetrics) Queued(int)         {}
func (noMetrics) Written(int)        {}
func (noMetrics) Dropped(int)        {}
func (noMetrics) Failed(error)       {}
func (noMetrics) Repeated(int)       {}
func (noMetrics) Took(time.Duration) {}

// Record implements Recorder. A record without time or reporter is the hub's, of now.
func (k *Keeper) Record(r Record) {
	if r.Time.IsZero() {
		r.Time = k.cfg.Now()
	}
	if r.Reporter == "" {
		r.Reporter = ByHub
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.chain(r.Organization)
	if k.closed || k.queued >= maxQueued || len(c.queue) >= maxOfOne {
		c.dropped++
		k.cfg.Metrics.Dropped(1)
		return
	}
	k.enqueue(c, item{r: r})
}

// Put records all of rs, which are of one organization, and returns when they are
// on disk. It returns ErrFull when there is no room for them. When ctx ends before,
// they may have been recorded or not: put them again, with the same IDs, and those
// that were are not recorded twice.
func (k *Keeper) Put(ctx context.Context, rs []Record) error {
	if len(rs) == 0 {
		return nil
	}
	w := &waiter{left: len(rs), done: make(chan struct{})}
	k.mu.Lock()
	c := k.chain(rs[0].Organization)
	if k.closed || k.queued+len(rs) > maxQueued || len(c.queue)+len(rs) > maxOfOne {
		k.mu.Unlock()
		return ErrFull
	}
	for _, r := range rs {
		k.enqueue(c, item{r: r, wait: w})
	}
	k.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enqueue adds to a chain's queue; k.mu is held.
func (k *Keeper) enqueue(c *chain, one item) {
	c.queue = append(c.queue, one)
	k.queued++
	nudge(k.wake)
	if len(c.queue) == maxBlock {
		nudge(k.full)
	}
}

func nudge(wish chan struct{}) {
	select {
	case wish <- struct{}{}:
	default:
	}
}

// chain returns an organization's chain; k.mu is held. Callers record for
// organizations that exist: a name that none can have is the hub's.
func (k *Keeper) chain(organization string) *chain {
	c := k.chains[organization]
	if c == nil && organization != "" && identity.ValidateName("organization", organization) != nil {
		organization = ""
		c = k.chains[organization]
	}
	if c == nil {
		c = &chain{name: organization}
		k.chains[organization] = c
	}
	return c
}

// Changed returns a channel that is closed when something was written to any chain.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Head returns the newest head of a chain that is on disk; the zero Head if nothing
// was written to it since the keeper started.
func (k *Keeper) Head(organization string) Head {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.chains[organization]; c != nil {
		return c.shown
	}
	return Head{}
}

// Run writes until ctx ends; then what is queued, for five seconds at most.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for adopted := false; ctx.Err() == nil; {
		adopted = adopted || k.adopt(ctx)
		begin := time.Now()
		k.writeAll(context.WithoutCancel(ctx), false) // a write that was begun is ended
		select {
		case <-ctx.Done():
		case <-k.wake:
			k.gather(ctx, begin)
		case <-tick.C: // for what failed, and for checkpoints
		}
	}
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closingTime)
	defer cancel()
	for k.writeAll(last, true) && last.Err() == nil {
		select {
		case <-last.Done():
		case <-time.After(100 * time.Millisecond): // a write failed
		}
	}
	if n := k.waiting(); n > 0 {
		k.cfg.Log.Error("audit records not written", "records", n)
	}
}

// gather waits for more records to write together with those that there are, if the
// last write began a moment ago only.
func (k *Keeper) gather(ctx context.Context, last time.Time) {
	wait := pace - time.Since(last)
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-k.full:
	case <-timer.C:
	}
}

// adopt takes in the chains that there are: the end of one may wait for a signature.
func (k *Keeper) adopt(ctx context.Context) bool {
	names, err := k.cfg.Journal.Chains(ctx)
	if err != nil {
		k.cfg.Metrics.Failed(err)
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		k.chain(name)
	}
	return true
}

func (k *Keeper) waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.queued
}

// writeAll writes what is queued, and signs what is due to be signed; all, if it is
// the last time. It reports whether something is left.
func (k *Keeper) writeAll(ctx context.Context, last bool) (left bool) {
	k.mu.Lock()
	all := make([]*chain, 0, len(k.chains))
	for _, c := range k.chains {
		all = append(all, c)
	}
	k.mu.Unlock()
	for _, c := range all {
		if !k.write(ctx, c, last) {
			left = true
		}
	}
	k.cfg.Metrics.Queued(k.waiting())
	return left
}

// draw returns an ID.
func (k *Keeper) draw() string { return k.prefix + strconv.FormatUint(k.drawn.Add(1), 36) }

// recent remembers the latest of many hashes.
type recent struct {
	set  map[uint64]struct{}
	ring []uint64
	next int
}

// maxRecent is far more than all agents of a hub have under way at once.
const maxRecent = 1 << 16

// add reports whether the hash is new.
func (r *recent) add(h uint64) bool {
	if _, there := r.set[h]; there {
		return false
	}
	if r.set == nil {
		r.set = make(map[uint64]struct{})
	}
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, h)
	} else {
		delete(r.set, r.ring[r.next])
		r.ring[r.next] = h
		r.next = (r.next + 1) % maxRecent
	}
	r.set[h] = struct{}{}
	return true
}
