package agent

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// forgeryLog is how often the log tells of orders that are not the hub's.
const forgeryLog = time.Minute

// hubOrders is what the agent knows of the hub's orders beside their content, which
// the guard has.
type hubOrders struct {
	keys   atomic.Pointer[[]string] // that sign them
	given  chan struct{}            // holds one when there are keys
	forged atomic.Int64             // when the log told of a forgery, in Unix nanoseconds
}

// obey takes the keys that sign the hub's orders. A hub that once gave orders is not
// believed when it says that it gives none.
func (a *Agent) obey(g *enroll.Grant) {
	keys := g.Configuration.OrdersKeys
	if len(keys) == 0 {
		if !a.guard.governed.Load() {
			a.log.Warn("the hub is of a version without access grants: the agent's own rules decide alone")
		}
		return
	}
	a.orders.keys.Store(&keys)
	a.guard.governed.Store(true)
	select {
	case a.orders.given <- struct{}{}:
	default:
	}
}

// follow takes the hub's orders and answers its questions until ctx ends.
func (a *Agent) follow(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.orders.given:
	}
	stop, err := a.party.Bus.ServeExplain(a.cfg.AgentID, a.cfg.Name, a.explain)
	if err != nil {
		a.log.Error("the hub's questions are not answered", "error", err)
		return // the bus has been closed
	}
	defer stop()
	err = a.party.Bus.FollowOrders(ctx, a.cfg.AgentID, a.cfg.Name, a.ordered, func() bool { return a.guard.orders() > 0 })
	if err != nil {
		a.log.Error("the hub's orders are not followed", "error", err)
	}
}

// ordered takes one message of orders.
func (a *Agent) ordered(message []byte) {
	d, err := orders.Open(message, *a.orders.keys.Load(), a.cfg.Organization, a.cfg.AgentID)
	if err != nil {
		now := time.Now().UnixNano()
		if last := a.orders.forged.Load(); now-last > int64(forgeryLog) && a.orders.forged.CompareAndSwap(last, now) {
			a.failed(err)
			a.log.Error("orders refused; those before stay in force", "error", err)
		}
		return
	}
	cut, news := a.guard.obey(d)
	if !news {
		return
	}
	a.limitBy(d.Limits)
	a.log.Info("orders in force", "version", d.Version, "access_grants", len(d.Access), "labels", access.FormatLabels(d.Labels), "streams_cut", cut)
	if d.Unknown > 0 {
		a.log.Warn("access grants of a newer kind are not in force here; upgrade the agent", "access_grants", d.Unknown)
	}
	a.party.Bus.Kick()
}

// explain says what a stream would be told.
func (a *Agent) explain(r bus.ExplainRequest) bus.Explanation {
	who, err := policy.ParseAsker(r.From...)
	var t wire.Target
	if err == nil {
		t, err = wire.ParseTarget(r.Target)
	}
	var addr netip.AddrPort
	if err == nil && r.Address != "" {
		var ip netip.Addr
		ip, err = netip.ParseAddr(r.Address)
		addr = netip.AddrPortFrom(ip.Unmap(), t.Port)
	}
	if err != nil {
		return bus.Explanation{Failure: err.Error()}
	}
	s := a.guard.sides(who)
	if kube := s.Kubernetes(); addr.IsValid() && kube != nil && s.owner.Check(t).Kubernetes {
		addr = netip.AddrPortFrom(addr.Addr(), kube.Port)
	}
	v := s.verdict(t, addr)
	_, status := a.guard.allowed()
	return bus.Explanation{
		Owner: bus.Verdict{
			Allowed: v.owner.Allowed, ByAddress: v.owner.NeedsAddress, Rule: v.owner.Rule, Origin: v.owner.Origin,
			Reason: v.owner.Reason, Missing: v.owner.Missing,
		},
		Access: bus.Verdict{
			Allowed: v.access.Allowed, ByAddress: v.access.NeedsAddress, Rule: v.access.Rule, Origin: v.access.Grant, Reason: v.access.Reason,
		},
		Policy: status.Version, Orders: a.guard.orders(),
	}
}
