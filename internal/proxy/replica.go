package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// replica is one life of one replica of an agent, with the pipes to it. It is the
// stream.Host of its streams.
type replica struct {
	d       *Dialer
	key     replicaKey
	pool    *pipe.Pool
	ctx     context.Context
	end     context.CancelFunc
	streams atomic.Int64
	inner   *tls.Config // shared by all pipes
}

func newReplica(d *Dialer, key replicaKey) *replica {
	r := &replica{d: d, key: key}
	r.ctx, r.end = context.WithCancel(d.ctx)
	r.inner = identity.InnerClientConfig(d.cfg.Credentials, r.expect)
	r.pool = pipe.NewPool(pipe.PoolConfig{Join: r.join, Keeper: d.keeper})
	return r
}

// open opens a stream over one of the replica's pipes. joined tells whether there was
// a pipe.
func (r *replica) open(ctx context.Context, req Request) (s *stream.Stream, joined bool, err error) {
	r.streams.Add(1)
	p, err := r.pool.Get(ctx)
	if err != nil {
		r.streams.Add(-1)
		return nil, false, err
	}
	limit := openTimeout
	if at, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(at), time.Millisecond))
	}
	o := wire.Open{Stream: stream.NewID(), Target: req.Target.String(), LimitMillis: uint32(limit.Milliseconds())} //nolint:gosec // small
	if req.Trace.Valid() {
		o.Trace = req.Trace.Bytes()
	} else {
		o.Trace = observe.NewTrace().Bytes()
	}
	if req.For.Principal != (identity.Principal{}) {
		o.For, o.Groups = req.For.Principal.String(), req.For.Groups
	}
	s, err = stream.Open(ctx, p, o, req.Early, r)
	return s, true, err
}

// Done takes back the pipe of a stream that ended, or that never began.
func (r *replica) Done(p *pipe.Pipe, clean bool) {
	r.streams.Add(-1)
	r.pool.Put(p, clean)
}

// Go runs what outlives a stream's Close.
func (r *replica) Go(f func()) { r.d.wg.Go(f) }

// Buffers lends memory.
func (r *replica) Buffers() *pipe.Buffers { return r.d.buffers }

// Count counts bytes.
func (r *replica) Count(in, out int) {
	r.d.cfg.Streams.Bytes(uint64(out), uint64(in)) //nolint:gosec // not negative
}

// join brings n pipes: it asks the replica to meet, and presents the same tickets
// at the relay meanwhile.
func (r *replica) join(ctx context.Context, n int, deliver func(*pipe.Pipe, error)) {
	tickets := make([]wire.Ticket, n)
	for i := range tickets {
		tickets[i] = wire.NewTicket(r.d.cfg.Node)
	}
	creds := r.d.cfg.Credentials()
	ctx, cancel := context.WithTimeoutCause(ctx, joinTimeout, context.DeadlineExceeded)
	ctx, refuse := context.WithCancelCause(ctx)
	var left atomic.Int64
	left.Store(int64(n) + 1)
	done := func() {
		if left.Add(-1) == 0 {
			refuse(nil)
			cancel()
		}
	}
	r.d.wg.Go(func() {
		defer done()
		ctx, cancel := context.WithTimeout(ctx, meetTimeout)
		defer cancel()
		if err := r.d.cfg.Bus.Meet(ctx, r.key.agent, r.key.replica, bus.MeetRequest{
			Epoch: r.key.epoch, Tickets: tickets, Proxy: creds.ID.String(), Expires: joinTimeout,
		}); err != nil {
			refuse(err)
		}
	})
	for _, t := range tickets {
		r.d.wg.Go(func() {
			defer done()
			start := time.Now()
			p, err := r.connect(ctx, t)
			r.d.cfg.Pipes.Joined(err, time.Since(start))
			if err != nil && !isClosed(err) {
				r.d.cfg.Log.Debug("pipe not joined", "agent", r.key.agent, "replica", r.key.replica, "error", err)
			}
			deliver(p, err)
		})
	}
}

// connect makes one pipe; p is nil if and only if there is an error.
func (r *replica) connect(ctx context.Context, t wire.Ticket) (p *pipe.Pipe, err error) {
	var bare net.Conn
	if bare, err = r.d.cfg.Join(ctx, t); err == nil {
		p, err = pipe.Client(ctx, bare, r.inner, r.d.buffers)
	}
	if err != nil && ctx.Err() != nil { // the replica's refusal says more than that we gave up
		if f := wire.AsFailure(context.Cause(ctx), wire.LegUnknown); f.Leg != wire.LegUnknown {
			return nil, f
		}
	}
	return p, err
}

// expect says whether a peer is the replica that was asked to come.
func (r *replica) expect(id identity.ID) error {
	if id.Role != identity.RoleAgent || id.Organization != r.d.cfg.Organization || id.Name != r.key.agent || id.Replica != r.key.replica {
		return wire.Fail(wire.LegAgent, wire.CodeWrongPeer, "expected replica %s of agent %s of organization %s, and %s came",
			r.key.replica, r.key.agent, r.d.cfg.Organization, id)
	}
	return nil
}
