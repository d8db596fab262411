package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
)

// maxRevocations bounds the agents and proxies of an organization that are revoked by name.
const maxRevocations = 10_000

// Revocation keeps a name out: nobody gets credentials as this agent or proxy, whatever
// he shows, until it is restored.
type Revocation struct {
	Organization    string        `json:"organization"`
	OrganizationUID string        `json:"organizationUid"`
	Role            identity.Role `json:"role"` // agent or proxy
	Name            string        `json:"name"`
	Reason          string        `json:"reason,omitempty"` // for those who administer, and not for the party itself
	By              string        `json:"by"`               // principal
	Revoked         time.Time     `json:"revoked"`
}

// RevokedError says that credentials are refused because the party is revoked by name.
type RevokedError struct{ Revocation Revocation }

// Error tells what was revoked, and when; it does not tell why.
func (e *RevokedError) Error() string {
	return fmt.Sprintf("%s %s of organization %s was revoked at %s",
		e.Revocation.Role, e.Revocation.Name, e.Revocation.Organization, e.Revocation.Revoked.Format(time.RFC3339))
}

func revocationKey(org string, role identity.Role, name string) string {
	return "revocation." + org + "." + string(role) + "." + name
}

// validParty says why there can be no party of this role and name.
func validParty(role identity.Role, name string) error {
	switch role {
	case identity.RoleAgent:
		return identity.ValidateName("agent ID", name)
	case identity.RoleProxy:
		return identity.ValidateName("proxy name", name)
	default:
		return fmt.Errorf("role %.60q of a party: want agent or proxy", role)
	}
}

// RevokeParty keeps a name out from now on. The party need not have come yet. It returns
// what holds: of a party that is revoked already, the revocation of then. It returns
// ErrNotFound without such an organization, ErrTooLong for a long reason, and ErrLimit when
// too many are revoked.
func (r *Registry) RevokeParty(ctx context.Context, v Revocation) (Revocation, error) {
	if err := validParty(v.Role, v.Name); err != nil {
		return Revocation{}, err
	}
	if len(v.Reason) > maxText {
		return Revocation{}, fmt.Errorf("%w: the reason has %d bytes, at most %d are allowed", ErrTooLong, len(v.Reason), maxText)
	}
	fail := func(err error) (Revocation, error) {
		return Revocation{}, fmt.Errorf("revoke %s %q of organization %q: %w", v.Role, v.Name, v.Organization, err)
	}
	o, err := r.Organization(ctx, v.Organization)
	if err != nil {
		return Revocation{}, err
	}
	v.OrganizationUID, v.Revoked = o.UID, r.stamp()
	key := revocationKey(v.Organization, v.Role, v.Name)
	var old Revocation
	rev, err := r.get(ctx, key, &old)
	switch {
	case err == nil && old.OrganizationUID == o.UID:
		return old, nil
	case err == nil: // one of an earlier organization with this name is dead: take its place
		err = r.update(ctx, key, v, rev)
	case errors.Is(err, ErrNotFound):
		if err = r.room(ctx, "revocation."+v.Organization+".", maxRevocations); err == nil {
			err = r.create(ctx, key, v)
		}
	}
	if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
		_, err = r.get(ctx, key, &v) // somebody else was quicker
	}
	if err != nil {
		return fail(err)
	}
	return v, nil
}

// RestoreParty lets a revoked name in again and returns what kept it out, or ErrNotFound.
// Credentials that it had before stay revoked.
func (r *Registry) RestoreParty(ctx context.Context, org string, role identity.Role, name string) (Revocation, error) {
	v, err := r.Revocation(ctx, org, role, name)
	if err != nil {
		return Revocation{}, err
	}
	if err := r.store.Delete(ctx, revocationKey(org, role, name)); err != nil {
		return Revocation{}, fmt.Errorf("restore %s %q of organization %q: %w", role, name, org, err)
	}
	return v, nil
}

// Revocation returns what keeps a name out, or ErrNotFound when nothing does.
func (r *Registry) Revocation(ctx context.Context, org string, role identity.Role, name string) (Revocation, error) {
	if err := validParty(role, name); err != nil {
		return Revocation{}, err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Revocation{}, err
	}
	var v Revocation
	if _, err = r.get(ctx, revocationKey(org, role, name), &v); err == nil && v.OrganizationUID != o.UID {
		err = ErrNotFound
	}
	if err != nil {
		return Revocation{}, fmt.Errorf("get revocation of %s %q of organization %q: %w", role, name, org, err)
	}
	return v, nil
}

// CheckParty says whether a party may have credentials as far as its name goes: nil, or a
// *RevokedError.
func (r *Registry) CheckParty(ctx context.Context, org string, role identity.Role, name string) error {
	v, err := r.Revocation(ctx, org, role, name)
	switch {
	case err == nil:
		return &RevokedError{Revocation: v}
	case errors.Is(err, ErrNotFound):
		return nil
	default:
		return err
	}
}

// Revocations returns the agents and proxies of an organization that are revoked by name,
// agents first, by name.
func (r *Registry) Revocations(ctx context.Context, org string) ([]Revocation, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[Revocation](ctx, r, "revocation."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list revocations of organization %q: %w", org, err)
	}
	all = slices.DeleteFunc(all, func(v Revocation) bool { return v.OrganizationUID != o.UID })
	slices.SortFunc(all, func(a, b Revocation) int {
		if c := strings.Compare(string(a.Role), string(b.Role)); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, nil
}
