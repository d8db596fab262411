package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/role"
)

// maxBindings bounds the bindings of an organization: each use of a session looks
// them through.
const maxBindings = 1000

// Binding gives a user, or all users of a group, a role in an organization.
type Binding struct {
	Organization    string             `json:"organization"`
	OrganizationUID string             `json:"organizationUid"`
	Role            role.Role          `json:"role"`
	Principal       identity.Principal `json:"principal"` // a user or a group
	Created         time.Time          `json:"created"`
	By              identity.Principal `json:"by"` // who bound it
}

func bindingKey(org string, r role.Role, p identity.Principal) string {
	return "binding." + org + "." + string(r) + "." + digest(p.String())
}

// digest returns a text as a word of a key.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// Bind gives a user or group a role. It returns ErrExists if it has the role
// already, and ErrNotFound when there is no such organization.
func (r *Registry) Bind(ctx context.Context, org string, which role.Role, p, by identity.Principal) (Binding, error) {
	fail := func(err error) (Binding, error) {
		return Binding{}, fmt.Errorf("bind role %s to %s: %w", which, p, err)
	}
	if _, err := role.Parse(string(which)); err != nil {
		return fail(err)
	}
	if err := p.Validate(); err != nil {
		return fail(err)
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Binding{}, err
	}
	keys, err := r.store.List(ctx, "binding."+org+".")
	if err != nil {
		return fail(err)
	}
	if len(keys) >= maxBindings {
		return fail(fmt.Errorf("%w: an organization may have %d role bindings; bind groups", ErrLimit, maxBindings))
	}
	b := Binding{Organization: org, OrganizationUID: o.UID, Role: which, Principal: p, Created: r.stamp(), By: by}
	key := bindingKey(org, which, p)
	err = createOver(ctx, r, key, b, func(old Binding) bool { return old.OrganizationUID != o.UID })
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// Bindings returns an organization's bindings, by role and principal.
func (r *Registry) Bindings(ctx context.Context, org string) ([]Binding, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[Binding](ctx, r, "binding."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list role bindings of organization %q: %w", org, err)
	}
	all = slices.DeleteFunc(all, func(b Binding) bool { return b.OrganizationUID != o.UID })
	rank := func(b Binding) int { return slices.Index(role.Roles(), b.Role) }
	slices.SortFunc(all, func(a, b Binding) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a.Principal.String(), b.Principal.String())
	})
	return all, nil
}

// Unbind takes a role from a user or group, or returns ErrNotFound.
func (r *Registry) Unbind(ctx context.Context, org string, which role.Role, p identity.Principal) error {
	all, err := r.Bindings(ctx, org)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(b Binding) bool { return b.Role == which && b.Principal == p }) {
		return fmt.Errorf("role %.20s of %s in organization %q: %w", which, p, org, ErrNotFound)
	}
	if err := r.store.Delete(ctx, bindingKey(org, which, p)); err != nil {
		return fmt.Errorf("take role %s from %s: %w", which, p, err)
	}
	return nil
}

// Roles returns the roles that a user with some groups has in an organization, the
// most powerful first. Where there is no such organization, nobody has one.
func (r *Registry) Roles(ctx context.Context, org, user string, groups []string) ([]role.Role, error) {
	byOrg, err := r.roles(ctx, "binding."+org+".", user, groups)
	return byOrg[org], err
}

// AllRoles is Roles for all organizations in which the user has one.
func (r *Registry) AllRoles(ctx context.Context, user string, groups []string) (map[string][]role.Role, error) {
	return r.roles(ctx, "binding.", user, groups)
}

// roles looks the bindings up by their keys: only those that concern the user are
// read.
func (r *Registry) roles(ctx context.Context, prefix, user string, groups []string) (map[string][]role.Role, error) {
	own := map[string]identity.Principal{}
	for _, p := range principals(user, groups) {
		own[digest(p.String())] = p
	}
	keys, err := r.store.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("look up the roles of user %s: %w", user, err)
	}
	uids := map[string]string{}
	found := map[string][]role.Role{}
	for _, key := range keys {
		p, concerns := own[key[strings.LastIndexByte(key, '.')+1:]]
		if !concerns {
			continue
		}
		var b Binding
		_, err := r.get(ctx, key, &b)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("look up the roles of user %s: %w", user, err)
		}
		if _, known := uids[b.Organization]; !known {
			o, err := r.Organization(ctx, b.Organization)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			uids[b.Organization] = o.UID
		}
		if b.Principal == p && b.OrganizationUID != "" && b.OrganizationUID == uids[b.Organization] && !slices.Contains(found[b.Organization], b.Role) {
			found[b.Organization] = append(found[b.Organization], b.Role)
		}
	}
	for org := range found {
		slices.SortFunc(found[org], func(a, b role.Role) int {
			return slices.Index(role.Roles(), a) - slices.Index(role.Roles(), b)
		})
	}
	return found, nil
}

// principals returns as whom a user may have been given a role.
func principals(user string, groups []string) []identity.Principal {
	all := []identity.Principal{{Kind: identity.KindUser, Name: user}}
	for _, g := range groups {
		all = append(all, identity.Principal{Kind: identity.KindGroup, Name: g})
	}
	return all
}
