package hub

import (
	"context"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/role"
)

// Authority returns what signs certificates.
func (h *Hub) Authority() *identity.Authority { return h.state.Authority() }

// Open opens a stream through the hub's own proxies.
func (h *Hub) Open(ctx context.Context, r proxy.Request) (proxy.Stream, error) {
	return h.tenants.Open(ctx, r)
}

// Bus returns the hub's connection to an organization's bus.
func (h *Hub) Bus(org string) *bus.Conn { return h.tenants.get(org).bus }

// Replicas returns what the hub knows of an organization's agents.
func (h *Hub) Replicas(org string) []bus.Presence { return h.tenants.Presence(org) }

// Route is a route of the API, for tests.
type Route struct {
	Pattern string
	Need    role.Permission
	Known   bool
}

// Routes returns all routes that go through answer.
func (a *API) Routes() []Route {
	all := make([]Route, 0, len(a.table))
	for _, r := range a.table {
		all = append(all, Route{Pattern: r.pattern, Need: r.need, Known: r.known})
	}
	return all
}

// AskPod asks the cluster that a hub runs in.
func AskPod(c *podcluster.Cluster) gateway.Asker { return askPod(c) }

// SpendIdentityTokens has a robot, ORG/NAME, ask for as many identity tokens as it may,
// an hour from now, so that none is given back meanwhile.
func (a *API) SpendIdentityTokens(robot string) {
	for a.pace.Wait(robot, a.o.Now().Add(time.Hour)) == 0 {
	}
}

// WithoutIssuer takes its issuer from an API.
func WithoutIssuer(a *API) { a.o.Issuer = nil }
