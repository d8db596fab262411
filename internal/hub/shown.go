package hub

import (
	"context"
	"errors"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/registry"
)

// shownFor is how long a ground is watched after a proxy asked for it last. Proxies ask
// every two seconds as long as somebody is let in on it.
const shownFor = 30 * time.Second

// Gone returns which of some grounds have vanished, counted from 0. Those that stand are
// watched for a while, so that asking again and again costs no look at the registry.
// Where that fails, the ground counts as standing and the error says why.
func (i *Issued) Gone(ctx context.Context, grounds []registry.Ground) (gone []int, err error) {
	var errs []error
	for n, ground := range grounds {
		if i.watch(ground) {
			continue
		}
		// As with a guest: a revocation that did not see the ground being watched yet
		// removed it before, and is seen here.
		err := i.registry.CheckGround(ctx, ground)
		if err == nil {
			continue
		}
		i.unwatch(ground)
		if errors.Is(err, registry.ErrRevoked) {
			gone = append(gone, n)
		} else {
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}

// watch notes that somebody is let in on a ground. It reports whether it is known to
// stand.
func (i *Issued) watch(ground registry.Ground) (stands bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, stands = i.shown[ground]
	i.shown[ground] = i.now()
	return stands
}

func (i *Issued) unwatch(ground registry.Ground) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.shown, ground)
}

// forgetShown ends the watch of grounds that nobody asked for lately; i.mu is held.
func (i *Issued) forgetShown(now time.Time) {
	for ground, at := range i.shown {
		if now.Sub(at) > shownFor {
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
