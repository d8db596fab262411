// Package bus is the client side of the bus: agents, proxies and the hub meet
// and see each other over it. It carries small decisions, never bulk bytes, and
// it is the only place that knows NATS.
//
// A Conn keeps itself connected: when its link breaks it opens another, without
// end and with jitter, and every subscription moves along. Refresh replaces the
// link by one with newer credentials before the old one is let go, so that no
// request falls into a gap. Nothing is queued while there is no link: a stale
// request helps nobody.
package bus

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// Times of a Conn.
const (
	openTimeout  = 25 * time.Second       // one attempt to connect, dial included
	pingInterval = 10 * time.Second       // two pings without an answer end a link
	firstBackoff = 250 * time.Millisecond // doubled at each failure
	lastBackoff  = 8 * time.Second
	linkPatience = 3 * time.Second  // how long a request waits for a link
	retireLimit  = 10 * time.Second // how long a replaced link may finish what it began
	closeLimit   = 2 * time.Second  // the same at Close
)

// Options say how to reach the bus and as whom.
type Options struct {
	// Dial opens a connection that speaks the NATS protocol: to the one port's
	// bus protocol, or into a server in this process.
	Dial func(ctx context.Context) (net.Conn, error)

	// Token and Seed return the user JWT and the seed of its key, as they are at
	// the moment. They are called at each attempt to connect.
	Token func() string
	Seed  func() []byte

	Name string       // shown in the server's records
	Log  *slog.Logger // nil: silent

	// OnState, if not nil, is told of changes: connected, or not and why; also of
	// each failed attempt. It is called from one goroutine and must not block.
	OnState func(connected bool, err error)
}

// Conn is a connection to the bus as one user of one organization. It is safe
// for concurrent use.
type Conn struct {
	opts    Options
	log     *slog.Logger
	cancel  context.CancelFunc
	ctx     context.Context // of the Conn's own life, not of a call: ends at Close
	wg      sync.WaitGroup
	refresh chan struct{} // holds at most one wish for a new link
	kick    chan struct{} // holds at most one wish for an announcement

	mu      sync.Mutex
	link    *link // nil when there is none
	up      chan struct{}
	subs    map[*subscription]struct{}
	closed  bool
	lastErr error // why there is no link
}

// Connect opens a Conn. It tries until ctx ends, and then returns the last
// failure; credentials that the bus refuses end it at once, for another attempt
// with the same ones is no use. Errors are *wire.Failure. The Conn lives until
// Close, whatever becomes of ctx.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Conn{
		opts: o, log: o.Log,
		refresh: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		up: make(chan struct{}), subs: make(map[*subscription]struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for attempt := 0; ; attempt++ {
		l, err := c.open(ctx)
		if err == nil {
			c.install(l)
			c.report(true, nil)
			c.wg.Go(c.run)
			return c, nil
		}
		c.report(false, err)
		f := wire.AsFailure(err, wire.LegBus)
		if f.Code == wire.CodeUnauthenticated && f.Leg == wire.LegBus {
			c.cancel()
			return nil, err
		}
		select {
		case <-ctx.Done():
			c.cancel()
			return nil, err
		case <-time.After(backoff(attempt)):
		}
	}
}

// backoff returns how long to wait after so many failures in a row: doubled
// each time up to a limit, and spread over half of that, so that all the
// parties of a hub that restarts do not come back in step.
func backoff(failures int) time.Duration {
	d := lastBackoff
	if failures < 10 {
		d = min(firstBackoff<<failures, lastBackoff)
	}
	return d/2 + rand.N(d/2)
}

// run keeps a link until the Conn is closed.
func (c *Conn) run() {
	var (
		wanted   bool // a new link
		failures int
		timer    = time.NewTimer(time.Hour)
	)
	defer timer.Stop()
	for {
		var lost, due = (<-chan struct{})(nil), (<-chan time.Time)(nil)
		c.mu.Lock()
		current := c.link
		c.mu.Unlock()
		if current != nil {
			lost = current.done
		}
		if wanted {
			due = timer.C
		}
		select {
		case <-c.ctx.Done():
			if current != nil {
				c.lose(current, errClosed)
				current.retire(closeLimit)
			}
			return
		case <-lost:
			err := current.failure()
			c.lose(current, err)
			c.report(false, err)
			if !wanted {
				wanted, failures = true, 0
				timer.Reset(rand.N(firstBackoff)) // soon, yet not all at once
			}
		case <-c.refresh:
			wanted, failures = true, 0
			timer.Reset(0)
		case <-due:
			l, err := c.open(c.ctx)
			if err != nil {
				timer.Reset(backoff(failures))
				failures++
				if current == nil && c.ctx.Err() == nil {
					c.report(false, err)
				}
				continue
			}
			wanted = false
			c.install(l)
			if current == nil {
				c.report(true, nil)
			} else {
				c.wg.Go(func() { current.retire(retireLimit) })
			}
		}
	}
}

func (c *Conn) report(connected bool, err error) {
	if connected {
		c.log.Debug("bus connected")
	} else {
		c.log.Debug("bus not connected", "error", err)
	}
	if c.opts.OnState != nil {
		c.opts.OnState(connected, err)
	}
}

// install makes l the link: from here on requests take it, and all
// subscriptions are on it.
func (c *Conn) install(l *link) {
	c.mu.Lock()
	c.moveSubscriptions(l)
	c.mu.Unlock()
	l.flush() // the server knows them before the old link is let go; not under the lock, for it takes a round trip
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moveSubscriptions(l) // those that came and went meanwhile
	c.link, c.lastErr = l, nil
	close(c.up)
	c.up = make(chan struct{})
}

// moveSubscriptions makes l listen to what the Conn listens to; c.mu is held.
func (c *Conn) moveSubscriptions(l *link) {
	for s := range c.subs {
		if err := l.subscribe(s); err != nil {
			c.log.Warn("bus subscription lost", "subject", s.subject, "error", err)
		}
	}
	l.keepOnly(c.subs)
}

// lose forgets a link that is gone.
func (c *Conn) lose(l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == l {
		c.link, c.lastErr = nil, err
	}
}

// acquire returns the link, waiting a moment for one; the caller calls release
// when it needs it no more.
func (c *Conn) acquire(ctx context.Context) (l *link, release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, linkPatience)
	defer cancel()
	for {
		c.mu.Lock()
		l, up, lastErr := c.link, c.up, c.lastErr
		if l != nil && !l.isDone() {
			l.hold()
			c.mu.Unlock()
			return l, l.release, nil
		}
		c.mu.Unlock()
		select {
		case <-up:
		case <-c.ctx.Done():
			return nil, nil, errClosed
		case <-ctx.Done():
			return nil, nil, wire.Fail(wire.LegBus, wire.CodeLost, "not connected to the bus").WithCause(errors.Join(lastErr, ctx.Err()))
		}
	}
}

// Connected reports whether there is a link at the moment.
func (c *Conn) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil && !c.link.isDone()
}

// Refresh asks for a link with the newest credentials, to be called when they
// were renewed. It returns at once. The old link serves until the new one does.
func (c *Conn) Refresh() {
	select {
	case c.refresh <- struct{}{}:
	default:
	}
}

// RTT measures the round trip to the bus, for ten seconds at most.
func (c *Conn) RTT(ctx context.Context) (time.Duration, error) {
	l, release, err := c.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, pingInterval) // the library insists on a deadline
	defer cancel()
	begin := time.Now()
	if err := l.nc.FlushWithContext(ctx); err != nil {
		return 0, requestFailure(err, "the bus")
	}
	return time.Since(begin), nil
}

// start runs f in a goroutine that Close waits for, unless the Conn is closed.
func (c *Conn) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(f)
	}
	return !c.closed
}

// Close ends the Conn and waits for all that it started, handlers included.
// What was published before is sent.
func (c *Conn) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}
