package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// meet answers a proxy that asks for a meeting. It accepts before it has come to
// the relay: the proxy waits for it there.
func (a *Agent) meet(r bus.MeetRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.draining:
		return wire.Fail(wire.LegAgent, wire.CodeDraining, "replica %s is shutting down", a.cfg.Name)
	case a.joining+len(r.Tickets) > maxJoining || len(a.lanes)+a.joining+len(r.Tickets) > a.limit:
		return wire.Fail(wire.LegAgent, wire.CodeOverloaded, "replica %s has %d pipes, and %d on their way",
			a.cfg.Name, len(a.lanes), a.joining)
	}
	a.joining += len(r.Tickets)
	for _, ticket := range r.Tickets {
		a.wg.Go(func() { a.join(ticket) })
	}
	return nil
}

// join makes one pipe, and has it served.
func (a *Agent) join(ticket wire.Ticket) {
	start := time.Now()
	p, err := a.connect(ticket)
	a.pipes.Joined(err, time.Since(start))
	a.mu.Lock()
	a.joining--
	if err != nil {
		a.mu.Unlock()
		if f := wire.AsFailure(err, wire.LegUnknown); f.Code == wire.CodeLost && f.Leg == wire.LegTLS {
			a.log.Debug("the proxy left while a pipe was made", "error", err)
			return
		}
		if a.life.Err() != nil {
			return
		}
		a.failed(err)
		a.log.Warn("pipe not joined", "error", err)
		return
	}
	l := &lane{agent: a, pipe: p, through: p.Peer().String(), done: make(chan struct{}, 1)}
	a.lanes[l] = struct{}{}
	a.mu.Unlock()
	a.keeper.Watch(p)
	a.wg.Go(func() { a.serve(l) }) // on a stack that the handshakes have not grown
}

// errHanded means that somebody else goes on with the lane.
var errHanded = errors.New("the stream was handed on")

// serve serves a pipe until it ends, or until a stream is handed to somebody who goes on
// with it.
func (a *Agent) serve(l *lane) {
	err := l.serve()
	if err == errHanded { //nolint:errorlint // it is that very one
		return
	}
	p := l.pipe
	p.Close()
	a.mu.Lock()
	delete(a.lanes, l)
	draining := a.draining
	a.mu.Unlock()
	if f := p.Dead(); f.Code == wire.CodeLost && !l.ended && !draining {
		a.pipes.Ended(f)
		a.log.Debug("pipe lost", "proxy", p.Peer(), "error", err)
	} else {
		a.pipes.Ended(nil)
	}
}

func (a *Agent) connect(ticket wire.Ticket) (*pipe.Pipe, error) {
	ctx, cancel := context.WithTimeout(a.life, joinTimeout)
	defer cancel()
	bare, err := a.party.JoinPipe(ctx, ticket)
	if err != nil {
		return nil, err
	}
	return pipe.Server(ctx, bare, a.inner, a.buffers)
}

// welcome says which peers may use a pipe: proxies of our organization.
func (a *Agent) welcome(id identity.ID) error {
	if id.Role != identity.RoleProxy || id.Organization != a.cfg.Organization {
		return wire.Fail(wire.LegAgent, wire.CodeWrongPeer, "%s is not a proxy of organization %s", id, a.cfg.Organization)
	}
	return nil
}

// lane serves the streams of one pipe, one after the other. It is their
// stream.Host.
type lane struct {
	agent   *Agent
	pipe    *pipe.Pipe
	through string        // the proxy's SPIFFE ID
	done    chan struct{} // a stream has given the pipe back
	busy    bool          // guarded by agent.mu
	ended   bool          // the pipe ended between two streams, as the proxy's pool does, or with a reset
}

func (l *lane) Done(p *pipe.Pipe, clean bool) {
	if !clean {
		p.Close()
	}
	l.done <- struct{}{}
}

func (l *lane) Go(f func()) { l.agent.wg.Go(f) }

func (l *lane) Buffers() *pipe.Buffers { return l.agent.buffers }

func (l *lane) Count(in, out int) {
	l.agent.bytesIn.Add(uint64(in))                //nolint:gosec // not negative
	l.agent.bytesOut.Add(uint64(out))              //nolint:gosec // not negative
	l.agent.streams.Bytes(uint64(in), uint64(out)) //nolint:gosec // not negative
}

func (l *lane) serve() error {
	for {
		in, err := stream.Accept(l.pipe)
		if err != nil {
			l.ended = true
			return err
		}
		if l.occupy() {
			if err = l.one(in); err == errHanded { //nolint:errorlint // it is that very one
				return err
			}
		} else { // the pipe stays: were it closed, the proxy might just be asking for a stream
			f := wire.Fail(wire.LegAgent, wire.CodeDraining, "replica %s is shutting down", l.agent.cfg.Name)
			l.visit(in, time.Now()).refused("", f)
			err = in.Refuse(f, l)
		}
		l.vacate()
		if err != nil {
			return err
		}
	}
}

// occupy marks the lane busy; false means that the agent drains.
func (l *lane) occupy() bool {
	l.agent.mu.Lock()
	defer l.agent.mu.Unlock()
	l.busy = true
	if l.agent.draining {
		return false
	}
	l.agent.serving.Add(1) // a drain that begins now waits for it
	return true
}

// vacate marks the lane idle.
func (l *lane) vacate() {
	l.agent.mu.Lock()
	defer l.agent.mu.Unlock()
	l.busy = false
}

// one serves one stream. An error means that the pipe cannot be used again. It keeps
// little on the stack, which stays as it is while the stream lives.
func (l *lane) one(in *stream.Incoming) error {
	o := &serving{lane: l, in: in, start: time.Now(), cancel: func() {}}
	goes, err := o.begin()
	if goes && o.to.gateway != nil {
		o.hand()
		return errHanded
	}
	defer o.leave()
	if !goes {
		return err
	}
	stats, err := o.to.carry(o.s)
	o.end(stats, err)
	<-l.done
	return err
}

// serving is a stream that is served.
type serving struct {
	*lane
	in       *stream.Incoming
	start    time.Time
	cancel   context.CancelFunc
	use      *limit.Use
	visit    *visit
	to       end
	s        *stream.Stream
	admitted *admission
	debug    bool
	ended    bool
}

// leave is called when nothing is left of the stream.
func (o *serving) leave() {
	o.use.Leave()
	o.cancel()
	if !o.ended {
		o.agent.serving.Add(-1)
	}
}

// begin reaches what the stream asks for, or refuses it.
//
//go:noinline
func (o *serving) begin() (goes bool, err error) {
	l, a, in := o.lane, o.agent, o.in
	target, err := wire.ParseTarget(in.Target)
	if err != nil {
		err = wire.Fail(wire.LegClient, wire.CodeBadRequest, "%v", err)
	}
	o.visit = l.visit(in, o.start)
	ctx := a.life
	if d := time.Duration(in.LimitMillis) * time.Millisecond; d > 0 && d < reach.DefaultTimeout {
		ctx, o.cancel = context.WithTimeout(ctx, d)
	}
	if err != nil {
		return false, l.refuse(in, o.visit, err, o.start)
	}
	use, refusal := a.quota.Enter(limit.OneStream, a.cfg.Organization, a.cfg.AgentID, l.pipe.Peer().Name)
	if refusal != nil {
		return false, l.refuse(in, o.visit, refusal.Failure(wire.LegAgent), o.start)
	}
	o.use = use
	who := askerOf(l.pipe.Peer(), l.pipe.Holder(), in.Open)
	if o.to, err = l.reach(ctx, who, target); err != nil {
		return false, l.refuse(in, o.visit, err, o.start)
	}
	reached := o.to.String()
	if o.s, err = in.Accept(reached, l); err != nil {
		o.visit.refused(reached, err)
		o.to.close()
		a.streams.Opened(err, 0)
		<-l.done
		return false, err
	}
	o.s.Limit(use)
	a.streams.Opened(nil, time.Since(o.start))
	a.open.Add(1)
	if o.debug = a.log.Enabled(ctx, slog.LevelDebug); o.debug {
		l.log(in).Debug("stream opened", "address", reached)
	}
	o.admitted = a.guard.admit(o.s, who, target, o.to)
	o.to.under = nil
	o.visit.admitted(reached, a.guard.why(o.admitted))
	return true, nil
}

// end notes how the stream ended.
//
//go:noinline
func (o *serving) end(stats stream.Stats, err error) {
	a := o.agent
	a.guard.leave(o.admitted)
	a.open.Add(-1)
	a.serving.Add(-1) // a drain does not wait for the pipe
	o.ended = true
	a.streams.Closed(err)
	o.visit.closed(stats, err)
	if err != nil && o.pipe.Dead() == nil {
		o.lane.ended = true // by the stream's last word, which may still be on its way
	}
	if o.debug {
		o.log(o.in).Debug("stream closed", "in", stats.In, "out", stats.Out, "duration", time.Since(o.start), "error", err)
	}
}

// log names a stream; it is not for every stream, as it takes time.
func (l *lane) log(in *stream.Incoming) *slog.Logger {
	return l.agent.log.With("stream", in.Stream, "target", in.Target, "proxy", l.pipe.Peer())
}

func (l *lane) refuse(in *stream.Incoming, v *visit, err error, start time.Time) error {
	f := wire.AsFailure(err, wire.LegAgent)
	v.refused("", f)
	l.agent.streams.Opened(f, time.Since(start))
	l.agent.failed(f)
	var level slog.Level
	switch f.Code { //nolint:exhaustive // the others are ordinary
	case wire.CodeDenied: // somebody tries what the owner does not allow
		level = slog.LevelWarn
	case wire.CodeOverloaded: // the quota tells of its limits
		level = slog.LevelDebug
	}
	l.log(in).Log(context.Background(), level, "stream refused", "error", f)
	if err := in.Refuse(f, l); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
