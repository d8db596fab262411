package hub

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

const (
	// accessKept is how long an access grant is listed after it has expired.
	accessKept = 24 * time.Hour

	// accessLook is how often the clock is looked at, at least: it may be set.
	accessLook = time.Minute

	// maxLabelled bounds the agents of an organization that have labels.
	maxLabelled = 10_000
)

// Access keeps the access grants of all organizations and the labels of their
// agents: in memory for questions, in the registry for good. It is the source of
// that part of orders, and cuts streams through the hub's own proxies that a change
// forbids. Safe for concurrent use.
type Access struct {
	registry *registry.Registry
	changed  func(org string)
	log      *slog.Logger
	now      func() time.Time
	wake     chan struct{} // when grants expire has changed

	writing sync.Mutex // one change at a time; before mu
	mu      sync.Mutex
	all     map[string]*orgAccess
}

// orgAccess is what holds in one organization.
type orgAccess struct {
	set     *access.Set // replaced as a whole
	labels  map[string]map[string]string
	size    int // of the grants, in JSON
	live    map[liveUse]struct{}
	reviews uint64 // how often live was looked through, as something had changed
}

// NewAccess returns the access grants of a hub. changed is told of changes, and must
// not wait. A nil now means time.Now.
func NewAccess(reg *registry.Registry, changed func(org string), log *slog.Logger, now func() time.Time) *Access {
	if now == nil {
		now = time.Now
	}
	return &Access{registry: reg, changed: changed, log: log, now: now, wake: make(chan struct{}, 1), all: make(map[string]*orgAccess)}
}

// Open reads what holds in an organization. One that has never been served, or not
// by a version with access grants, gets access.Defaults.
func (a *Access) Open(ctx context.Context, org string) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	if _, err := a.registry.OrdersVersion(ctx, org); errors.Is(err, registry.ErrNotFound) {
		for _, g := range access.Defaults(a.stamp()) {
			if err := a.registry.CreateAccessGrant(ctx, org, g); err != nil && !errors.Is(err, registry.ErrExists) {
				return err
			}
		}
		// Only now: what is cut off here is done again.
		if _, err := a.registry.NextOrdersVersion(ctx, org); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	grants, err := a.registry.AccessGrants(ctx, org)
	if err != nil {
		return err
	}
	labels, err := a.registry.AgentLabels(ctx, org)
	if err != nil {
		return err
	}
	one := &orgAccess{set: access.New(grants), labels: labels, live: make(map[liveUse]struct{})}
	for _, g := range grants {
		one.size += grantSize(g)
	}
	a.mu.Lock()
	a.all[org] = one
	a.mu.Unlock()
	a.hurry()
	return nil
}

// Forget drops a deleted organization.
func (a *Access) Forget(org string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, org)
}

// grantSize returns how much of access.MaxSize a grant takes.
func grantSize(g access.Grant) int {
	b, _ := json.Marshal(g) // it always encodes
	return len(b)
}

func (a *Access) stamp() time.Time { return a.now().UTC().Truncate(time.Millisecond) }

func (a *Access) get(org string) (*orgAccess, error) {
	if one := a.all[org]; one != nil {
		return one, nil
	}
	return nil, fmt.Errorf("get access grants of organization %q: %w", org, registry.ErrNotFound)
}

// Grants returns an organization's access grants, oldest first, with those that have
// expired lately.
func (a *Access) Grants(org string) ([]access.Grant, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one, err := a.get(org)
	if err != nil {
		return nil, err
	}
	return one.set.Grants(), nil
}

// Grant keeps a new access grant. Its ID, if it has none, and the time of its making
// are filled in.
func (a *Access) Grant(ctx context.Context, org string, g access.Grant) (access.Grant, error) {
	if g.ID == "" {
		g.ID = "g-" + strings.ToLower(rand.Text()[:10])
	}
	g.Created = a.stamp()
	if err := g.Validate(); err != nil {
		return access.Grant{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	if g.Agent.IsZero() {
		return access.Grant{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "the access grant names no agent")
	}
	if g.Expired(g.Created) {
		return access.Grant{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "the access grant would have expired already")
	}
	err := a.change(org, func(one *orgAccess) error {
		size := one.size + grantSize(g)
		if n := len(one.set.Grants()); n >= access.MaxGrants || size > access.MaxSize {
			return wire.Fail(wire.LegHub, wire.CodeBadRequest, "organization %s has %d access grants of %d bytes; %d of %d bytes are possible",
				org, n, one.size, access.MaxGrants, access.MaxSize).
				WithHint("grant to groups and by labels instead of one by one, or revoke what is not needed: postern access list")
		}
		if err := a.registry.CreateAccessGrant(ctx, org, g); err != nil {
			return err
		}
		a.replace(one, append(slices.Clone(one.set.Grants()), g), size)
		return nil
	})
	return g, err
}

// Revoke removes an access grant, or returns registry.ErrNotFound.
func (a *Access) Revoke(ctx context.Context, org, id string) (access.Grant, error) {
	var gone access.Grant
	err := a.change(org, func(one *orgAccess) error {
		grants := slices.Clone(one.set.Grants())
		i := slices.IndexFunc(grants, func(g access.Grant) bool { return g.ID == id })
		if i < 0 {
			return fmt.Errorf("revoke access grant %q: %w", clip(id), registry.ErrNotFound)
		}
		gone = grants[i]
		if err := a.registry.DeleteAccessGrant(ctx, org, id); err != nil {
			return err
		}
		a.replace(one, slices.Delete(grants, i, i+1), one.size-grantSize(gone))
		return nil
	})
	return gone, err
}

// Labels returns the labels of an organization's agents, by agent ID; none if a is nil.
func (a *Access) Labels(org string) map[string]map[string]string {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.all[org]; one != nil {
		return maps.Clone(one.labels)
	}
	return nil
}

// Label changes labels of an agent, which need neither be registered nor connected:
// an empty value takes a label away. It returns the labels that it has then.
func (a *Access) Label(ctx context.Context, org, agent string, changes map[string]string) (map[string]string, error) {
	var labels map[string]string
	err := a.change(org, func(one *orgAccess) error {
		labels = maps.Clone(one.labels[agent])
		if labels == nil {
			labels = make(map[string]string)
		}
		for k, v := range changes {
			if v == "" {
				delete(labels, k)
			} else {
				labels[k] = v
			}
		}
		if err := access.ValidateLabels(labels); err != nil {
			return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithCause(err)
		}
		if one.labels[agent] == nil && len(one.labels) >= maxLabelled {
			return wire.Fail(wire.LegHub, wire.CodeBadRequest, "organization %s has labels on %d agents, which is the limit", org, maxLabelled)
		}
		if err := a.registry.SetAgentLabels(ctx, org, agent, labels); err != nil {
			return err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if one.labels[agent] = labels; len(labels) == 0 {
			delete(one.labels, agent)
		}
		return nil
	})
	return labels, err
}

// change makes one change in an organization, and has it take effect.
func (a *Access) change(org string, f func(*orgAccess) error) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	one, err := a.get(org)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f(one); err != nil {
		return err
	}
	a.took(org, one)
	return nil
}

func (a *Access) replace(one *orgAccess, grants []access.Grant, size int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one.set, one.size = access.New(grants), size
}

// took makes a change known, and cuts what it forbids.
func (a *Access) took(org string, one *orgAccess) {
	a.changed(org)
	a.hurry()
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	one.reviews++
	for s := range one.live {
		if d := one.judge(s.asks(now)); !d.Allowed {
			s.cut(d)
			delete(one.live, s)
		}
	}
}

// hurry has Run look at the clock.
func (a *Access) hurry() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// judge returns what the grants say of a stream as far as the hub can tell: what
// depends on an address, which only the agent knows, counts as allowed.
func (o *orgAccess) judge(who policy.Asker, agent string, t wire.Target, now time.Time) access.Decision {
	return o.set.For(who, access.Agent{ID: agent, Labels: o.labels[agent]}, now).Check(t)
}

// Judge returns what the grants of the moment say of a stream as far as the hub can tell.
func (a *Access) Judge(org string, who policy.Asker, agent string, t wire.Target) (access.Decision, error) {
	d, _, err := a.judge(org, who, agent, t)
	return d, err
}

// judged is when something was judged: it need not be judged again while that is the same.
type judged struct {
	by      *orgAccess
	reviews uint64
}

func (a *Access) judge(org string, who policy.Asker, agent string, t wire.Target) (access.Decision, judged, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one, err := a.get(org)
	if err != nil {
		return access.Decision{}, judged{}, err
	}
	return one.judge(who, agent, t, a.now()), judged{one, one.reviews}, nil
}

// Order is the OrdersSource of access grants and labels.
func (a *Access) Order(org, agent string, d *orders.Document) {
	a.mu.Lock()
	one := a.all[org]
	var set *access.Set
	if one != nil {
		set, d.Labels = one.set, maps.Clone(one.labels[agent])
	}
	a.mu.Unlock()
	d.Access = set.Concerning(access.Agent{ID: agent, Labels: d.Labels}, a.now())
}

// Run has grants expire when it is time, until ctx ends.
func (a *Access) Run(ctx context.Context) {
	last := a.now()
	for {
		timer := time.NewTimer(a.expire(ctx, last))
		last = a.now()
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// expire makes known what has expired since a time, removes what has expired long
// ago, and returns how long there is nothing to do.
func (a *Access) expire(ctx context.Context, since time.Time) time.Duration {
	now, wait := a.now(), accessLook
	over := make(map[string]*orgAccess)
	old := make(map[string][]string)
	a.mu.Lock()
	for org, one := range a.all {
		for _, g := range one.set.Grants() {
			switch {
			case g.Expires.IsZero():
			case g.Expires.After(now):
				wait = min(wait, g.Expires.Sub(now))
			case g.Expires.After(since):
				over[org] = one
			case now.Sub(g.Expires) > accessKept:
				old[org] = append(old[org], g.ID)
			}
		}
	}
	a.mu.Unlock()
	for org, one := range over {
		a.log.Info("access grants expired", "organization", org)
		a.took(org, one)
	}
	for org, ids := range old {
		for _, id := range ids {
			if _, err := a.Revoke(ctx, org, id); err != nil && ctx.Err() == nil {
				a.log.Warn("expired access grant not removed; it allows nothing", "organization", org, "grant", id, "error", err)
			}
		}
	}
	return max(wait, time.Millisecond)
}
