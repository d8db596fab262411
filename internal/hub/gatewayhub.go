package hub

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/exchange"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// gatewayHub is what the gateway asks of the hub.
type gatewayHub struct {
	registry *registry.Registry
	tenants  *tenants
	access   *Access
	issued   *Issued
	holds    func(ctx context.Context, c Caller, org string, need role.Permission) error
}

var _ gateway.Hub = (*gatewayHub)(nil)

// hubCaller returns a caller of the gateway as the API knows it.
func hubCaller(c gateway.Caller) Caller {
	return Caller{Principal: c.Principal, Groups: c.Groups, Organization: c.Organization, Item: c.Item, Hub: c.Hub, Expires: c.Expires}
}

// Find implements gateway.Hub. People need a role in the organization, as for all that
// they do in it.
func (h *gatewayHub) Find(ctx context.Context, c gateway.Caller, u kubeurl.URL) (string, error) {
	if c.Organization != "" {
		if u.Organization != "" && u.Organization != c.Organization {
			return "", wire.Fail(wire.LegHub, wire.CodeDenied, "the credential of %s is for organization %s, not for %s", c.Principal, c.Organization, u.Organization)
		}
		return c.Organization, h.exists(ctx, c.Organization, u.Cluster)
	}
	if u.Organization != "" {
		if err := h.holds(ctx, hubCaller(c), u.Organization, role.Read); err != nil {
			return "", err
		}
		return u.Organization, h.exists(ctx, u.Organization, u.Cluster)
	}
	candidates, err := h.organizations(ctx, c)
	if err != nil {
		return "", err
	}
	var found []string
	for _, org := range candidates {
		switch err := h.exists(ctx, org, u.Cluster); {
		case err == nil:
			found = append(found, org)
		case wire.AsFailure(err, wire.LegHub).Code != wire.CodeNameNotFound:
			return "", err
		}
	}
	switch {
	case len(candidates) == 0:
		return "", wire.Fail(wire.LegHub, wire.CodeDenied, "%s has no role in any organization", c.Principal).
			WithHint("an owner can give one: postern role grant viewer --to %s -a ORG", c.Principal)
	case len(found) == 0:
		return "", noCluster(u.Cluster, strings.Join(candidates, ", "))
	case len(found) > 1:
		return "", wire.Fail(wire.LegHub, wire.CodeBadRequest, "there is a cluster %s in each of %s", u.Cluster, strings.Join(found, ", ")).
			WithHint("say which: /%s:%s/", found[0], u.Cluster)
	}
	return found[0], nil
}

// organizations returns those in which a user has a role.
func (h *gatewayHub) organizations(ctx context.Context, c gateway.Caller) ([]string, error) {
	var orgs []string
	if c.Hub {
		orgs = h.tenants.names()
	} else {
		roles, err := h.registry.AllRoles(ctx, c.Principal.Name, c.Groups)
		if err != nil {
			return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look roles up").WithCause(err)
		}
		for org, all := range roles {
			if slices.ContainsFunc(all, func(r role.Role) bool { return r.Holds(role.Read) }) {
				orgs = append(orgs, org)
			}
		}
	}
	slices.Sort(orgs)
	return orgs, nil
}

// exists returns nil for an agent that is connected, was lately, or is registered.
func (h *gatewayHub) exists(ctx context.Context, org, agent string) error {
	one := h.tenants.get(org)
	if one == nil {
		return noCluster(agent, org)
	}
	if len(one.dialer.Directory().Replicas(agent)) > 0 {
		return nil
	}
	switch _, err := h.registry.Agent(ctx, org, agent); {
	case err == nil:
		return nil
	case !errors.Is(err, registry.ErrNotFound):
		return wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the cluster up").WithCause(err)
	}
	for _, p := range one.dialer.Directory().All() {
		if p.Agent == agent {
			return nil
		}
	}
	return noCluster(agent, org)
}

func noCluster(agent, orgs string) error {
	return wire.Fail(wire.LegHub, wire.CodeNameNotFound, "there is no cluster %s in organization %s", agent, orgs).
		WithHint("see which there are: postern clusters")
}

// gatewayUse is a request through the gateway that access grants allow.
type gatewayUse struct {
	who    policy.Asker
	agent  string
	target wire.Target
	end    func(*wire.Failure)
}

func (u *gatewayUse) asks(now time.Time) (policy.Asker, string, wire.Target, time.Time) {
	return u.who, u.agent, u.target, now
}

func (u *gatewayUse) cut(d access.Decision) { u.end(refusal(d)) }

// Enter implements gateway.Hub.
func (h *gatewayHub) Enter(ctx context.Context, e gateway.Entry) (func(), error) {
	use := &gatewayUse{
		who:   policy.Asker{Proxy: ownProxy, Principal: e.Caller.Principal, Groups: e.Caller.Groups},
		agent: e.Cluster, target: e.Target, end: e.Cut,
	}
	ended, err := h.access.enter(e.Organization, use)
	if err != nil {
		return nil, err
	}
	if e.Caller.Item == "" {
		return ended, nil
	}
	revoked := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the credential of %s was revoked", e.Caller.Principal)
	leave, err := h.issued.Lodge(ctx, hubCaller(e.Caller).Ground(e.Organization), func() { e.Cut(revoked) })
	if err != nil {
		ended()
		if errors.Is(err, registry.ErrRevoked) {
			return nil, revoked
		}
		return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the credential up").WithCause(err)
	}
	return func() { leave(); ended() }, nil
}

// enter notes what goes on because access grants allow it, or says that they do not.
func (a *Access) enter(org string, use liveUse) (ended func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	one, err := a.get(org)
	if err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub cannot tell who may reach what").WithCause(err)
	}
	if d := one.judge(use.asks(a.now())); !d.Allowed {
		return nil, refusal(d)
	}
	one.live[use] = struct{}{}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(one.live, use)
	}, nil
}

// Dial implements gateway.Hub. It is the hub itself that opens the stream: the agent
// learns with each request whom it is for.
func (h *gatewayHub) Dial(ctx context.Context, org, agent string) (net.Conn, func(func()), error) {
	one := h.tenants.get(org)
	if one == nil {
		return nil, nil, noCluster(agent, org)
	}
	s, err := one.dialer.Open(ctx, proxy.Request{Agent: proxy.AgentRef{Organization: org, Agent: agent}, Target: wire.Gateway()})
	if err != nil {
		return nil, nil, err
	}
	return bonded{s}, func(f func()) { s.OnLeave(f) }, nil
}

// bonded is a stream to an agent's end of the gateway.
type bonded struct{ proxy.Stream }

// Bond implements assertion.Bonded. It is the pipe's, whose streams follow each other.
func (s bonded) Bond() *assertion.Bond {
	if over, ok := s.Stream.(interface{ Pipe() *pipe.Pipe }); ok {
		return assertion.BondOf(over.Pipe())
	}
	return nil
}

// Quiet implements exchange.Quieter.
func (s bonded) Quiet(left time.Duration) bool {
	q, ok := s.Stream.(exchange.Quieter)
	return !ok || q.Quiet(left)
}

// names returns the organizations that the hub serves.
func (t *tenants) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]string, 0, len(t.all))
	for org := range t.all {
		all = append(all, org)
	}
	return all
}
