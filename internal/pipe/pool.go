package pipe

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// PoolConfig says how a pool behaves. The zero value of each number means its
// default.
type PoolConfig struct {
	// Join brings n new pipes and calls deliver n times, each with a pipe or with
	// why there is none. It returns at once; ctx ends with the pool.
	Join func(ctx context.Context, n int, deliver func(*Pipe, error))

	Keeper *Keeper

	MinIdle     int           // kept ready while the pool runs; default 2
	MaxPipes    int           // idle, busy and on their way; default 4096
	IdleTimeout time.Duration // after which an idle pipe beyond MinIdle is closed; default 60 s
}

// maxBurst bounds the joins that are under way at once: each costs three
// handshakes.
const maxBurst = 64

// While joins fail, the pool tries to stay warm less and less often, and who asks
// for a pipe right after a failure gets that failure: an agent that is gone must not
// cost its relay a handshake for every request of every client.
const (
	firstPause = BeatInterval
	lastPause  = 15 * time.Second
	holdOff    = 200 * time.Millisecond
)

// suspect is after how many beats without a sign of life an idle pipe is not lent any
// more: a join tells sooner than a stream whether the replica is there.
const suspect = 2

// freshTime is how long after its last stream a pipe is lent without another look
// at it. A peer that died in it is found by the opener, which tries another pipe.
const freshTime = 10 * time.Millisecond

// Pool keeps pipes to one replica of an agent. Idle ones are lent last in, first
// out, so that those not needed grow old and go. When none is idle the pool joins
// as many as are asked for and a few more, so that a burst pays for its first
// streams only. Safe for concurrent use; run it to keep it warm.
type Pool struct {
	cfg PoolConfig
	ctx context.Context // ends with the pool; for joins, which outlive the Get that caused them
	end context.CancelFunc

	mu      sync.Mutex
	idle    []idlePipe
	waiting []chan delivery // in order of arrival
	joining int
	busy    int
	closed  bool

	failure  error // of the last join; cleared by success
	failed   time.Time
	failures int       // rounds of joins in a row that brought nothing
	retry    time.Time // when to try again to be warm
	proven   bool      // the latest join brought a pipe, and none fell silent since
}

type idlePipe struct {
	pipe     *Pipe
	since    time.Time
	arrivals uint64
	silent   int
}

type delivery struct {
	pipe *Pipe
	err  error
}

// NewPool returns a pool that joins nothing until it runs or is asked.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.MinIdle == 0 {
		cfg.MinIdle = 2
	}
	if cfg.MaxPipes == 0 {
		cfg.MaxPipes = 4096
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	p := &Pool{cfg: cfg}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p
}

// Run keeps the pool warm and sound until ctx ends, then closes idle pipes and
// refuses further use. Pipes that are lent stay usable.
func (p *Pool) Run(ctx context.Context) error {
	tick := time.NewTicker(BeatInterval)
	defer tick.Stop()
	defer p.close()
	for {
		p.mu.Lock()
		if !time.Now().Before(p.retry) {
			p.grow(p.cfg.MinIdle - len(p.idle) - p.joining)
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.inspect()
		}
	}
}

// Get lends a pipe: an idle one at once, or else a new one. Errors are the
// *wire.Failure of the join, or tell that ctx ended.
func (p *Pool) Get(ctx context.Context) (*Pipe, error) {
	p.mu.Lock()
	for n := len(p.idle); n > 0; n = len(p.idle) {
		if p.idle[n-1].silent >= suspect { // so are those below it: their time runs out soon
			break
		}
		pipe, fresh := p.idle[n-1].pipe, time.Since(p.idle[n-1].since) < freshTime
		p.idle = p.idle[:n-1]
		p.busy++
		p.mu.Unlock()
		if fresh && pipe.Dead() == nil || pipe.Poll() == ErrIdle {
			return pipe, nil
		}
		pipe.Close()
		p.mu.Lock()
		p.busy--
	}
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, wire.Fail(wire.LegAgent, wire.CodeNoAgent, "the replica is gone")
	case p.failure != nil && p.busy+p.joining == 0 && time.Since(p.failed) < holdOff:
		defer p.mu.Unlock()
		return nil, p.failure
	case p.busy+len(p.waiting) >= p.cfg.MaxPipes:
		p.mu.Unlock()
		return nil, wire.Fail(wire.LegProxy, wire.CodeOverloaded, "%d pipes to this replica are in use", p.cfg.MaxPipes)
	}
	ch := make(chan delivery, 1)
	p.waiting = append(p.waiting, ch)
	p.serve(min(p.busy/4, 8))
	p.mu.Unlock()
	select {
	case d := <-ch:
		return d.pipe, d.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	for i, w := range p.waiting {
		if w == ch {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			p.mu.Unlock()
			return nil, wire.Fail(wire.LegRelay, wire.CodeTimeout, "waiting for a pipe: %v", context.Cause(ctx)).WithCause(ctx.Err())
		}
	}
	p.mu.Unlock()
	d := <-ch // it was delivered meanwhile
	return d.pipe, d.err
}

// Put takes a lent pipe back. clean tells that its stream ended properly in both
// directions, so that the next one may use it; otherwise it is closed.
func (p *Pool) Put(pipe *Pipe, clean bool) {
	if !clean || pipe.Dead() != nil {
		pipe.Close()
		p.mu.Lock()
		p.busy--
		p.mu.Unlock()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.offer(pipe)
}

// offer gives a pipe to who has waited longest, or lays it by; the caller holds
// mu.
func (p *Pool) offer(pipe *Pipe) {
	if p.closed {
		pipe.Close()
		return
	}
	if len(p.waiting) > 0 {
		p.busy++
		p.waiting[0] <- delivery{pipe: pipe}
		p.waiting = p.waiting[1:]
		return
	}
	p.idle = append(p.idle, idlePipe{pipe: pipe, since: time.Now(), arrivals: pipe.c.arrivals.Load()})
}

// serve starts the joins that are short for those who wait, and some more if there
// are any; the caller holds mu.
func (p *Pool) serve(more int) {
	if short := len(p.waiting) - p.joining; short > 0 {
		p.grow(short + more)
	}
}

// grow starts up to n joins; the caller holds mu.
func (p *Pool) grow(n int) {
	n = min(n, maxBurst-p.joining, p.cfg.MaxPipes-p.busy-len(p.idle)-p.joining)
	if n <= 0 || p.closed {
		return
	}
	p.joining += n
	p.cfg.Join(p.ctx, n, p.deliver)
}

// deliver takes what a join brought.
func (p *Pool) deliver(pipe *Pipe, err error) {
	if pipe != nil {
		p.cfg.Keeper.Watch(pipe)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joining--
	p.note(err)
	if pipe != nil {
		p.offer(pipe)
	} else if len(p.waiting) > p.joining {
		p.waiting[0] <- delivery{err: err}
		p.waiting = p.waiting[1:]
	}
	p.serve(0) // more may wait than one burst could bring
}

// note remembers how a join went; the caller holds mu.
func (p *Pool) note(err error) {
	p.failure, p.proven = err, err == nil
	if err == nil {
		p.failures, p.retry = 0, time.Time{}
		return
	}
	p.failed = time.Now()
	if p.failed.Before(p.retry) {
		return // another one of the same round
	}
	pause := lastPause
	if p.failures < 4 {
		pause = min(firstPause<<p.failures, lastPause)
	}
	p.failures++
	p.retry = p.failed.Add(pause/2 + rand.N(pause/2)) // not all proxies of a hub that comes back in step
}

// inspect looks at each idle pipe once, oldest first: it reads its signs of life,
// drops the dead and the silent, and those that have not been needed for long.
func (p *Pool) inspect() {
	p.mu.Lock()
	n := len(p.idle)
	p.mu.Unlock()
	kept := make([]idlePipe, 0, n)
	for range n {
		p.mu.Lock()
		if len(p.idle) == 0 {
			p.mu.Unlock()
			break
		}
		e := p.idle[0]
		p.idle = p.idle[1:]
		spare := len(p.idle)+len(kept) >= p.cfg.MinIdle
		p.busy++
		p.mu.Unlock()

		sound := e.pipe.Poll() == ErrIdle
		if a := e.pipe.c.arrivals.Load(); a != e.arrivals {
			e.arrivals, e.silent = a, 0
		} else {
			e.silent++
		}
		keep := sound && e.silent < SilentBeats && !(spare && time.Since(e.since) > p.cfg.IdleTimeout)
		p.mu.Lock()
		p.busy--
		if e.silent >= SilentBeats {
			p.proven = false
		}
		switch {
		case !keep:
			e.pipe.Close()
		case len(p.waiting) > 0 || p.closed:
			p.offer(e.pipe)
		default:
			kept = append(kept, e)
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(kept, p.idle...)
	for len(p.waiting) > 0 && len(p.idle) > 0 || p.closed && len(p.idle) > 0 {
		e := p.idle[0]
		p.idle = p.idle[1:]
		p.offer(e.pipe)
	}
}

func (p *Pool) close() {
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, e := range p.idle {
		e.pipe.Close()
	}
	p.idle = nil
	for _, w := range p.waiting {
		w <- delivery{err: wire.Fail(wire.LegAgent, wire.CodeNoAgent, "the replica is gone")}
	}
	p.waiting = nil
}

// Sound reports whether whoever asks for a pipe can expect one soon: an idle one shows
// signs of life, or there is none because all are in use. A pool that has not joined
// one yet, that could not at last, or whose pipes have fallen silent, is not sound; it
// goes on trying by itself, while it runs.
func (p *Pool) Sound() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		return p.idle[n-1].silent < suspect
	}
	return p.proven
}

// PoolStats counts a pool's pipes.
type PoolStats struct {
	Idle, Busy, Joining int
	Failure             error // of the latest join, nil when it worked
}

// Stats returns the present numbers.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{Idle: len(p.idle), Busy: p.busy, Joining: p.joining, Failure: p.failure}
}
