package hub

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// ownProxyTTL is how long the certificates of the hub's own proxies are valid.
const ownProxyTTL = time.Hour

// ownProxy is the name of the hub's own proxies, which no other may have.
const ownProxy = "hub"

// tenants are the organizations as the hub serves them: a connection into each
// one's bus, its directory of agents, and the dialer of the hub's own proxies. Safe
// for concurrent use.
type tenants struct {
	state   *State
	bus     *embedded.Server
	zone    string
	audit   *auditLog
	join    func(ctx context.Context, t wire.Ticket, id identity.ID) (net.Conn, error)
	streams *observe.Streams
	pipes   *observe.Pipes
	orders  *Orders
	quotas  *Quotas
	access  *Access
	issued  *Issued
	log     *slog.Logger

	ctx context.Context // ends all of them
	end context.CancelFunc
	wg  sync.WaitGroup
	mu  sync.Mutex
	all map[string]*tenant
}

type tenant struct {
	bus    *bus.Conn
	creds  *ownCredentials
	dialer *proxy.Dialer
	end    context.CancelFunc
	done   chan struct{}
}

// start begins to serve an organization; it does nothing if that is done already.
func (t *tenants) start(ctx context.Context, org string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[org] != nil {
		return nil
	}
	seed, err := t.state.Secret("account-"+org, embedded.NewAccountSeed)
	if err != nil {
		return err
	}
	if err := t.bus.EnsureAccount(org, seed); err != nil {
		return err
	}
	if err := t.quotas.Open(ctx, org); err != nil {
		return err
	}
	conn, err := t.bus.Connect(ctx, org)
	if err != nil {
		return fmt.Errorf("connect to the bus of %s: %w", org, err)
	}
	own, end := context.WithCancel(t.ctx)
	id := identity.ID{
		TrustDomain: t.state.TrustDomain(), Organization: org, Role: identity.RoleProxy, Name: ownProxy, Replica: t.state.Node(),
	}
	creds := &ownCredentials{state: t.state, id: id}
	if _, err := creds.current(); err != nil {
		end()
		conn.Close()
		return err
	}
	dialer, err := proxy.NewDialer(own, proxy.DialerConfig{
		Organization: org, Zone: t.zone, Node: t.state.Node(), Bus: conn,
		Credentials: func() *identity.Credentials { c, _ := creds.current(); return c },
		Join:        func(ctx context.Context, ticket wire.Ticket) (net.Conn, error) { return t.join(ctx, ticket, id) },
		Limits:      t.quotas.Book(), Name: ownProxy, Streams: t.streams, Pipes: t.pipes, Log: t.log.With("organization", org),
	})
	if err != nil {
		end()
		conn.Close()
		return err
	}
	err = t.access.Open(ctx, org)
	var tell func(context.Context)
	if err == nil {
		tell, err = t.orders.serve(ctx, org, conn, dialer.Directory().All)
	}
	var stopAudit func()
	if err == nil {
		stopAudit, err = conn.ServeAudit(func(agent, replica string, batch []byte) error { return t.audit.take(own, org, agent, replica, batch) })
	}
	var stopRevoked func()
	if err == nil {
		stopRevoked, err = conn.ServeRevoked(func(shown []bus.Credential) []int { return t.revoked(own, org, shown) })
	}
	if err != nil {
		end()
		conn.Close()
		return err
	}
	one := &tenant{bus: conn, creds: creds, dialer: dialer, end: end, done: make(chan struct{})}
	t.all[org] = one
	t.wg.Go(func() {
		defer close(one.done)
		var telling sync.WaitGroup
		telling.Go(func() { tell(own) })
		_ = dialer.Run(own)
		telling.Wait()
		stopAudit()
		stopRevoked()
		conn.Close()
	})
	return nil
}

// stop ends an organization: its streams through the hub are cut, and its
// account on the bus is gone.
func (t *tenants) stop(org string) error {
	t.mu.Lock()
	one := t.all[org]
	delete(t.all, org)
	t.mu.Unlock()
	if one != nil {
		one.end()
		<-one.done
	}
	t.access.Forget(org)
	t.quotas.Forget(org)
	if err := t.bus.RemoveAccount(org); err != nil {
		return err
	}
	return t.state.RemoveSecret("account-" + org)
}

// wait returns when all have ended.
func (t *tenants) wait() { t.wg.Wait() }

func (t *tenants) get(org string) *tenant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[org]
}

// Presence returns what is known of an organization's agents.
func (t *tenants) Presence(org string) []bus.Presence {
	one := t.get(org)
	if one == nil {
		return nil
	}
	return one.dialer.Directory().All()
}

// credentials returns those of the hub's own proxy in the default organization, or
// in any other when that one is gone; empty ones if there is none.
func (t *tenants) credentials() *identity.Credentials {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.all[registry.DefaultOrganization]
	for _, other := range t.all {
		if one == nil {
			one = other
		}
	}
	if one != nil {
		if c, _ := one.creds.current(); c != nil {
			return c
		}
	}
	return &identity.Credentials{}
}

// replicas counts the replicas that are ready, in all organizations.
func (t *tenants) replicas() int {
	n := 0
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		for _, p := range one.dialer.Directory().All() {
			if p.State == bus.StateReady {
				n++
			}
		}
	}
	return n
}

// counts returns the numbers of idle and busy pipes of the hub's own proxies.
func (t *tenants) counts() (idle, busy int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		i, b := one.dialer.Counts()
		idle, busy = idle+i, busy+b
	}
	return idle, busy
}

// Open implements proxy.Opener for the hub's own proxies.
func (t *tenants) Open(ctx context.Context, r proxy.Request) (proxy.Stream, error) {
	one := t.get(r.Agent.Organization)
	if one == nil {
		return nil, wire.Fail(wire.LegClient, wire.CodeNoAgent, "there is no organization %q", r.Agent.Organization)
	}
	return t.audit.open(r, one.dialer, func(via proxy.Opener) (proxy.Stream, error) {
		s, err := t.access.open(ctx, r.Agent.Organization, askerOf(r, t.state.Node()), r, via)
		if err != nil {
			return nil, err
		}
		return t.issued.lodge(ctx, r.For, s)
	})
}

// ownCredentials issues the hub's own proxies their certificates: anew when half
// of their time is over, and when the authorities change.
type ownCredentials struct {
	state *State
	id    identity.ID

	mu         sync.Mutex
	last       *identity.Credentials
	generation int // of the authorities of last
}

func (o *ownCredentials) current() (*identity.Credentials, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, trust := time.Now(), o.state.Trust()
	if o.last != nil && o.generation == trust.Generation && now.Before(o.last.NotAfter.Add(-ownProxyTTL/2)) {
		return o.last, nil
	}
	c, err := issue(trust, o.id, now)
	if err != nil {
		return o.last, err
	}
	o.last, o.generation = c, trust.Generation
	return c, nil
}

func issue(t *Trust, id identity.ID, now time.Time) (*identity.Credentials, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	holder := identity.Holder{Principal: identity.Principal{Kind: identity.KindHub, Name: id.Replica}}
	chain, err := t.Signing.IssueParty(id, key.Public(), holder, ownProxyTTL, now)
	if err != nil {
		return nil, err
	}
	return identity.NewCredentials(chain, key, t.Bundle)
}
