package hub

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/registry"
)

// Times and limits of orders.
const (
	ordersGap     = 50 * time.Millisecond // between two rounds, so that a burst of changes is told at once
	ordersLook    = 2 * time.Second       // how often it is checked who has missed a message
	ordersAskedBy = time.Minute           // how long an agent that asked is told of changes without its presence
	maxOrdersAsks = 1024                  // questions that wait; further ones are asked again
)

// ordersSecret is the name of the seed of the key that signs orders.
const ordersSecret = "orders"

// OrdersSource writes its part of what an agent is told into the agent's document.
// It is called from many goroutines and must not wait.
type OrdersSource func(org, agent string, d *orders.Document)

// Orders tells the agents of all organizations what is in force for them: each gets
// a signed document when it comes, and a new one when something changes that
// concerns it. Who has missed one is told again. Safe for concurrent use.
type Orders struct {
	registry *registry.Registry
	key      orders.Key
	log      *slog.Logger

	mu      sync.Mutex
	sources []OrdersSource
	all     map[string]*orgOrders
}

// NewOrders returns the orders of a hub, signed with the key that its state keeps.
// Add the sources before an organization is served.
func NewOrders(state *State, reg *registry.Registry, log *slog.Logger, sources ...OrdersSource) (*Orders, error) {
	seed, err := state.Secret(ordersSecret, orders.NewSeed)
	if err != nil {
		return nil, err
	}
	key, err := orders.ParseSeed(seed)
	if err != nil {
		return nil, err
	}
	return &Orders{registry: reg, key: key, log: log, sources: sources, all: make(map[string]*orgOrders)}, nil
}

// Keys returns the public keys by which agents verify their orders; none if o is nil.
func (o *Orders) Keys() []string {
	if o == nil {
		return nil
	}
	return []string{o.key.Public()}
}

// Signer returns what gives the hub's word to agents for requests through the gateway,
// by the key that they know its orders by.
func (o *Orders) Signer() (*assertion.Signer, error) { return assertion.NewSigner(o.key.Private()) }

// Changed says that what agents of an organization are to be told may have changed.
// It does not wait until they know.
func (o *Orders) Changed(org string) {
	o.mu.Lock()
	one := o.all[org]
	o.mu.Unlock()
	if one == nil {
		return
	}
	select {
	case one.dirty <- struct{}{}:
	default:
	}
}

// orgOrders is the orders of one organization. Its maps and packer belong to run.
type orgOrders struct {
	*Orders
	org      string
	presence func() []bus.Presence
	number   func(context.Context) (uint64, error)                                  // of the next round
	send     func(ctx context.Context, agent, replica string, message []byte) error // to all replicas if it is ""
	dirty    chan struct{}
	asks     chan ordersAsk

	packer  *orders.Packer
	version uint64           // of the newest round
	round   uint64           // counts rounds in this process
	told    map[string]*told // by agent
	asked   map[string]time.Time
}

type ordersAsk struct{ agent, replica string }

// told is what an agent has been told.
type told struct {
	version uint64 // of the document
	sum     [sha256.Size]byte
	round   uint64 // in which it was compared
}

// serve returns what tells the agents of an organization until its context ends.
func (o *Orders) serve(ctx context.Context, org string, conn *bus.Conn, presence func() []bus.Presence) (run func(context.Context), err error) {
	one := &orgOrders{
		Orders: o, org: org, presence: presence, send: conn.SendOrders,
		number: func(ctx context.Context) (uint64, error) { return o.registry.NextOrdersVersion(ctx, org) },
		dirty:  make(chan struct{}, 1), asks: make(chan ordersAsk, maxOrdersAsks),
		told: make(map[string]*told), asked: make(map[string]time.Time),
	}
	if err := one.next(ctx); err != nil {
		return nil, err
	}
	stop, err := conn.ServeOrders(func(agent, replica string) {
		select {
		case one.asks <- ordersAsk{agent, replica}:
		default: // it asks again
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen for agents of %s: %w", org, err)
	}
	o.mu.Lock()
	o.all[org] = one
	o.mu.Unlock()
	return func(ctx context.Context) {
		one.run(ctx)
		o.mu.Lock()
		if o.all[org] == one {
			delete(o.all, org)
		}
		o.mu.Unlock()
		stop()
	}, nil
}

func (o *orgOrders) run(ctx context.Context) {
	tick := time.NewTicker(ordersLook)
	defer tick.Stop()
	var gap <-chan time.Time // after a round
	again := false           // the version of the last change could not be noted
	for {
		dirty := o.dirty
		if gap != nil {
			dirty = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-gap:
			gap = nil
		case a := <-o.asks:
			o.asked[a.agent] = time.Now()
			d, _ := o.newest(ctx, a.agent)
			o.tell(ctx, d, a.replica)
		case <-dirty:
			again = !o.change(ctx)
			gap = time.After(ordersGap)
		case <-tick.C:
			if again {
				again = !o.change(ctx)
			}
			o.remind(ctx)
		}
	}
}

// next begins a round.
func (o *orgOrders) next(ctx context.Context) error {
	version, err := o.number(ctx)
	if err != nil {
		return err
	}
	o.version, o.round, o.packer = version, o.round+1, o.key.NewPacker() // what was packed for the last round is over
	return nil
}

// change tells each agent what has changed for it. It reports whether it could.
func (o *orgOrders) change(ctx context.Context) bool {
	if err := o.next(ctx); err != nil {
		if errors.Is(err, registry.ErrNotFound) {
			return true // the organization has just been deleted
		}
		o.log.Error("a change is not told to agents yet; will try again", "organization", o.org, "error", err)
		return false
	}
	agents := make(map[string]bool)
	for _, p := range o.presence() {
		agents[p.Agent] = true
	}
	for agent, at := range o.asked {
		if time.Since(at) > ordersAskedBy {
			delete(o.asked, agent)
		} else {
			agents[agent] = true
		}
	}
	for agent := range o.told {
		if !agents[agent] {
			delete(o.told, agent)
		}
	}
	for agent := range agents {
		before := o.told[agent]
		if d, now, _ := o.document(agent); before == nil || before.version != now.version {
			o.tell(ctx, d, "")
		}
	}
	return true
}

// remind tells those again who, by their presence, have missed something.
func (o *orgOrders) remind(ctx context.Context) {
	for _, p := range o.presence() {
		if p.State != bus.StateReady && p.State != bus.StateDraining || p.Orders == 0 { // it asks by itself, or is of an older version
			continue
		}
		t := o.told[p.Agent]
		if t == nil || t.round != o.round {
			_, t = o.newest(ctx, p.Agent)
		}
		switch {
		case p.Orders < t.version:
			d, _ := o.newest(ctx, p.Agent)
			o.tell(ctx, d, p.Replica)
		case p.Orders > o.version:
			o.log.Error("an agent has newer orders than this hub gave; is the hub's state an old copy?",
				"organization", o.org, "agent", p.Agent, "replica", p.Replica)
		}
	}
}

// newest returns what an agent is to be told. A change whose round has not come yet gets it now: two
// documents of one version would be one to the agent, which would then never hear of the second.
func (o *orgOrders) newest(ctx context.Context, agent string) (orders.Document, *told) {
	d, t, stale := o.document(agent)
	if stale && o.change(ctx) {
		d, t, _ = o.document(agent)
	}
	return d, t
}

// document returns what an agent is to be told in this round. It is stale if the agent was told
// something else in the same round; what the agent was told is then not noted anew.
func (o *orgOrders) document(agent string) (d orders.Document, t *told, stale bool) {
	d = orders.Document{Organization: o.org, Agent: agent}
	for _, source := range o.sources {
		source(o.org, agent, &d)
	}
	sum, err := o.packer.Sum(d)
	if err != nil {
		o.log.Error("orders cannot be written", "organization", o.org, "agent", agent, "error", err) // a defect: every source writes its own types
	}
	t = o.told[agent]
	switch {
	case t == nil || t.sum != sum && t.round != o.round:
		t = &told{version: o.version, sum: sum}
		o.told[agent] = t
	case t.sum != sum:
		stale = true
	}
	t.round = o.round
	d.Version = t.version
	return d, t, stale
}

// tell sends an agent, or one replica of it, its document.
func (o *orgOrders) tell(ctx context.Context, d orders.Document, replica string) {
	message, err := o.packer.Seal(d)
	if err == nil {
		err = o.send(ctx, d.Agent, replica, message)
	}
	if err != nil && ctx.Err() == nil {
		o.log.Error("orders not sent; will try again", "organization", o.org, "agent", d.Agent, "replica", replica, "error", err)
	}
}
