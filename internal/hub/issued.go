package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/registry"
)

const (
	// issuedSweep is how often issuances that have ended are forgotten, and what
	// could not be enforced is tried again.
	issuedSweep = 15 * time.Second

	// issuedLeeway is how much longer than its certificate an issuance is kept:
	// clocks differ.
	issuedLeeway = 2 * time.Minute

	// IssuedAge is how long the store of issuances has to keep a record: longer than
	// any certificate lives.
	IssuedAge = 25 * time.Hour
)

// Issuance is one set of credentials that was issued, and on what ground.
type Issuance struct {
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

	party    partyName // of ID
	revision uint64    // in the store; 0: not there
}

// Issued knows which credentials were issued on what ground, and takes them back
// when the ground vanishes: it tells the relay which certificates to refuse, and
// has connections cut. It remembers an issuance until the certificate has expired and
// no connection uses it any more; pipes outlive certificates. Safe for concurrent use.
//
// All of it is in memory, and in the store for a restart. Where several nodes
// share the store, each has to learn of the others' changes: a watch of the store
// that calls Enforce.
type Issued struct {
	store    registry.Store
	registry *registry.Registry
	bus      BusRevoker
	now      func() time.Time
	log      *slog.Logger

	mu      sync.Mutex
	cutter  Cutter
	audit   audit.Recorder
	guests  map[*guest]struct{}
	shown   map[registry.Ground]*shownGround // that are watched
	all     map[string]*Issuance             // by serial
	owners  map[string]busOwner              // by bus key
	next    map[string][]string              // by serial: those whose Previous it is
	pending map[registry.Ground]string       // patterns to enforce again, and why
	roster  *roster
}

// errBusKeyTaken says that a bus key is that of another party.
var errBusKeyTaken = errors.New("the bus key is another party's")

// OpenIssued reads the issuances that a store holds. A nil now means time.Now.
func OpenIssued(
	ctx context.Context, store registry.Store, reg *registry.Registry, bus BusRevoker, log *slog.Logger, now func() time.Time,
) (*Issued, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if now == nil {
		now = time.Now
	}
	i := &Issued{
		store: store, registry: reg, bus: bus, now: now, log: log, audit: &heldRecords{},
		all: make(map[string]*Issuance), shown: make(map[registry.Ground]*shownGround), owners: make(map[string]busOwner),
		next: make(map[string][]string), pending: make(map[registry.Ground]string),
		roster: newRoster(),
	}
	keys, err := store.List(ctx, issuancePrefix)
	if err != nil {
		return nil, fmt.Errorf("read issuances: %w", err)
	}
	for _, key := range keys {
		b, revision, err := store.Get(ctx, key)
		if errors.Is(err, registry.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read issuances: %w", err)
		}
		one := &Issuance{}
		if err := json.Unmarshal(b, one); err != nil {
			return nil, fmt.Errorf("read issuance %s: %w", key, err)
		}
		one.revision = revision
		i.claim(one.BusKey, one.ID)
		i.roster.enter(one)
		i.put(one)
	}
	// What was deleted while nobody enforced it: the process ended in between.
	return i, errors.Join(i.Enforce(ctx, registry.Ground{}), i.enforceParties(ctx))
}

// Audit names who records revocations. Those that were found until then are recorded now.
func (i *Issued) Audit(r audit.Recorder) {
	i.mu.Lock()
	before := i.audit
	i.audit = r
	i.mu.Unlock()
	if held, ok := before.(*heldRecords); ok {
		held.hand(r)
	}
}

// Attach names the relay whose connections are to be cut.
func (i *Issued) Attach(c Cutter) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cutter = c
}

// Issue notes an issuance before it is given out. It must not be given out when there
// is an error: errBusKeyTaken for the bus key of another party, registry.ErrRevoked
// when its ground has just vanished, a *registry.RevokedError when the party was just
// revoked by name, an *api.Problem when there are too many. A Previous that is of the same
// party moves to the new ground with all before it, since the holder of the new ground
// vouches for it: so a key or token can be replaced and the old one revoked under open
// streams.
func (i *Issued) Issue(ctx context.Context, one Issuance) error {
	b, err := json.Marshal(one)
	if err != nil {
		return fmt.Errorf("encode issuance: %w", err)
	}
	if !i.claim(one.BusKey, one.ID) {
		return errBusKeyTaken
	}
	if err := i.enlist(&one); err != nil {
		return err
	}
	if one.revision, err = i.store.Create(ctx, issuanceKey(one.Serial), b); err != nil {
		i.delist(&one)
		return fmt.Errorf("note issuance: %w", err)
	}
	previous := one.Previous
	one.Previous = ""
	i.mu.Lock()
	i.put(&one)
	i.mu.Unlock()
	// Only now look at the ground: a revocation that did not see this issuance yet
	// removed the ground before, and is seen here.
	if err := i.checkIssued(ctx, &one); err != nil {
		return err
	}
	i.vouch(ctx, one.Serial, previous)
	return nil
}

// sameUser tells whether the holder of one ground may vouch for what was issued on
// another: robots and keys replace each other, but nobody speaks for a person, and
// people for themselves only.
func sameUser(a, b registry.Ground) bool {
	return a.Kind != registry.GroundUser && b.Kind != registry.GroundUser || a.Kind == b.Kind && a.Name == b.Name
}

// vouch moves the issuances of one process to the ground of its newest.
func (i *Issued) vouch(ctx context.Context, serial, previous string) {
	i.mu.Lock()
	newest, before := i.all[serial], i.all[previous]
	var moved []Issuance
	if newest != nil && before != nil && before != newest && before.ID == newest.ID && !before.Revoked &&
		sameUser(before.Ground, newest.Ground) {
		newest.Previous = previous
		i.next[previous] = append(i.next[previous], serial)
		for one := before; one != nil && one.Ground != newest.Ground && !one.Revoked && len(moved) < len(i.all); one = i.all[one.Previous] {
			i.roster.stand(one, -1)
			one.Ground = newest.Ground
			i.roster.stand(one, 1)
			moved = append(moved, *one)
		}
	}
	i.mu.Unlock()
	for _, one := range moved {
		// Without the record a restart forgets that it moved; it ended all
		// connections of that certificate anyway, and there is a newer one.
		i.write(ctx, one)
	}
}
