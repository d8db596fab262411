package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// Time limits of a Dialer.
const (
	openTimeout = 10 * time.Second // for the agent to reach the target
	joinTimeout = 10 * time.Second // for a pipe to be joined
	meetTimeout = 4 * time.Second  // for a replica to say that it will come
	settleTime  = 3 * time.Second  // after the start, in which agents are still being heard of
	maxLost     = 3                // broken pipes in a row, before an opener gives up
	shunTime    = 10 * time.Second // for a replica that did not answer, until its presence must have ended
)

// DialerConfig is what a Dialer works with. All fields but Zone, Node and the
// metrics are required.
type DialerConfig struct {
	Organization string
	Zone         string // where this proxy runs; replicas of the same zone are preferred
	Node         string // relay node that tickets are for; empty for any

	Bus         *bus.Conn
	Credentials func() *identity.Credentials

	// Join presents a ticket at the relay and returns the bare connection to its
	// other bearer.
	Join func(ctx context.Context, t wire.Ticket) (net.Conn, error)

	// Limits, if not nil, counts in each stream that is opened and paces its bytes.
	Limits *limit.Book
	Name   string // of this proxy, for Limits

	Streams *observe.Streams // nil for none
	Pipes   *observe.Pipes   // nil for none
	Log     *slog.Logger
}

// Dialer opens streams through the agents of one organization. For each replica
// that it uses it keeps a pool of warm pipes. Safe for concurrent use; make one with
// NewDialer and run it.
type Dialer struct {
	cfg     DialerConfig
	dir     *bus.Directory
	keeper  *pipe.Keeper
	buffers *pipe.Buffers
	started time.Time
	ctx     context.Context // of Run; pools end with it
	end     context.CancelFunc
	wg      sync.WaitGroup

	mu       sync.Mutex
	replicas map[replicaKey]*replica
	wanted   map[string]bool // agents for which pipes are kept
	memory   map[string]memory
	shunned  map[replicaKey]time.Time // until when
	ended    bool
}

// replicaKey names one life of a replica: a process that starts again under the
// same name is another.
type replicaKey struct{ agent, replica, epoch string }

// NewDialer returns a dialer that watches the organization's agents until ctx
// ends, and keeps pipes to those of warm ready from the start.
func NewDialer(ctx context.Context, cfg DialerConfig, warm ...string) (*Dialer, error) {
	dir, err := cfg.Bus.NewDirectory(ctx)
	if err != nil {
		return nil, err
	}
	d := &Dialer{
		cfg: cfg, dir: dir, keeper: pipe.NewKeeper(), buffers: pipe.NewBuffers(), started: time.Now(),
		replicas: make(map[replicaKey]*replica), wanted: make(map[string]bool), memory: make(map[string]memory),
		shunned: make(map[replicaKey]time.Time),
	}
	d.ctx, d.end = context.WithCancel(context.WithoutCancel(ctx))
	for _, agent := range warm {
		d.wanted[agent] = true
	}
	return d, nil
}

// Run keeps the pools until ctx ends; then it closes idle pipes, and cuts the
// streams that are left.
func (d *Dialer) Run(ctx context.Context) error {
	d.wg.Go(func() { _ = d.keeper.Run(d.ctx) })
	for {
		changed := d.dir.Changed()
		d.follow()
		select {
		case <-ctx.Done():
			d.mu.Lock()
			d.ended = true
			d.mu.Unlock()
			d.end()
			d.wg.Wait()
			return nil
		case <-changed:
		}
	}
}

// Directory returns what is known of the organization's agents.
func (d *Dialer) Directory() *bus.Directory { return d.dir }

// follow makes pools for ready replicas of wanted agents, and ends those of
// replicas that stopped, drain, or began anew. A replica that is merely lost keeps
// its pool: its pipes tell by themselves whether they live, and work on while the
// bus is down.
func (d *Dialer) follow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	keep := make(map[replicaKey]bool)
	for _, p := range d.dir.All() {
		key := replicaKey{p.Agent, p.Replica, p.Epoch}
		switch p.State {
		case bus.StateReady:
			keep[key] = true
			if d.wanted[p.Agent] {
				d.pool(key)
			}
		case bus.StateLost:
			keep[key] = true
		case bus.StateDraining, bus.StateStopped:
		}
	}
	for key, r := range d.replicas {
		if !keep[key] {
			r.end()
			delete(d.replicas, key)
		}
	}
}

// pool returns a replica with its pool, and starts it if need be; the caller
// holds mu.
func (d *Dialer) pool(key replicaKey) *replica {
	if r := d.replicas[key]; r != nil {
		return r
	}
	r := newReplica(d, key)
	d.replicas[key] = r
	d.wg.Go(func() { _ = r.pool.Run(r.ctx) })
	return r
}

// Open implements Opener: it opens a stream to a target through one of the
// agent's replicas. Errors are *wire.Failure.
func (d *Dialer) Open(ctx context.Context, r Request) (Stream, error) {
	start := time.Now()
	s, leaving, use, err := d.openWithin(ctx, r)
	d.cfg.Streams.Opened(err, time.Since(start))
	if err != nil {
		return nil, wire.AsFailure(err, wire.LegProxy)
	}
	return &conversation{Stream: s, leaving: leaving, use: use, streams: d.cfg.Streams}, nil
}

// openWithin is open within the limits. leaving ends when the stream's replica is about
// to go.
func (d *Dialer) openWithin(ctx context.Context, r Request) (s *stream.Stream, leaving context.Context, use *limit.Use, err error) {
	agent := r.Agent.Agent
	if d.cfg.Limits != nil && !d.heardOf(agent) {
		agent = "" // clients may make up what they like; nothing is kept for it
	}
	use, refusal := d.cfg.Limits.Enter(limit.OneStream, d.cfg.Organization, agent, d.cfg.Name)
	if refusal != nil {
		return nil, nil, nil, refusal.Failure(wire.LegHub)
	}
	s, by, err := d.open(ctx, r)
	if err != nil {
		use.Leave()
		return nil, nil, nil, err
	}
	s.Limit(use)
	return s, by.ctx, use, nil
}

// conversation is a stream as the front ends know it, counted once.
type conversation struct {
	*stream.Stream
	leaving context.Context
	use     *limit.Use
	streams *observe.Streams
	once    sync.Once
}

// OnLeave has f called when the stream's replica drains, stops or is replaced.
func (c *conversation) OnLeave(f func()) (stop func() bool) { return context.AfterFunc(c.leaving, f) }

// Carry joins the stream to a client's connection.
func (c *conversation) Carry(local net.Conn, early []byte) (Stats, error) {
	s, err := c.Stream.Carry(local, early, wire.LegClient)
	c.once.Do(func() { c.streams.Closed(err); c.use.Leave() })
	return Stats{BytesIn: s.In, BytesOut: s.Out}, err
}

// Close ends the stream.
func (c *conversation) Close() error {
	c.once.Do(func() { c.streams.Closed(nil); c.use.Leave() })
	return c.Stream.Close()
}

// open tries replicas until one answers. A refusal is an answer, unless the
// replica shuts down. A pipe that broke before its replica answered has not brought
// the target a byte, so another one may be tried.
func (d *Dialer) open(ctx context.Context, req Request) (*stream.Stream, *replica, error) {
	agent := req.Agent.Agent
	if err := identity.ValidateName("agent ID", agent); err != nil {
		return nil, nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%v", err)
	}
	var last error
	var avoid map[replicaKey]bool // made when something fails
	for lost := 0; lost < maxLost; {
		r, err := d.pick(ctx, agent, avoid)
		if err != nil {
			if last != nil {
				err = last
			}
			return nil, nil, err
		}
		s, joined, err := r.open(ctx, req)
		if err == nil {
			return s, r, nil
		}
		last = err
		if avoid == nil {
			avoid = make(map[replicaKey]bool)
		}
		f := wire.AsFailure(err, wire.LegUnknown)
		switch {
		case ctx.Err() != nil:
			return nil, nil, err
		case f.Code == wire.CodeOverloaded && f.Leg == wire.LegRelay: // as with any other replica
			return nil, nil, err
		case f.Code == wire.CodeDraining, f.Code == wire.CodeOverloaded:
			avoid[r.key] = true
		case !joined: // nothing leads to this replica now: nobody has heard of the stream
			avoid[r.key] = true
			d.shun(r.key)
		case f.Code == wire.CodeLost && len(req.Early) == 0: // that pipe; perhaps all of this replica
			d.shun(r.key)
			lost++
		default: // an answer; or the target may have seen the early bytes
			return nil, nil, err
		}
	}
	return nil, nil, last
}

// Ping sends an echo to a replica of the agent and back, through the whole of the
// data path.
func (d *Dialer) Ping(ctx context.Context, agent string) (time.Duration, error) {
	r, err := d.pick(ctx, agent, nil)
	if err != nil {
		return 0, err
	}
	p, err := r.pool.Get(ctx)
	if err != nil {
		return 0, err
	}
	rtt, err := p.Ping(ctx)
	r.pool.Put(p, err == nil)
	return rtt, err
}

// Counts returns the numbers of idle and busy pipes.
func (d *Dialer) Counts() (idle, busy int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.replicas {
		s := r.pool.Stats()
		idle += s.Idle
		busy += s.Busy
	}
	return idle, busy
}

// isClosed tells the end of a process from a failure.
func isClosed(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed)
}
