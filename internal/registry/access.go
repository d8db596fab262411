package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/identity"
)

// accessGrant is a record of an access grant.
type accessGrant struct {
	OrganizationUID string       `json:"organizationUid"`
	Grant           access.Grant `json:"grant"`
}

// agentLabels is a record of an agent's labels. The agent need not be registered.
type agentLabels struct {
	OrganizationUID string            `json:"organizationUid"`
	Agent           string            `json:"agent"`
	Labels          map[string]string `json:"labels"`
}

// orders is a record of the version of what agents of an organization are told.
type orders struct {
	OrganizationUID string `json:"organizationUid"`
	Version         uint64 `json:"version"`
}

func accessKey(org, id string) string    { return "access." + org + "." + id }
func labelsKey(org, agent string) string { return "labels." + org + "." + agent }
func ordersKey(org string) string        { return "orders." + org }

// AccessGrants returns an organization's access grants, oldest first.
func (r *Registry) AccessGrants(ctx context.Context, org string) ([]access.Grant, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[accessGrant](ctx, r, "access."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list access grants of organization %q: %w", org, err)
	}
	grants := make([]access.Grant, 0, len(all))
	for _, one := range all {
		if one.OrganizationUID == o.UID {
			grants = append(grants, one.Grant)
		}
	}
	slices.SortFunc(grants, func(a, b access.Grant) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return grants, nil
}

// CreateAccessGrant keeps an access grant, or returns ErrExists.
func (r *Registry) CreateAccessGrant(ctx context.Context, org string, g access.Grant) error {
	if err := g.Validate(); err != nil {
		return err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return err
	}
	key, record := accessKey(org, g.ID), accessGrant{o.UID, g}
	err = createOver(ctx, r, key, record, func(old accessGrant) bool { return old.OrganizationUID != o.UID })
	if err != nil {
		return fmt.Errorf("create access grant %q in organization %q: %w", g.ID, org, err)
	}
	return nil
}

// DeleteAccessGrant removes an access grant; it is no error if there is none.
func (r *Registry) DeleteAccessGrant(ctx context.Context, org, id string) error {
	if err := errors.Join(identity.ValidateName("organization", org), identity.ValidateName("access grant ID", id)); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, accessKey(org, id)); err != nil {
		return fmt.Errorf("delete access grant %q of organization %q: %w", id, org, err)
	}
	return nil
}

// AgentLabels returns the labels of an organization's agents, by agent ID.
func (r *Registry) AgentLabels(ctx context.Context, org string) (map[string]map[string]string, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[agentLabels](ctx, r, "labels."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list labels of organization %q: %w", org, err)
	}
	labels := make(map[string]map[string]string, len(all))
	for _, one := range all {
		if one.OrganizationUID == o.UID {
			labels[one.Agent] = one.Labels
		}
	}
	return labels, nil
}

// SetAgentLabels replaces the labels of an agent, registered or not.
func (r *Registry) SetAgentLabels(ctx context.Context, org, agent string, labels map[string]string) error {
	if err := errors.Join(identity.ValidateName("agent ID", agent), access.ValidateLabels(labels)); err != nil {
		return err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return err
	}
	key, record := labelsKey(org, agent), agentLabels{o.UID, agent, labels}
	fail := func(err error) error {
		if err != nil {
			err = fmt.Errorf("label agent %q of organization %q: %w", agent, org, err)
		}
		return err
	}
	if len(labels) == 0 {
		return fail(r.store.Delete(ctx, key))
	}
	var old agentLabels
	rev, err := r.get(ctx, key, &old)
	if errors.Is(err, ErrNotFound) {
		return fail(r.create(ctx, key, record))
	}
	if err != nil {
		return fail(err)
	}
	return fail(r.update(ctx, key, record, rev))
}

// OrdersVersion returns the version of an organization's orders, or ErrNotFound
// before the first NextOrdersVersion.
func (r *Registry) OrdersVersion(ctx context.Context, org string) (uint64, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return 0, err
	}
	var last orders
	if _, err = r.get(ctx, ordersKey(org), &last); err == nil && last.OrganizationUID != o.UID {
		err = ErrNotFound
	}
	return last.Version, err
}

// NextOrdersVersion returns a version for an organization's orders that is greater
// than every one before, also after a restart, and after one from a backup: it is at
// least the time in milliseconds.
func (r *Registry) NextOrdersVersion(ctx context.Context, org string) (uint64, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return 0, err
	}
	var last orders
	rev, err := r.get(ctx, ordersKey(org), &last)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, fmt.Errorf("get version of orders of organization %q: %w", org, err)
	}
	next := orders{o.UID, max(last.Version+1, uint64(r.now().UnixMilli()))}
	if errors.Is(err, ErrNotFound) {
		err = r.create(ctx, ordersKey(org), next)
	} else {
		err = r.update(ctx, ordersKey(org), next, rev)
	}
	if err != nil {
		return 0, fmt.Errorf("note version of orders of organization %q: %w", org, err)
	}
	return next.Version, nil
}
