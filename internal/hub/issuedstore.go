package hub

import (
	"context"
	"encoding/json"
	"time"

	"postern.dev/postern/internal/registry"
)

// busOwner is whose a bus key is, and in how many issuances. Without it somebody could
// have credentials issued for another party's key, and that party cut off the bus by
// their revocation.
type busOwner struct {
	id        string
	issuances int
}

// issuancePrefix begins the keys of the store. The name is older than the type's.
const issuancePrefix = "grant."

func issuanceKey(serial string) string { return issuancePrefix + serial }

// claim notes that one more issuance has a bus key, unless it is another party's.
func (i *Issued) claim(key, id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	owner, known := i.owners[key]
	if known && owner.id != id {
		return false
	}
	i.owners[key] = busOwner{id: id, issuances: owner.issuances + 1}
	return true
}

// release undoes a claim; i.mu is held.
func (i *Issued) release(key string) {
	owner := i.owners[key]
	if owner.issuances--; owner.issuances <= 0 {
		delete(i.owners, key)
		return
	}
	i.owners[key] = owner
}

// write stores an issuance that changed.
func (i *Issued) write(ctx context.Context, one Issuance) {
	b, err := json.Marshal(one)
	if err == nil {
		one.revision, err = i.store.Update(ctx, issuanceKey(one.Serial), b, one.revision)
	}
	if err != nil {
		// After a restart, Enforce finds again that the ground is gone.
		i.log.Warn("issuance not stored", "serial", one.Serial, "error", err)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if kept := i.all[one.Serial]; kept != nil {
		kept.revision = one.revision
	}
}

// put adds an issuance; i.mu is held, or nobody else has i.
func (i *Issued) put(one *Issuance) {
	one.party = partyNameOf(one.ID)
	i.all[one.Serial] = one
	if one.Previous != "" {
		i.next[one.Previous] = append(i.next[one.Previous], one.Serial)
	}
}

// Run forgets issuances that have ended, and tries again what could not be enforced,
// until ctx ends.
func (i *Issued) Run(ctx context.Context) {
	tick := time.NewTicker(issuedSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		i.mu.Lock()
		again := make([]registry.Ground, 0, len(i.pending))
		for pattern := range i.pending {
			again = append(again, pattern)
		}
		i.mu.Unlock()
		for _, pattern := range again {
			if err := i.Enforce(ctx, pattern); err != nil && ctx.Err() == nil {
				i.log.Error("revocation not enforced yet; will try again", "error", err)
			}
		}
		i.sweep(ctx)
	}
}

// sweep forgets the issuances whose certificates have expired and carry no
// connection.
func (i *Issued) sweep(ctx context.Context) {
	now := i.now()
	var ended []string
	i.mu.Lock()
	i.forgetShown(now)
	for serial, one := range i.all {
		if now.After(one.Expires.Add(issuedLeeway)) && (i.cutter == nil || !i.cutter.Holds(serial)) {
			i.forget(one)
			ended = append(ended, serial)
		}
	}
	i.mu.Unlock()
	for _, serial := range ended {
		if err := i.store.Delete(ctx, issuanceKey(serial)); err != nil {
			return // the store forgets it by itself, after IssuedAge
		}
	}
}

// forget takes an issuance out of the chain of its process; i.mu is held.
func (i *Issued) forget(one *Issuance) {
	delete(i.all, one.Serial)
	i.roster.leave(one)
	i.release(one.BusKey)
	for _, serial := range i.next[one.Serial] {
		if later := i.all[serial]; later != nil {
			later.Previous = one.Previous
			if one.Previous != "" {
				i.next[one.Previous] = append(i.next[one.Previous], serial)
			}
		}
	}
	delete(i.next, one.Serial)
	if left := i.all[one.Previous]; left == nil {
		delete(i.next, one.Previous)
	}
}
