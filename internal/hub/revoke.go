package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/registry"
)

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

// VoidUsers voids the bus users of what was revoked, which the bus forgets when it
// ends. Somebody who holds another certificate that is good could use them else.
// Call it when the organizations have their accounts and nobody is let in yet.
func (i *Issued) VoidUsers() error {
	now := i.now()
	users, good := make(map[string][]string), make(map[string]bool)
	i.mu.Lock()
	for _, one := range i.all {
		switch {
		case !one.Revoked:
			good[one.BusKey] = true // of the same process, which came again with a good token
		case now.Before(one.Expires.Add(issuedLeeway)):
			users[one.Ground.Organization] = append(users[one.Ground.Organization], one.BusKey)
		}
	}
	i.mu.Unlock()
	var errs []error
	for org, keys := range users {
		keys = slices.DeleteFunc(keys, func(key string) bool { return good[key] })
		if err := i.bus.RevokeUsers(org, keys...); err != nil && !errors.Is(err, embedded.ErrNoAccount) {
			errs = append(errs, fmt.Errorf("void bus users of organization %s: %w", org, err))
		}
	}
	return errors.Join(errs...)
}

// Revoked reports whether a certificate was revoked. One that it does not know,
// such as that of the hub's own proxies, was not.
func (i *Issued) Revoked(serial string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	one := i.all[serial]
	return one != nil && one.Revoked
}

// Revoke takes back the issuances whose ground matches pattern, though it stands.
func (i *Issued) Revoke(ctx context.Context, pattern registry.Ground) {
	all := make(map[registry.Ground]bool)
	for _, ground := range i.grounds(pattern) {
		all[ground] = true
	}
	i.revoke(ctx, all)
}

// Enforce revokes the issuances whose ground matches pattern and has vanished, and
// cuts their connections. The empty fields of a pattern match everything.
func (i *Issued) Enforce(ctx context.Context, pattern registry.Ground) error {
	gone := make(map[registry.Ground]bool)
	for _, ground := range i.grounds(pattern) {
		err := i.registry.CheckGround(ctx, ground)
		if errors.Is(err, registry.ErrRevoked) {
			gone[ground] = true
		} else if err != nil {
			i.mu.Lock()
			i.pending[pattern] = err.Error()
			i.mu.Unlock()
			return fmt.Errorf("revoke what was issued on the %s: %w", ground, err)
		}
	}
	i.revoke(ctx, gone)
	i.mu.Lock()
	delete(i.pending, pattern)
	i.mu.Unlock()
	return nil
}

// grounds returns the grounds of issuances and guests, here and elsewhere, that match a
// pattern.
func (i *Issued) grounds(pattern registry.Ground) []registry.Ground {
	seen := make(map[registry.Ground]bool)
	var all []registry.Ground
	add := func(ground registry.Ground) {
		if !seen[ground] && matches(pattern, ground) {
			seen[ground] = true
			all = append(all, ground)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, one := range i.all {
		if !one.Revoked {
			add(one.Ground)
		}
	}
	for one := range i.guests {
		add(one.ground)
	}
	for ground := range i.shown {
		add(ground)
	}
	return all
}

func matches(pattern, g registry.Ground) bool {
	same := func(p, s string) bool { return p == "" || p == s }
	return same(pattern.Organization, g.Organization) && same(pattern.Kind, g.Kind) && same(pattern.Name, g.Name) && same(pattern.Item, g.Item)
}

// revoke takes back the issuances on some grounds.
func (i *Issued) revoke(ctx context.Context, gone map[registry.Ground]bool) {
	if len(gone) == 0 {
		return
	}
	revoked, cut := i.takeBack(func(one *Issuance) bool { return gone[one.Ground] })
	cut += i.evict(gone)
	for ground := range gone {
		i.tell(ground.Organization, ground.String(), cut)
	}
	for _, one := range revoked {
		i.write(ctx, one)
	}
}

// takeBack revokes the issuances that gone picks out, cuts their connections and voids
// their bus users. Connections go first, since they are what hurts; the records are the
// caller's to write. It returns what was revoked and how many connections that had.
func (i *Issued) takeBack(gone func(*Issuance) bool) (revoked []Issuance, cut int) {
	users := make(map[string][]string)
	i.mu.Lock()
	for _, one := range i.all {
		if !one.Revoked && gone(one) {
			i.roster.stand(one, -1)
			one.Revoked = true
			revoked = append(revoked, *one)
			users[one.Ground.Organization] = append(users[one.Ground.Organization], one.BusKey)
		}
	}
	cutter := i.cutter
	i.mu.Unlock()
	if cutter != nil {
		cut = cutter.Cut(i.Revoked)
	}
	for org, keys := range users {
		err := i.bus.RevokeUsers(org, keys...)
		if err != nil && !errors.Is(err, embedded.ErrNoAccount) { // the organization's account may be gone with it
			i.log.Warn("bus users not revoked; their certificates are", "organization", org, "error", err)
		}
	}
	return revoked, cut
}

// tell records that what was issued on something, or to somebody, was revoked.
func (i *Issued) tell(org, what string, cut int) {
	i.mu.Lock()
	recorder := i.audit
	i.mu.Unlock()
	recorder.Record(audit.Record{
		Action: audit.Revoke, Organization: org, Object: what, What: "cut connections", OK: true, Count: uint64(cut), //nolint:gosec // not negative
	})
	i.log.Info("credentials revoked", "ground", what, "connections", cut)
}
