package agent

import (
	"context"
	"net/netip"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

const (
	// ordersPatience is how long a stream waits for the first orders of the hub.
	ordersPatience = 3 * time.Second

	// expiryLook is how often the clock is looked at, at least: it may be set.
	expiryLook = 30 * time.Second
)

// granted is the access grants of the moment, as the hub's orders tell them.
type granted struct {
	set     *access.Set
	agent   access.Agent
	version uint64 // of the orders
}

// askerOf returns who asks for a stream. A proxy asks for who enrolled it, as its
// certificate tells, whatever it says itself; only the hub's own proxies are
// believed for whom they ask.
func askerOf(peer identity.ID, holder identity.Holder, o wire.Open) policy.Asker {
	who := policy.Asker{Proxy: peer.Name, Principal: holder.Principal, Groups: holder.Groups}
	if holder.Principal.Kind == identity.KindHub && o.For != "" {
		// What cannot be read is nobody, and must not pass for the hub.
		who.Principal, who.Groups = identity.Principal{}, o.Groups
		if p, err := identity.ParsePrincipal(o.For); err == nil {
			who.Principal = p
		}
	}
	return who
}

// sides are the two that decide about somebody's streams: the agent's owner and the
// hub. It is a reach.Judge.
type sides struct {
	owner  *policy.Policy
	access access.View
	free   bool // the hub gives no orders
}

// verdict is what both sides say of a stream.
type verdict struct {
	owner  policy.Decision
	access access.Decision // Allowed without a Grant if the hub gives no orders
}

func (v verdict) allowed() bool { return v.owner.Allowed && v.access.Allowed }

// sides returns who decides about an asker now.
func (g *guard) sides(who policy.Asker) sides {
	s := sides{owner: g.current.Load().For(who), free: !g.governed.Load()}
	if now := g.granted.Load(); now != nil {
		s.access = now.set.For(who, now.agent, time.Now())
	} else {
		s.access = (*access.Set)(nil).For(who, access.Agent{ID: g.agent}, time.Now())
	}
	return s
}

// Check implements reach.Judge. The hub's side comes first: who has no access learns
// nothing of the owner's rules.
func (s sides) Check(t wire.Target) policy.Decision {
	if s.free {
		return s.owner.Check(t)
	}
	a := s.access.Check(t)
	if !a.Allowed {
		return policy.Decision{Reason: a.Reason, Hint: a.Hint}
	}
	d := s.owner.Check(t)
	d.NeedsAddress = d.NeedsAddress || d.Allowed && a.NeedsAddress
	return d
}

// CheckAddr implements reach.Judge.
func (s sides) CheckAddr(t wire.Target, addr netip.AddrPort) policy.Decision {
	if s.free {
		return s.owner.CheckAddr(t, addr)
	}
	if a := s.access.CheckAddr(t, addr); !a.Allowed {
		return policy.Decision{Reason: a.Reason, Hint: a.Hint}
	}
	return s.owner.CheckAddr(t, addr)
}

// Kubernetes implements reach.Judge.
func (s sides) Kubernetes() *policy.KubernetesAPI { return s.owner.Kubernetes() }

// verdict returns what both sides say of a target and an address that it led to; an
// address that is not valid is not known.
func (s sides) verdict(t wire.Target, addr netip.AddrPort) verdict {
	v := verdict{owner: s.owner.Check(t), access: access.Decision{Allowed: true}}
	if v.owner.Allowed && addr.IsValid() {
		v.owner = s.owner.CheckAddr(t, addr)
	}
	switch {
	case s.free:
	case addr.IsValid():
		v.access = s.access.CheckAddr(t, addr)
	default:
		v.access = s.access.Check(t)
	}
	return v
}

// await waits for the first orders, for a while, if the hub gives some.
func (g *guard) await(ctx context.Context) error {
	if !g.governed.Load() || g.granted.Load() != nil {
		return nil
	}
	timer := time.NewTimer(ordersPatience)
	defer timer.Stop()
	select {
	case <-g.known:
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	return wire.Fail(wire.LegAgent, wire.CodeTimeout, "the agent does not know yet whom the hub's access grants let in").
		WithHint("try again in some seconds; if it stays so, see what the agent's log says of orders")
}

// orders returns the version of the hub's orders in force, 0 if there are none.
func (g *guard) orders() uint64 {
	if now := g.granted.Load(); now != nil {
		return now.version
	}
	return 0
}

// obey puts orders in force, at once for new streams, and cuts the streams that they
// do not allow. Orders that are older than those in force change nothing.
func (g *guard) obey(d orders.Document) (cut int, news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.granted.Load()
	if before != nil && d.Version <= before.version {
		return 0, false
	}
	g.granted.Store(&granted{set: access.New(d.Access), agent: access.Agent{ID: g.agent, Labels: d.Labels}, version: d.Version})
	if before == nil {
		close(g.known)
	}
	select {
	case g.expiry <- struct{}{}:
	default:
	}
	return g.review(), true
}

// expire cuts streams when the access grants that allow them expire, until ctx ends.
func (g *guard) expire(ctx context.Context) {
	for {
		wait := expiryLook
		if now := g.granted.Load(); now != nil {
			if next := now.set.NextExpiry(time.Now()); !next.IsZero() {
				wait = min(wait, max(time.Until(next), time.Millisecond))
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-g.expiry:
			timer.Stop()
			continue
		case <-timer.C:
		}
		g.mu.Lock()
		g.review()
		g.mu.Unlock()
	}
}
