package registry

import (
	"context"
	"errors"
	"fmt"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
)

// Bounds of what an organization keeps here.
const (
	maxRobots        = 1_000
	maxTokens        = 100 // of one robot
	maxRegistrations = 10_000
	maxLimits        = 1_000 // agents and proxies with limits of their own
)

// PartyLimits is the limits that were set for an organization, an agent or a proxy.
type PartyLimits struct {
	Level           limit.Level  `json:"level"`
	Organization    string       `json:"organization"`
	OrganizationUID string       `json:"organizationUid"`
	Name            string       `json:"name,omitempty"`
	Limits          limit.Limits `json:"limits"`
}

// Key returns whose limits they are.
func (l PartyLimits) Key() limit.Key {
	return limit.Key{Level: l.Level, Organization: l.Organization, Name: l.Name}
}

func limitKey(k limit.Key) string {
	if k.Level == limit.Organization {
		return "limit." + k.Organization + "." + k.Level.String()
	}
	return "limit." + k.Organization + "." + k.Level.String() + "." + k.Name
}

// checkParty says why a party cannot have limits.
func checkParty(k limit.Key) error {
	switch k.Level {
	case limit.Agent:
		return identity.ValidateName("agent ID", k.Name)
	case limit.Proxy:
		return identity.ValidateName("proxy name", k.Name)
	default:
		return nil
	}
}

// SetLimits changes the limits of a party: those that are unset stay as they are. It
// returns the limits that the party has now, or ErrNotFound without such an
// organization. The party need not exist yet.
func (r *Registry) SetLimits(ctx context.Context, k limit.Key, change limit.Limits) (limit.Limits, error) {
	if err := errors.Join(checkParty(k), change.Check(k.Level)); err != nil {
		return limit.Limits{}, err
	}
	o, err := r.Organization(ctx, k.Organization)
	if err != nil {
		return limit.Limits{}, err
	}
	fail := func(err error) (limit.Limits, error) {
		return limit.Limits{}, fmt.Errorf("set limits of %s: %w", k, err)
	}
	l := PartyLimits{Level: k.Level, Organization: k.Organization, OrganizationUID: o.UID, Name: k.Name, Limits: change}
	var old PartyLimits
	rev, err := r.get(ctx, limitKey(k), &old)
	switch {
	case errors.Is(err, ErrNotFound):
		if err := r.room(ctx, "limit."+k.Organization+".", maxLimits); err != nil {
			return fail(err)
		}
		err = r.create(ctx, limitKey(k), l)
	case err == nil:
		if old.OrganizationUID == o.UID { // those of an earlier organization are dead
			l.Limits = change.Or(old.Limits)
		}
		err = r.update(ctx, limitKey(k), l, rev)
	}
	if err != nil {
		return fail(err)
	}
	return l.Limits, nil
}

// RemoveLimits makes a party have no limits of its own; it is no error if it has none.
func (r *Registry) RemoveLimits(ctx context.Context, k limit.Key) error {
	if err := checkParty(k); err != nil {
		return err
	}
	if _, err := r.Organization(ctx, k.Organization); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, limitKey(k)); err != nil {
		return fmt.Errorf("remove limits of %s: %w", k, err)
	}
	return nil
}

// Limits returns all limits that were set in an organization, in any order.
func (r *Registry) Limits(ctx context.Context, org string) ([]PartyLimits, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[PartyLimits](ctx, r, "limit."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list limits of organization %q: %w", org, err)
	}
	living := all[:0]
	for _, l := range all {
		if l.OrganizationUID == o.UID {
			living = append(living, l)
		}
	}
	return living, nil
}

// room returns ErrLimit when there are as many records under a prefix as there may be.
func (r *Registry) room(ctx context.Context, prefix string, most int) error {
	keys, err := r.store.List(ctx, prefix)
	if err == nil && len(keys) >= most {
		err = fmt.Errorf("%w: there are %d already", ErrLimit, len(keys))
	}
	return err
}
