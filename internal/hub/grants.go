package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/registry"
)

const (
	// grantSweep is how often grants that have ended are forgotten, and what
	// could not be enforced is tried again.
	grantSweep = 15 * time.Second

	// grantLeeway is how much longer than its certificate a grant is kept:
	// clocks differ.
	grantLeeway = 2 * time.Minute

	// GrantAge is how long the store of grants has to keep a record: longer than
	// any certificate lives.
	GrantAge = 25 * time.Hour
)

// Grant is one set of credentials that was issued, and on what ground.
type Grant struct {
	Ground   registry.Ground `json:"ground"`
	Serial   string          `json:"serial"`             // of the certificate, as identity.Serial tells it
	Previous string          `json:"previous,omitempty"` // of the one before, in the life of the same process
	ID       string          `json:"id"`                 // SPIFFE ID
	BusKey   string          `json:"busKey"`
	Expires  time.Time       `json:"expires"`

	// Authority is the pin of the authority that issued the certificate, and
	// Generation that of the trust bundle that went with it (Trust.Generation).
	Authority  string `json:"authority,omitempty"`
	Generation int    `json:"generation,omitempty"`

	Revoked bool `json:"revoked,omitempty"`

	revision uint64 // in the store; 0: not there
}

// BusRevoker voids bus users; *embedded.Server does.
type BusRevoker interface {
	RevokeUsers(org string, userKeys ...string) error
}

// Cutter ends connections of parties; *relay.Relay does.
type Cutter interface {
	// Cut closes the connections whose certificates are revoked, and returns
	// how many there were.
	Cut(revoked func(serial string) bool) int
	// Holds reports whether there are connections of a certificate.
	Holds(serial string) bool
}

// Grants knows which credentials were issued on what ground, and takes them back
// when the ground vanishes: it tells the relay which certificates to refuse, and
// has connections cut. It remembers a grant until the certificate has expired and
// no connection uses it any more; pipes outlive certificates. Safe for concurrent use.
//
// All of it is in memory, and in the store for a restart. Where several nodes
// share the store, each has to learn of the others' changes: a watch of the store
// that calls Enforce.
type Grants struct {
	store    registry.Store
	registry *registry.Registry
	bus      BusRevoker
	now      func() time.Time
	log      *slog.Logger

	mu      sync.Mutex
	cutter  Cutter
	audit   audit.Recorder
	guests  map[*guest]struct{}
	shown   map[registry.Ground]time.Time // that stand, and when a proxy asked last: see Gone
	all     map[string]*Grant             // by serial
	owners  map[string]busOwner           // by bus key
	next    map[string][]string           // by serial: those whose Previous it is
	pending map[registry.Ground]string    // patterns to enforce again, and why
	roster  *roster
}

// busOwner is whose a bus key is, and in how many grants. Without it somebody could
// have credentials issued for another party's key, and that party cut off the bus by
// their revocation.
type busOwner struct {
	id     string
	grants int
}

// errBusKeyTaken says that a bus key is that of another party.
var errBusKeyTaken = errors.New("the bus key is another party's")

// OpenGrants reads the grants that a store holds. A nil now means time.Now.
func OpenGrants(
	ctx context.Context, store registry.Store, reg *registry.Registry, bus BusRevoker, log *slog.Logger, now func() time.Time,
) (*Grants, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if now == nil {
		now = time.Now
	}
	g := &Grants{
		store: store, registry: reg, bus: bus, now: now, log: log, audit: audit.Discard{},
		all: make(map[string]*Grant), shown: make(map[registry.Ground]time.Time), owners: make(map[string]busOwner), next: make(map[string][]string), pending: make(map[registry.Ground]string),
		roster: newRoster(),
	}
	keys, err := store.List(ctx, "grant.")
	if err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	for _, key := range keys {
		b, revision, err := store.Get(ctx, key)
		if errors.Is(err, registry.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read grants: %w", err)
		}
		one := &Grant{}
		if err := json.Unmarshal(b, one); err != nil {
			return nil, fmt.Errorf("read grant %s: %w", key, err)
		}
		one.revision = revision
		g.claim(one.BusKey, one.ID)
		g.roster.enter(one)
		g.put(one)
	}
	// What was deleted while nobody enforced it: the process ended in between.
	return g, g.Enforce(ctx, registry.Ground{})
}

// VoidUsers voids the bus users of what was revoked, which the bus forgets when it
// ends. Somebody who holds another certificate that is good could use them else.
// Call it when the organizations have their accounts and nobody is let in yet.
func (g *Grants) VoidUsers() error {
	now := g.now()
	users, good := make(map[string][]string), make(map[string]bool)
	g.mu.Lock()
	for _, one := range g.all {
		switch {
		case !one.Revoked:
			good[one.BusKey] = true // of the same process, which came again with a good token
		case now.Before(one.Expires.Add(grantLeeway)):
			users[one.Ground.Organization] = append(users[one.Ground.Organization], one.BusKey)
		}
	}
	g.mu.Unlock()
	var errs []error
	for org, keys := range users {
		keys = slices.DeleteFunc(keys, func(key string) bool { return good[key] })
		if err := g.bus.RevokeUsers(org, keys...); err != nil && !errors.Is(err, embedded.ErrNoAccount) {
			errs = append(errs, fmt.Errorf("void bus users of organization %s: %w", org, err))
		}
	}
	return errors.Join(errs...)
}

func grantKey(serial string) string { return "grant." + serial }

// Audit names who records revocations; nobody does until then.
func (g *Grants) Audit(r audit.Recorder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.audit = r
}

// Attach names the relay whose connections are to be cut.
func (g *Grants) Attach(c Cutter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cutter = c
}

// Revoked reports whether a certificate was revoked. One that it does not know,
// such as that of the hub's own proxies, was not.
func (g *Grants) Revoked(serial string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.all[serial]
	return one != nil && one.Revoked
}

// Issue notes a grant before it is given out. It must not be given out when there
// is an error: errBusKeyTaken for the bus key of another party, registry.ErrRevoked
// when its ground has just vanished, an *api.Problem when there are too many. A Previous that is of the same party moves to
// the new ground with all before it, since the holder of the new ground vouches for
// it: so a key or token can be replaced and the old one revoked under open streams.
func (g *Grants) Issue(ctx context.Context, one Grant) error {
	b, err := json.Marshal(one)
	if err != nil {
		return fmt.Errorf("encode grant: %w", err)
	}
	if !g.claim(one.BusKey, one.ID) {
		return errBusKeyTaken
	}
	if err := g.enlist(&one); err != nil {
		return err
	}
	if one.revision, err = g.store.Create(ctx, grantKey(one.Serial), b); err != nil {
		g.delist(&one)
		return fmt.Errorf("note grant: %w", err)
	}
	previous := one.Previous
	one.Previous = ""
	g.mu.Lock()
	g.put(&one)
	g.mu.Unlock()
	// Only now look at the ground: a revocation that did not see this grant yet
	// removed the ground before, and is seen here.
	if err := g.registry.CheckGround(ctx, one.Ground); err != nil {
		if errors.Is(err, registry.ErrRevoked) {
			err = errors.Join(err, g.Enforce(ctx, one.Ground))
		}
		return err
	}
	g.vouch(ctx, one.Serial, previous)
	return nil
}

// claim notes that one more grant has a bus key, unless it is another party's.
func (g *Grants) claim(key, id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	owner, known := g.owners[key]
	if known && owner.id != id {
		return false
	}
	g.owners[key] = busOwner{id: id, grants: owner.grants + 1}
	return true
}

// release undoes a claim; g.mu is held.
func (g *Grants) release(key string) {
	owner := g.owners[key]
	if owner.grants--; owner.grants <= 0 {
		delete(g.owners, key)
		return
	}
	g.owners[key] = owner
}

// sameUser tells whether the holder of one ground may vouch for what was issued on
// another: robots and keys replace each other, but nobody speaks for a person, and
// people for themselves only.
func sameUser(a, b registry.Ground) bool {
	return a.Kind != registry.GroundUser && b.Kind != registry.GroundUser || a.Kind == b.Kind && a.Name == b.Name
}

// vouch moves the grants of one process to the ground of its newest.
func (g *Grants) vouch(ctx context.Context, serial, previous string) {
	g.mu.Lock()
	newest, before := g.all[serial], g.all[previous]
	var moved []Grant
	if newest != nil && before != nil && before != newest && before.ID == newest.ID && !before.Revoked &&
		sameUser(before.Ground, newest.Ground) {
		newest.Previous = previous
		g.next[previous] = append(g.next[previous], serial)
		for one := before; one != nil && one.Ground != newest.Ground && !one.Revoked && len(moved) < len(g.all); one = g.all[one.Previous] {
			g.roster.stand(one, -1)
			one.Ground = newest.Ground
			g.roster.stand(one, 1)
			moved = append(moved, *one)
		}
	}
	g.mu.Unlock()
	for _, one := range moved {
		// Without the record a restart forgets that it moved; it ended all
		// connections of that certificate anyway, and there is a newer one.
		g.write(ctx, one)
	}
}

// Revoke takes back the grants whose ground matches pattern, though it stands.
func (g *Grants) Revoke(ctx context.Context, pattern registry.Ground) {
	all := make(map[registry.Ground]bool)
	for _, ground := range g.grounds(pattern) {
		all[ground] = true
	}
	g.revoke(ctx, all)
}

// Enforce revokes the grants whose ground matches pattern and has vanished, and
// cuts their connections. The empty fields of a pattern match everything.
func (g *Grants) Enforce(ctx context.Context, pattern registry.Ground) error {
	gone := make(map[registry.Ground]bool)
	for _, ground := range g.grounds(pattern) {
		err := g.registry.CheckGround(ctx, ground)
		if errors.Is(err, registry.ErrRevoked) {
			gone[ground] = true
		} else if err != nil {
			g.mu.Lock()
			g.pending[pattern] = err.Error()
			g.mu.Unlock()
			return fmt.Errorf("revoke what was issued on the %s: %w", ground, err)
		}
	}
	g.revoke(ctx, gone)
	g.mu.Lock()
	delete(g.pending, pattern)
	g.mu.Unlock()
	return nil
}

// grounds returns the grounds of grants and guests, here and elsewhere, that match a
// pattern.
func (g *Grants) grounds(pattern registry.Ground) []registry.Ground {
	seen := make(map[registry.Ground]bool)
	var all []registry.Ground
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, one := range g.all {
		if !one.Revoked && !seen[one.Ground] && matches(pattern, one.Ground) {
			seen[one.Ground] = true
			all = append(all, one.Ground)
		}
	}
	for one := range g.guests {
		if !seen[one.ground] && matches(pattern, one.ground) {
			seen[one.ground] = true
			all = append(all, one.ground)
		}
	}
	for ground := range g.shown {
		if !seen[ground] && matches(pattern, ground) {
			seen[ground] = true
			all = append(all, ground)
		}
	}
	return all
}

func matches(pattern, g registry.Ground) bool {
	same := func(p, s string) bool { return p == "" || p == s }
	return same(pattern.Organization, g.Organization) && same(pattern.Kind, g.Kind) && same(pattern.Name, g.Name) && same(pattern.Item, g.Item)
}

// revoke takes back the grants on some grounds. Connections go first, since they
// are what hurts; the records after them.
func (g *Grants) revoke(ctx context.Context, gone map[registry.Ground]bool) {
	if len(gone) == 0 {
		return
	}
	var revoked []Grant
	users := make(map[string][]string)
	g.mu.Lock()
	for _, one := range g.all {
		if gone[one.Ground] && !one.Revoked {
			g.roster.stand(one, -1)
			one.Revoked = true
			revoked = append(revoked, *one)
			users[one.Ground.Organization] = append(users[one.Ground.Organization], one.BusKey)
		}
	}
	cutter, recorder := g.cutter, g.audit
	g.mu.Unlock()
	cut := g.evict(gone)
	if cutter != nil {
		cut += cutter.Cut(g.Revoked)
	}
	for org, keys := range users {
		err := g.bus.RevokeUsers(org, keys...)
		if err != nil && !errors.Is(err, embedded.ErrNoAccount) { // the organization's account may be gone with it
			g.log.Warn("bus users not revoked; their certificates are", "organization", org, "error", err)
		}
	}
	for ground := range gone {
		recorder.Record(audit.Record{
			Action: audit.Revoke, Organization: ground.Organization, Object: ground.String(), What: "cut connections", OK: true, Count: uint64(cut), //nolint:gosec // not negative
		})
		g.log.Info("credentials revoked", "ground", ground.String(), "connections", cut)
	}
	for _, one := range revoked {
		g.write(ctx, one)
	}
}

// write stores a grant that changed.
func (g *Grants) write(ctx context.Context, one Grant) {
	b, err := json.Marshal(one)
	if err == nil {
		one.revision, err = g.store.Update(ctx, grantKey(one.Serial), b, one.revision)
	}
	if err != nil {
		// After a restart, Enforce finds again that the ground is gone.
		g.log.Warn("grant not stored", "serial", one.Serial, "error", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if kept := g.all[one.Serial]; kept != nil {
		kept.revision = one.revision
	}
}

// put adds a grant; g.mu is held, or nobody else has g.
func (g *Grants) put(one *Grant) {
	g.all[one.Serial] = one
	if one.Previous != "" {
		g.next[one.Previous] = append(g.next[one.Previous], one.Serial)
	}
}

// Run forgets grants that have ended, and tries again what could not be enforced,
// until ctx ends.
func (g *Grants) Run(ctx context.Context) {
	tick := time.NewTicker(grantSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		g.mu.Lock()
		again := make([]registry.Ground, 0, len(g.pending))
		for pattern := range g.pending {
			again = append(again, pattern)
		}
		g.mu.Unlock()
		for _, pattern := range again {
			if err := g.Enforce(ctx, pattern); err != nil && ctx.Err() == nil {
				g.log.Error("revocation not enforced yet; will try again", "error", err)
			}
		}
		g.sweep(ctx)
	}
}

// sweep forgets the grants whose certificates have expired and carry no
// connection.
func (g *Grants) sweep(ctx context.Context) {
	now := g.now()
	var ended []string
	g.mu.Lock()
	g.forgetShown(now)
	for serial, one := range g.all {
		if now.After(one.Expires.Add(grantLeeway)) && (g.cutter == nil || !g.cutter.Holds(serial)) {
			g.forget(one)
			ended = append(ended, serial)
		}
	}
	g.mu.Unlock()
	for _, serial := range ended {
		if err := g.store.Delete(ctx, grantKey(serial)); err != nil {
			return // the store forgets it by itself, after GrantAge
		}
	}
}

// forget takes a grant out of the chain of its process; g.mu is held.
func (g *Grants) forget(one *Grant) {
	delete(g.all, one.Serial)
	g.roster.leave(one)
	g.release(one.BusKey)
	for _, serial := range g.next[one.Serial] {
		if later := g.all[serial]; later != nil {
			later.Previous = one.Previous
			if one.Previous != "" {
				g.next[one.Previous] = append(g.next[one.Previous], serial)
			}
		}
	}
	delete(g.next, one.Serial)
	if left := g.all[one.Previous]; left == nil {
		delete(g.next, one.Previous)
	}
}
