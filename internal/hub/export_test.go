package hub

import (
	"context"
	"net/http"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
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

// PodCluster is the cluster that a hub runs in, for tests.
type PodCluster = podCluster

// NewPodCluster returns one whose service account is in dir.
func NewPodCluster(getenv func(string) string, dir string) *PodCluster {
	return newPodCluster(getenv, dir)
}

// Ask sends the API server a request.
func (c *PodCluster) Ask(r *http.Request) (*http.Response, error) { return c.ask(r) }

// ConfigMap returns the value of one key of a ConfigMap.
func (c *PodCluster) ConfigMap(ctx context.Context, namespace, name, key string) ([]byte, error) {
	return c.configMap(ctx, namespace, name, key)
}

// Close gives idle connections back.
func (c *PodCluster) Close() { c.close() }

// SpendIdentityTokens has a robot, ORG/NAME, ask for as many identity tokens as it may,
// an hour from now, so that none is given back meanwhile.
func (a *API) SpendIdentityTokens(robot string) {
	for a.pace.Wait(robot, a.o.Now().Add(time.Hour)) == 0 {
	}
}

// WithoutIssuer takes its issuer from an API.
func WithoutIssuer(a *API) { a.o.Issuer = nil }
