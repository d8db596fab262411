package hub

import (
	"context"
	"errors"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/registry"
)

// shownFor is how long a ground is watched after somebody asked for it last. Proxies ask
// every two seconds as long as somebody is let in on it; the hub's own proxies and the
// gateway ask for each stream and request.
const shownFor = 30 * time.Second

// shownGround is a ground that somebody is let in on.
type shownGround struct {
	asked  time.Time // last
	stands bool      // the registry had it while it was watched
}

// Gone returns which of some grounds have vanished, counted from 0. Where that cannot
// be told, the ground counts as standing and the error says why.
func (i *Issued) Gone(ctx context.Context, grounds []registry.Ground) (gone []int, err error) {
	var errs []error
	for n, ground := range grounds {
		switch err := i.stands(ctx, ground); {
		case errors.Is(err, registry.ErrRevoked):
			gone = append(gone, n)
		case err != nil:
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}

// stands returns registry.ErrRevoked for a ground that has vanished. One that stands is
// watched for a while, so that asking again and again costs no look at the registry.
func (i *Issued) stands(ctx context.Context, ground registry.Ground) error {
	one, stands := i.watch(ground)
	if stands {
		return nil
	}
	// As with a guest: a revocation that did not see the ground being watched yet
	// removed it before, and is seen here. One that did see it has ended the watch, and
	// what is learned here is not kept.
	err := i.registry.CheckGround(ctx, ground)
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.shown[ground] != one:
	case err == nil:
		one.stands = true
	default:
		delete(i.shown, ground)
	}
	return err
}

// watch notes that somebody is let in on a ground. It reports whether it is known to
// stand.
func (i *Issued) watch(ground registry.Ground) (one *shownGround, stands bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if one = i.shown[ground]; one == nil {
		one = new(shownGround)
		i.shown[ground] = one
	}
	one.asked = i.now()
	return one, one.stands
}

// forgetShown ends the watch of grounds that nobody asked for lately; i.mu is held.
func (i *Issued) forgetShown(now time.Time) {
	for ground, one := range i.shown {
		if now.Sub(one.asked) > shownFor {
			delete(i.shown, ground)
		}
	}
}

// revoked tells the proxies of an organization which of their clients' credentials were
// revoked.
func (t *tenants) revoked(ctx context.Context, org string, shown []bus.Credential) []int {
	grounds := make([]registry.Ground, len(shown))
	for i, c := range shown {
		grounds[i] = registry.Ground{Organization: org, Kind: c.Kind, Name: c.Name, Item: c.Item}
	}
	gone, err := t.issued.Gone(ctx, grounds)
	if err != nil && ctx.Err() == nil {
		t.log.Error("a proxy is not told yet whether credentials of its clients were revoked", "organization", org, "error", err)
	}
	return gone
}
