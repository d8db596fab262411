package hub

import (
	"context"
	"net"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// ownStream is a stream through the hub's own proxies. The agent judges it too; the
// hub does so first, because a refusal is quicker here, and because an agent of an
// older version does not know access grants.
type ownStream struct {
	proxy.Stream
	who    policy.Asker
	agent  string
	target wire.Target
	ended  func()
}

// Carry implements proxy.Stream.
func (s *ownStream) Carry(local net.Conn, early []byte) (proxy.Stats, error) {
	defer s.ended()
	return s.Stream.Carry(local, early)
}

// Close implements net.Conn.
func (s *ownStream) Close() error {
	s.ended()
	return s.Stream.Close()
}

// liveUse is what goes on because access grants allow it, and is cut when they do not
// any more.
type liveUse interface {
	asks(now time.Time) (who policy.Asker, agent string, t wire.Target, at time.Time)
	cut(d access.Decision)
}

func (s *ownStream) asks(now time.Time) (policy.Asker, string, wire.Target, time.Time) {
	return s.who, s.agent, s.target, now
}

// cut ends the stream because of a decision, without waiting for it.
func (s *ownStream) cut(d access.Decision) {
	reset(s.Stream, refusal(d))
}

// Reset ends the stream for a reason, without waiting for it.
func (s *ownStream) Reset(f *wire.Failure) { reset(s.Stream, f) }

// refusal returns the failure of a decision.
func refusal(d access.Decision) *wire.Failure {
	return wire.Fail(wire.LegPolicy, wire.CodeDenied, "%s", d.Reason).WithHint("%s", d.Hint)
}

// askerOf returns who asks the hub's own proxies. On a listener that asks for no
// credentials it is the hub itself.
func askerOf(r proxy.Request, node string) policy.Asker {
	who := policy.Asker{Proxy: ownProxy, Principal: r.For.Principal, Groups: r.For.Groups}
	if who.Principal == (identity.Principal{}) {
		who.Principal = identity.Principal{Kind: identity.KindHub, Name: node}
	}
	return who
}

// open opens a stream for somebody, if the access grants of the moment do not
// refuse it. One that a change forbids meanwhile is cut.
func (a *Access) open(ctx context.Context, org string, who policy.Asker, r proxy.Request, via proxy.Opener) (proxy.Stream, error) {
	d, before, err := a.judge(org, who, r.Agent.Agent, r.Target)
	if err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub cannot tell who may reach what").WithCause(err)
	}
	if !d.Allowed {
		return nil, refusal(d)
	}
	stream, err := via.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	s := &ownStream{Stream: stream, who: who, agent: r.Agent.Agent, target: r.Target}
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[org]
	if one == nil { // just deleted: its streams end anyway
		s.ended = func() {}
		return s, nil
	}
	s.ended = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(one.live, s)
	}
	if before != (judged{one, one.reviews}) { // something has changed meanwhile
		if d := one.judge(s.who, s.agent, s.target, a.now()); !d.Allowed {
			s.cut(d)
			return s, nil
		}
	}
	one.live[s] = struct{}{}
	return s, nil
}
