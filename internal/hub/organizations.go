package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/registry"
)

// BusAccounts is what Organizations needs of the bus; *embedded.Server has it.
type BusAccounts interface {
	// EnsureAccount gives an organization its account.
	EnsureAccount(org string, seed []byte) error
	// RemoveAccount ends it and cuts its connections; no error if there is none.
	RemoveAccount(org string) error
}

// Organizations keeps the registry's organizations, their accounts on the bus and
// the accounts' keys in the state directory together. It is safe for concurrent
// use.
type Organizations struct {
	state    *State
	registry *registry.Registry
	bus      BusAccounts

	mu sync.Mutex // one change at a time
}

// NewOrganizations returns the organizations of a hub. Call Open before use.
func NewOrganizations(state *State, reg *registry.Registry, bus BusAccounts) *Organizations {
	return &Organizations{state: state, registry: reg, bus: bus}
}

// Open makes the default organization at the first start, and gives every
// organization its account on the bus.
func (o *Organizations) Open(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state.Fresh() {
		if _, err := o.registry.EnsureOrganization(ctx, registry.DefaultOrganization); err != nil {
			return err
		}
	}
	all, err := o.registry.Organizations(ctx)
	if err != nil {
		return err
	}
	for _, org := range all {
		if err := o.ensureAccount(org); err != nil {
			return err
		}
	}
	return nil
}

// Create makes an organization, or returns registry.ErrExists.
func (o *Organizations) Create(ctx context.Context, name string) (registry.Organization, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	org, err := o.registry.CreateOrganization(ctx, name)
	if err != nil {
		return registry.Organization{}, err
	}
	if err := o.ensureAccount(org); err != nil {
		// Without an account nobody could use it, and nobody could make it again.
		return registry.Organization{}, errors.Join(err, o.registry.DeleteOrganization(context.WithoutCancel(ctx), name))
	}
	return org, nil
}

// Delete removes an organization with all that belongs to it and cuts its
// parties' connections to the bus, or returns registry.ErrNotFound.
func (o *Organizations) Delete(ctx context.Context, name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	org, err := o.registry.Organization(ctx, name)
	if err != nil {
		return err
	}
	// The registry first: from then on nobody gets new credentials, and after a
	// crash the account is not made again.
	return errors.Join(
		o.registry.DeleteOrganization(ctx, name),
		o.bus.RemoveAccount(name),
		o.state.RemoveSecret(accountSecret(org)),
	)
}

func (o *Organizations) ensureAccount(org registry.Organization) error {
	seed, err := o.state.Secret(accountSecret(org), embedded.NewAccountSeed)
	if err != nil {
		return err
	}
	if err := o.bus.EnsureAccount(org.Name, seed); err != nil {
		return fmt.Errorf("open organization %q on the bus: %w", org.Name, err)
	}
	return nil
}

// accountSecret names the key of an organization's account by the UID, so that
// a later organization of the same name does not honour what its predecessor signed.
func accountSecret(org registry.Organization) string { return "account-" + org.UID }
