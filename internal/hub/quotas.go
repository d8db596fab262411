package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/registry"
)

// Quotas keeps the limits of a hub's organizations and of their agents and proxies:
// those of the settings, and those that were set, which the registry keeps. Safe for
// concurrent use.
type Quotas struct {
	c    QuotasConfig
	book *limit.Book

	mu sync.Mutex // one change at a time
}

// QuotasConfig is what Quotas work with. Count and Changed may be nil.
type QuotasConfig struct {
	Registry *registry.Registry
	Bus      BusLimiter
	Defaults limit.Table                                // for parties whose limits were not set
	Count    func(org string) (agents, connections int) // that an organization has
	Changed  func(org string)                           // is called when agents have to hear of a change
	Log      *slog.Logger
}

// BusLimiter bounds connections to the bus; *embedded.Server does.
type BusLimiter interface {
	LimitConnections(org string, most int64) error
}

// NewQuotas returns quotas in which the defaults hold.
func NewQuotas(c QuotasConfig) *Quotas {
	return &Quotas{c: c, book: limit.NewBook(limit.Options{
		Defaults: c.Defaults, Count: c.Count, Hint: limitHint,
		Refused: func(r *limit.Refusal) {
			c.Log.Warn("limit reached; this is told once a minute at most", "limit", r.Error())
		},
	})}
}

// limitHint says how a limit is raised at a hub.
func limitHint(r *limit.Refusal) string {
	who := " -a " + r.Key.Organization
	if r.Key.Level != limit.Organization {
		who = " --" + r.Key.Level.String() + " " + r.Key.Name + who
	}
	return "wait until others have ended, or have it raised with: postern limit set --" + r.Kind.String() + " N" + who
}

// Book returns what counts and holds to the limits.
func (q *Quotas) Book() *limit.Book { return q.book }

// Open makes the limits hold that were set in an organization.
func (q *Quotas) Open(ctx context.Context, org string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, err := q.c.Registry.Limits(ctx, org)
	if err != nil {
		return err
	}
	q.book.Forget(org)
	for _, l := range all {
		q.book.Set(l.Key(), l.Limits)
	}
	key := limit.Key{Level: limit.Organization, Organization: org}
	q.book.Know(key)
	return q.follow(key)
}

// Forget drops the limits of an organization that is gone.
func (q *Quotas) Forget(org string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.book.Forget(org)
}

// Set changes limits of a party, for what is open as well; those that are unset stay
// as they are.
func (q *Quotas) Set(ctx context.Context, key limit.Key, change limit.Limits) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	l, err := q.c.Registry.SetLimits(ctx, key, change)
	if err != nil {
		return err
	}
	q.book.Set(key, l)
	return q.follow(key)
}

// Remove takes back what was set for a party.
func (q *Quotas) Remove(ctx context.Context, key limit.Key) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.c.Registry.RemoveLimits(ctx, key); err != nil {
		return err
	}
	q.book.Set(key, limit.Limits{})
	return q.follow(key)
}

// follow makes others hold to a party's limits: the bus, and agents. q.mu is held.
func (q *Quotas) follow(key limit.Key) error {
	if key.Level != limit.Organization {
		if q.c.Changed != nil {
			q.c.Changed(key.Organization)
		}
		return nil
	}
	err := q.c.Bus.LimitConnections(key.Organization, max(int64(q.book.Limits(key).Connections), 0))
	if err != nil && !errors.Is(err, embedded.ErrNoAccount) {
		return fmt.Errorf("limit connections of %s: %w", key, err)
	}
	return nil
}

// Order writes the limits that an agent has to keep into its orders.
func (q *Quotas) Order(org, agent string, d *orders.Document) {
	o := limit.Orders{
		Agent: q.book.Limits(limit.Key{Level: limit.Agent, Organization: org, Name: agent}),
		Proxy: q.book.Default(limit.Proxy), Proxies: q.book.Own(limit.Proxy, org),
	}
	d.Limits, _ = json.Marshal(o) // it always encodes
}
