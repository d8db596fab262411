package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"postern.dev/postern/internal/registry"
)

// Organizations keeps the registry's organizations and what serves them in this
// hub together. It is safe for concurrent use.
type Organizations struct {
	state    *State
	registry *registry.Registry
	start    func(ctx context.Context, org string) error
	stop     func(org string) error

	mu sync.Mutex // one change at a time
}

// NewOrganizations returns the organizations of a hub. start begins to serve one
// on the bus, with the account key that the state keeps as accountSecret; stop
// ends that and forgets the key. Both may be called again for the same one. Call
// Open before use.
func NewOrganizations(
	state *State, reg *registry.Registry, start func(ctx context.Context, org string) error, stop func(org string) error,
) *Organizations {
	return &Organizations{state: state, registry: reg, start: start, stop: stop}
}

// accountSecret names the key of an organization's account on the bus.
func accountSecret(org string) string { return "account-" + org }

// Open makes the default organization, if there is none, and serves all.
func (o *Organizations) Open(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.registry.EnsureOrganization(ctx, registry.DefaultOrganization); err != nil {
		return err
	}
	all, err := o.registry.Organizations(ctx)
	if err != nil {
		return err
	}
	for _, org := range all {
		if err := o.start(ctx, org.Name); err != nil {
			return fmt.Errorf("serve organization %q: %w", org.Name, err)
		}
	}
	return nil
}

// Create makes an organization and serves it, or returns registry.ErrExists.
func (o *Organizations) Create(ctx context.Context, name string) (registry.Organization, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	org, err := o.registry.CreateOrganization(ctx, name)
	if err != nil {
		return registry.Organization{}, err
	}
	// A deletion that was cut off may have left the key of an earlier organization
	// of that name, which this one must not honour.
	err = o.state.RemoveSecret(accountSecret(name))
	if err == nil {
		err = o.start(ctx, name)
	}
	if err != nil {
		// Nobody could use it as it is, and nobody could make it again.
		undo := o.registry.DeleteOrganization(context.WithoutCancel(ctx), name)
		return registry.Organization{}, fmt.Errorf("serve organization %q: %w", name, errors.Join(err, undo))
	}
	return org, nil
}

// Delete removes an organization with all that belongs to it and cuts its
// parties off the bus, or returns registry.ErrNotFound.
func (o *Organizations) Delete(ctx context.Context, name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.registry.Organization(ctx, name); err != nil {
		return err
	}
	// The registry first: from then on nobody gets new credentials, and after a
	// crash it is not served again.
	return errors.Join(o.registry.DeleteOrganization(ctx, name), o.stop(name))
}
