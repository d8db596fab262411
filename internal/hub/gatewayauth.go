package hub

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// gatewayTokens authenticates callers of the gateway by the hub's own tokens: those of
// people's sessions and of robots.
type gatewayTokens struct {
	state  *State
	auth   *Authenticator
	names  gateway.Names
	recent *recentCallers
}

// Method implements gateway.Authenticator.
func (*gatewayTokens) Method() gateway.Method { return gateway.MethodHub }

// Authenticate implements gateway.Authenticator.
func (g *gatewayTokens) Authenticate(r *http.Request, _ kubeurl.URL) (gateway.Caller, error) {
	token := gateway.Token(r)
	if token == "" {
		return gateway.Caller{}, gateway.ErrNoCredentials
	}
	now, digest := g.auth.now(), g.recent.digest(token)
	c, known := g.recent.get(digest, now)
	if !known {
		if !strings.HasPrefix(token, adminPrefix) && !identity.IsSession(token) && !identity.IsRobot(token) && !g.state.IsAdmin(token) {
			return gateway.Caller{}, gateway.ErrNoCredentials
		}
		var err error
		if c, err = g.auth.Authenticate(r.Context(), token); err != nil {
			return gateway.Caller{}, err
		}
		if c.Item != "" { // what Hub.Enter asks about
			g.recent.put(digest, c, now)
		}
	}
	var err error
	// The token may expire before its session, which somebody renews: what runs ends with
	// the session.
	out := gateway.Caller{Principal: c.Principal, Groups: c.Groups, Organization: c.Organization, Hub: c.Hub, Item: c.Item}
	switch c.Kind {
	case identity.KindUser:
		out.Kubernetes, out.Dropped, err = g.names.User(c.Name, c.Groups)
		return out, err
	case identity.KindRobot:
		out.Kubernetes = g.names.Robot(c.Name)
		return out, nil
	default:
		return out, wire.Fail(wire.LegHub, wire.CodeDenied, "the administrator's token is no one's in a cluster, so it is not good at the gateway").
			WithHint("sign in as yourself with postern login, or use a robot's token")
	}
}

// userStands returns a failure for a user who was revoked at the hub.
func userStands(ctx context.Context, reg *registry.Registry, user string) error {
	switch err := reg.CheckUser(ctx, user); {
	case errors.Is(err, registry.ErrRevoked):
		return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "user %s was revoked at this hub", user).
			WithHint("an administrator of the hub can undo it: postern user allow %s", user)
	case err != nil:
		return wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the user up").WithCause(err)
	default:
		return nil
	}
}

// gatewayAuthenticators returns the ways to prove who one is at the gateway, in the
// order in which they are asked. ask asks the cluster of an agent.
func gatewayAuthenticators(
	cfg config.Gateway, own *gatewayTokens, ids *gatewayIDTokens, ask func(org, agent string) gateway.Asker, pod *podcluster.Cluster,
) ([]gateway.Authenticator, error) {
	all := []gateway.Authenticator{own}
	if len(ids.issuers) > 0 {
		all = append(all, ids)
	}
	for _, text := range cfg.GatewayPass {
		org, agent, err := config.ParseCluster(text)
		if err != nil {
			return nil, err
		}
		all = append(all, &gateway.PassThrough{Organization: org, Cluster: agent, Reviewer: gateway.NewReviewer(agent, ask(org, agent), nil)})
	}
	for _, text := range cfg.GatewayTokens {
		t, err := config.ParseTokenCluster(text)
		if err != nil {
			return nil, err
		}
		asker, home := askPod(pod), ""
		if org, agent, err := config.ParseCluster(cfg.GatewayOwn); err == nil && org == t.Organization {
			home = agent
		}
		if t.Agent != "" {
			asker, home = ask(t.Organization, t.Agent), t.Agent
		}
		all = append(all, &gateway.ClusterTokens{
			Name: t.Name, Organization: t.Organization, Home: home, Reviewer: gateway.NewReviewer(t.Name, asker, nil), Names: own.names,
		})
	}
	if cfg.GatewayClientCAFile != "" {
		all = append(all, &gateway.Certificates{
			Names: own.names, Allowed: func(ctx context.Context, user string) error { return userStands(ctx, ids.registry, user) },
		})
	}
	return all, nil
}
