package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/oidc"
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
	if token == "" || !strings.HasPrefix(token, adminPrefix) && !identity.IsSession(token) && !identity.IsRobot(token) && !g.state.IsAdmin(token) {
		return gateway.Caller{}, gateway.ErrNoCredentials
	}
	now, digest := g.auth.now(), g.recent.digest(token)
	c, known := g.recent.get(digest, now)
	if !known {
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

// gatewayIDTokens authenticates callers of the gateway by ID tokens of the identity
// provider that people sign in with, for clients that get them by themselves.
type gatewayIDTokens struct {
	signIn   *SignIn
	registry *registry.Registry
	names    gateway.Names
}

// Method implements gateway.Authenticator.
func (*gatewayIDTokens) Method() gateway.Method { return gateway.MethodOIDC }

// Authenticate implements gateway.Authenticator.
func (g *gatewayIDTokens) Authenticate(r *http.Request, _ kubeurl.URL) (gateway.Caller, error) {
	token := gateway.Token(r)
	if token == "" || oidc.UnverifiedIssuer(token) != g.signIn.issuer.URL {
		return gateway.Caller{}, gateway.ErrNoCredentials
	}
	claims, err := g.signIn.claims(r.Context(), token)
	if err != nil {
		return gateway.Caller{}, err
	}
	p, err := g.signIn.personOf(claims)
	if err != nil {
		return gateway.Caller{}, err
	}
	c := gateway.Caller{
		Principal: identity.Principal{Kind: identity.KindUser, Name: p.user}, Groups: p.groups, Hub: g.signIn.administers(p.user, p.groups),
		Expires: claims.Expires, Still: func(ctx context.Context) error { return userStands(ctx, g.registry, p.user) },
	}
	if err := c.Still(r.Context()); err != nil {
		return gateway.Caller{}, err
	}
	c.Kubernetes, c.Dropped, err = g.names.User(p.user, p.groups)
	return c, err
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

// podDir is where Kubernetes puts what a pod needs to ask its API server.
const podDir = "/var/run/secrets/kubernetes.io/serviceaccount/"

// askOwnCluster returns what asks the API server of the cluster that the hub itself
// runs in, by the service account of its pod.
func askOwnCluster(getenv func(string) string) gateway.Asker {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			pool := x509.NewCertPool() // read for each connection: it may change
			pem, err := os.ReadFile(podDir + "ca.crt")
			if err != nil {
				return nil, err
			}
			pool.AppendCertsFromPEM(pem)
			d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: host}}
			return d.DialContext(ctx, network, net.JoinHostPort(host, port))
		},
		IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
	}}
	return func(r *http.Request) (*http.Response, error) {
		if host == "" {
			return nil, wire.Fail(wire.LegHub, wire.CodeUnreachable, "the hub does not run in a Kubernetes pod").
				WithHint("name an agent of the cluster: --gateway-token-cluster NAME=ORG:AGENT")
		}
		token, err := os.ReadFile(podDir + "token")
		if err != nil {
			return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the token of the hub's own service account cannot be read").WithCause(err)
		}
		r.URL.Scheme, r.URL.Host = "https", net.JoinHostPort(host, port)
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		return client.Do(r)
	}
}

// gatewayAuthenticators returns the ways to prove who one is at the gateway, in the
// order in which they are asked. ask asks the cluster of an agent.
func gatewayAuthenticators(
	cfg config.Gateway, own *gatewayTokens, ids *gatewayIDTokens, ask func(org, agent string) gateway.Asker, getenv func(string) string,
) ([]gateway.Authenticator, error) {
	all := []gateway.Authenticator{own}
	if ids.signIn.Enabled() {
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
		asker := askOwnCluster(getenv)
		if t.Agent != "" {
			asker = ask(t.Organization, t.Agent)
		}
		all = append(all, &gateway.ClusterTokens{
			Name: t.Name, Organization: t.Organization, Reviewer: gateway.NewReviewer(t.Name, asker, nil), Names: own.names,
		})
	}
	if cfg.GatewayClientCAFile != "" {
		all = append(all, &gateway.Certificates{
			Names: own.names, Allowed: func(ctx context.Context, user string) error { return userStands(ctx, ids.registry, user) },
		})
	}
	return all, nil
}
