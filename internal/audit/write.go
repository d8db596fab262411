package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"
)

// chain is what a Keeper knows of one. All but the first group is Run's alone.
type chain struct {
	name string

	// Guarded by the Keeper's mu.
	queue   []item
	dropped uint64 // records that had no room, since the last record that says so
	shown   Head   // that is on disk

	opened   bool
	position uint64 // of the last block
	head     Head   // of it
	unsigned uint64 // entries since the last checkpoint
	since    time.Time
	stuck    *block // sealed, and not yet on disk as far as we know
	retry    time.Time
	failures int
}

// block is a sealed one.
type block struct {
	lines   []byte
	head    Head
	entries int
	signed  bool
	items   int // taken from the queue
	lost    uint64
}

// write writes what a chain's queue holds, block by block, and reports whether
// nothing is left to do. What comes meanwhile is left for the next time, unless it
// fills a block.
func (k *Keeper) write(ctx context.Context, c *chain, last bool) bool {
	if !last && k.cfg.Now().Before(c.retry) {
		return false
	}
	for {
		err := k.step(ctx, c, last)
		if errors.Is(err, errIdle) {
			return true
		}
		if err != nil {
			k.failed(c, err)
			return false
		}
		c.failures, c.retry = 0, time.Time{}
		if n := k.length(c); n < maxBlock && !last {
			if n > 0 {
				nudge(k.wake)
			}
			return true
		}
	}
}

// length returns how many records a chain's queue holds.
func (k *Keeper) length(c *chain) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(c.queue)
}

// errIdle says that there is nothing to write.
var errIdle = errors.New("nothing to write")

// failed notes that a chain cannot be written now. It is tried again, forever:
// the queue holds what it can.
func (k *Keeper) failed(c *chain, err error) {
	k.cfg.Metrics.Failed(err)
	pause := min(time.Second<<min(c.failures, 5), 30*time.Second)
	c.failures++
	c.retry = k.cfg.Now().Add(pause)
	k.cfg.Log.Error("audit records not written yet", "log", chainName(c.name), "error", err, "retry_in", pause)
}

// step writes one block.
func (k *Keeper) step(ctx context.Context, c *chain, last bool) error {
	if !c.opened {
		if err := k.openChain(ctx, c); err != nil {
			return err
		}
	}
	b := c.stuck
	if b == nil {
		if b = k.seal(c, last); b == nil {
			return errIdle
		}
		c.stuck = b
	}
	begin := time.Now()
	position, err := k.cfg.Journal.Append(ctx, c.name, c.position, b.lines)
	if errors.Is(err, ErrPosition) {
		// The last attempt may have succeeded without our hearing of it.
		position, err = k.reconcile(ctx, c, b)
	}
	if err != nil {
		if k.spare == nil && c.stuck != nil { // what is stuck takes the room that it needs only
			b.lines, k.spare = bytes.Clone(b.lines), b.lines[:0]
		}
		return err
	}
	k.cfg.Metrics.Took(time.Since(begin))
	if cap(b.lines) > cap(k.spare) {
		k.spare = b.lines[:0]
	}
	c.stuck, c.position, c.head = nil, position, b.head
	if b.signed {
		c.unsigned = 0
		if err := k.cfg.Heads.SaveHead(c.name, b.head); err != nil {
			k.cfg.Log.Error("head of the audit log not saved", "log", chainName(c.name), "error", err)
		}
	} else {
		if c.unsigned == 0 {
			c.since = k.cfg.Now()
		}
		c.unsigned += uint64(b.entries) //nolint:gosec // not negative
	}
	k.stored(c, b)
	return nil
}

// stored takes what is on disk out of the queue, and tells those who wait.
func (k *Keeper) stored(c *chain, b *block) {
	k.mu.Lock()
	done := c.queue[:b.items]
	for i := range done {
		done[i].wait.one()
		done[i] = item{}
	}
	if c.queue = c.queue[b.items:]; len(c.queue) == 0 {
		c.queue = nil // gives the memory of a burst back
	}
	k.queued -= b.items
	c.dropped -= b.lost
	c.shown = b.head
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	k.cfg.Metrics.Written(b.entries)
}

// reconcile returns the position of a block that is in the journal already.
func (k *Keeper) reconcile(ctx context.Context, c *chain, b *block) (uint64, error) {
	found, err := k.cfg.Journal.Read(ctx, c.name, c.position, 1)
	if err != nil {
		return 0, err
	}
	if len(found) == 0 || !bytes.Equal(found[0].Lines, b.lines) {
		// Somebody else wrote: read anew where the chain is.
		c.opened, c.stuck, k.seen = false, nil, recent{}
		return 0, fmt.Errorf("%w: another process writes %s", ErrPosition, chainName(c.name))
	}
	return found[0].Position, nil
}

// seal makes the next block; nil if there is nothing to write.
func (k *Keeper) seal(c *chain, last bool) *block {
	k.mu.Lock()
	items := c.queue[:min(len(c.queue), maxBlock)]
	dropped := c.dropped
	k.mu.Unlock()
	b := &block{head: c.head, lines: k.spare}
	if k.spare = nil; b.lines == nil {
		b.lines = make([]byte, 0, maxBlockLen+MaxLine)
	}
	if dropped > 0 {
		b.lost = dropped
		b.add(&Record{
			ID: k.draw(), Time: k.cfg.Now(), Organization: c.name, Reporter: ByHub, Action: Lost, Count: dropped,
			Reason: "more was to be recorded than could be written",
		})
	}
	for i := range items {
		if len(b.lines) > maxBlockLen {
			break
		}
		b.items++
		r := items[i].r
		if r.ID == "" {
			r.ID = k.draw()
		} else if items[i].wait != nil && !k.seen.add(k.fingerprint(&r)) {
			k.cfg.Metrics.Repeated(1)
			continue
		}
		r.Organization = c.name
		b.add(&r)
	}
	unsigned := c.unsigned + uint64(b.entries) //nolint:gosec // not negative
	late := c.unsigned > 0 && k.cfg.Now().Sub(c.since) >= signWithin
	switch {
	case unsigned > 0 && (unsigned >= signEvery || late || last):
		b.sign(k, c.name)
	case b.entries > 0:
	case b.items > 0: // all were there already
		k.skip(c, b)
		k.spare = b.lines
		return k.seal(c, last)
	default:
		k.spare = b.lines
		return nil
	}
	return b
}

func (b *block) add(r *Record) {
	r.clean()
	b.lines, b.head = b.head.Seal(b.lines, r)
	b.lines = append(b.lines, '\n')
	b.entries++
}

func (b *block) sign(k *Keeper, organization string) {
	r := Record{ID: k.draw(), Time: k.cfg.Now(), Organization: organization, Reporter: ByHub}
	r.clean()
	b.lines, b.head = k.cfg.Signer.checkpoint(b.head, b.lines, &r)
	b.lines = append(b.lines, '\n')
	b.entries++
	b.signed = true
}

// skip takes items out of the queue that need not be written.
func (k *Keeper) skip(c *chain, b *block) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range c.queue[:b.items] {
		c.queue[i].wait.one()
		c.queue[i] = item{}
	}
	c.queue = c.queue[b.items:]
	k.queued -= b.items
}

// fingerprint tells agents' records apart: an agent draws its IDs itself.
func (k *Keeper) fingerprint(r *Record) uint64 {
	var h maphash.Hash
	h.SetSeed(k.seed)
	for _, s := range []string{r.Organization, r.Agent, r.Replica, r.ID} {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// reread is how many bytes of a chain's end are read when it is opened: the records
// whose acknowledgement agents may not have got.
const reread = 1 << 20

// openChain reads where a chain ends. An end that is older than the head that was
// saved elsewhere was cut off: the chain goes on behind that head, and the gap shows.
func (k *Keeper) openChain(ctx context.Context, c *chain) error {
	first, last, err := k.cfg.Journal.Bounds(ctx, c.name)
	if err != nil {
		return err
	}
	c.position, c.head, c.unsigned = last, Head{}, 0
	from := max(first, 1) - 1
	if last > from+64 {
		from = last - 64
	}
	for from < last {
		blocks, err := k.cfg.Journal.Read(ctx, c.name, from, reread)
		if err != nil {
			return err
		}
		if len(blocks) == 0 {
			break
		}
		for _, b := range blocks {
			k.resume(c, b)
			from = b.Position
		}
	}
	saved, err := k.cfg.Heads.LoadHead(c.name)
	if err != nil {
		return err
	}
	if saved.Sequence > c.head.Sequence {
		if first <= last { // else the records are all older than they are kept
			k.cfg.Log.Error("the end of an audit log is missing", "log", chainName(c.name), "last", c.head.Sequence, "known", saved.Sequence)
		}
		c.head = saved
	}
	c.since, c.opened = k.cfg.Now(), true
	k.mu.Lock()
	defer k.mu.Unlock()
	c.shown = c.head
	return nil
}

// resume takes in what a block tells of the chain's state.
func (k *Keeper) resume(c *chain, b Block) {
	for line := range b.Entries() {
		e, err := ParseEntry(line)
		if err != nil {
			continue // for a Verifier to find
		}
		c.head = Head{e.Sequence, e.Hash}
		c.unsigned++
		if e.Action == Checkpoint {
			c.unsigned = 0
		}
		if e.Reporter == ByAgent {
			k.seen.add(k.fingerprint(&e.Record))
		}
	}
}
