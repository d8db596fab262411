package relay

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Limits of the rendezvous.
const (
	// burnTime is how long a used ticket is remembered: longer than anyone with
	// an honest clock can still come with it.
	burnTime = time.Minute

	// Bounds of the parties that wait and of the used tickets, in all and of one
	// organization, so that none of them can take the relay from the others.
	maxWaiting       = 1 << 14
	maxBurnt         = 1 << 18
	maxWaitingPerOrg = maxWaiting / 4
	maxBurntPerOrg   = maxBurnt / 4
)

// rendezvous pairs the bearers of tickets. Safe for concurrent use.
type rendezvous struct {
	patience time.Duration // of the first bearer of a ticket
	perOrg   share         // at most

	mu      sync.Mutex
	waiting map[wire.Ticket]*party
	burnt   map[wire.Ticket]ash
	order   []wire.Ticket // burnt, oldest first
	shares  map[string]share
}

// ash is what is left of a used ticket.
type ash struct {
	until time.Time // when it may be forgotten
	org   string    // of its first bearer
}

// share is what one organization has of a rendezvous.
type share struct{ waiting, burnt int }

func newRendezvous(patience time.Duration) *rendezvous {
	return &rendezvous{
		patience: patience, perOrg: share{maxWaitingPerOrg, maxBurntPerOrg}, waiting: make(map[wire.Ticket]*party), burnt: make(map[wire.Ticket]ash), shares: make(map[string]share),
	}
}

// party is one bearer of a ticket.
type party struct {
	id    identity.ID
	outer *tls.Conn // nil for the hub's own proxy, which needs no answer
	bare  net.Conn  // under outer
	met   chan outcome
}

// outcome is what the first bearer learns from the second.
type outcome struct {
	peer    *party
	pair    *pair // nil where one of the two is the hub's own proxy
	refusal *wire.Failure
}

// meet presents a party's ticket. The first bearer waits; the second is told of
// the first at once, with second set: it then answers both parties and tells the first
// the outcome, which is what the first one's meet returns.
func (r *rendezvous) meet(ctx context.Context, ticket wire.Ticket, p *party) (peer *party, pair *pair, second bool, refusal *wire.Failure) {
	peer, refusal = r.arrive(ticket, p)
	if peer != nil || refusal != nil {
		return peer, nil, true, refusal
	}
	timer := time.NewTimer(r.patience)
	defer timer.Stop()
	select {
	case o := <-p.met:
		return o.peer, o.pair, false, o.refusal
	case <-timer.C:
		refusal = wire.Fail(wire.LegRelay, wire.CodeTicketExpired, "the other side did not come within %s", r.patience).
			WithHint("the other side cannot reach this relay, or came to another one")
	case <-ctx.Done():
		refusal = wire.Fail(wire.LegRelay, wire.CodeDraining, "the relay is shutting down")
		if p.outer == nil { // the hub's own proxy, which has given up
			refusal = wire.Fail(wire.LegRelay, wire.CodeTimeout, "waiting for the agent at the relay: %v", context.Cause(ctx)).WithCause(ctx.Err())
		}
	}
	if r.leave(ticket, p) {
		return nil, nil, false, refusal
	}
	o := <-p.met // the second came at the last moment
	return o.peer, o.pair, false, o.refusal
}

// arrive registers the first bearer of a ticket, or takes the first out for the
// second.
func (r *rendezvous) arrive(ticket wire.Ticket, p *party) (*party, *wire.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.forget(now)
	if _, used := r.burnt[ticket]; used {
		return nil, wire.Fail(wire.LegRelay, wire.CodeTicketUsed, "the ticket has been used, or has expired")
	}
	first, ok := r.waiting[ticket]
	if !ok {
		if s := r.shares[p.id.Organization]; s.waiting >= r.perOrg.waiting || s.burnt >= r.perOrg.burnt {
			return nil, wire.Fail(wire.LegRelay, wire.CodeOverloaded, "too many parties of organization %s are waiting at this relay", p.id.Organization)
		}
		if len(r.waiting) >= maxWaiting || len(r.burnt) >= maxBurnt {
			return nil, wire.Fail(wire.LegRelay, wire.CodeOverloaded, "too many parties are waiting at this relay")
		}
		r.waiting[ticket] = p
		r.account(p.id.Organization, 1, 0)
		return nil, nil
	}
	// Whatever comes of it, the ticket has been presented twice.
	r.burn(ticket, first, now)
	if f := mayPair(first.id, p.id); f != nil {
		first.met <- outcome{refusal: f}
		return nil, f
	}
	return first, nil
}

// mayPair says whether two parties may meet at all. Whom exactly each of them
// wants, they check by themselves in the inner TLS.
func mayPair(a, b identity.ID) *wire.Failure {
	if a.Role == identity.RoleAgent {
		a, b = b, a
	}
	switch {
	case b.Role != identity.RoleAgent || a.Role != identity.RoleProxy:
		return wire.Fail(wire.LegRelay, wire.CodeWrongPeer, "a ticket joins a proxy and an agent, not %s and %s", a.Role, b.Role)
	case a.Organization != b.Organization || a.TrustDomain != b.TrustDomain:
		return wire.Fail(wire.LegRelay, wire.CodeWrongPeer, "the ticket was presented by parties of two organizations")
	}
	return nil
}

// leave takes a party that gave up out again; false means that somebody has just
// come for it.
func (r *rendezvous) leave(ticket wire.Ticket, p *party) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[ticket] != p {
		return false
	}
	r.burn(ticket, p, time.Now())
	return true
}

// burn takes the ticket of a waiting party out of use. burn, forget and account
// are called with mu held.
func (r *rendezvous) burn(ticket wire.Ticket, p *party, now time.Time) {
	delete(r.waiting, ticket)
	r.burnt[ticket] = ash{until: now.Add(burnTime), org: p.id.Organization}
	r.order = append(r.order, ticket)
	r.account(p.id.Organization, -1, 1)
}

func (r *rendezvous) forget(now time.Time) {
	for len(r.order) > 0 {
		old := r.burnt[r.order[0]]
		if !now.After(old.until) {
			return
		}
		delete(r.burnt, r.order[0])
		r.order = r.order[1:]
		r.account(old.org, 0, -1)
	}
}

func (r *rendezvous) account(org string, waiting, burnt int) {
	s := r.shares[org]
	s.waiting, s.burnt = s.waiting+waiting, s.burnt+burnt
	if s == (share{}) {
		delete(r.shares, org)
		return
	}
	r.shares[org] = s
}

// counts returns how many parties wait and how many tickets are remembered.
func (r *rendezvous) counts() (waiting, burnt int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting), len(r.burnt)
}
