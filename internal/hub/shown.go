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
func (g *Grants) Gone(ctx context.Context, grounds []registry.Ground) (gone []int, err error) {
	var errs []error
	for i, ground := range grounds {
		if g.watch(ground) {
			continue
		}
		// As with a guest: a revocation that did not see the ground being watched yet
		// removed it before, and is seen here.
		err := g.registry.CheckGround(ctx, ground)
		if err == nil {
			continue
		}
		g.unwatch(ground)
		if errors.Is(err, registry.ErrRevoked) {
			gone = append(gone, i)
		} else {
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}

// watch notes that somebody is let in on a ground. It reports whether it is known to
// stand.
func (g *Grants) watch(ground registry.Ground) (stands bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, stands = g.shown[ground]
	g.shown[ground] = g.now()
	return stands
}

func (g *Grants) unwatch(ground registry.Ground) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.shown, ground)
}

// forgetShown ends the watch of grounds that nobody asked for lately; g.mu is held.
func (g *Grants) forgetShown(now time.Time) {
	for ground, at := range g.shown {
		if now.Sub(at) > shownFor {
			delete(g.shown, ground)
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
	gone, err := t.grants.Gone(ctx, grounds)
	if err != nil && ctx.Err() == nil {
		t.log.Error("a proxy is not told yet whether credentials of its clients were revoked", "organization", org, "error", err)
	}
	return gone
}
