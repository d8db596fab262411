package hub

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/registry"
)

// issuerTime bounds how long a request waits for its token's issuer. Strangers name
// issuers, too.
const issuerTime = 10 * time.Second

// gatewayIssuer is an issuer whose ID tokens are good at the gateway.
type gatewayIssuer struct {
	*idTokens
	organization string // for whose clusters; empty for those where the user has a role
	signIn       *SignIn
}

// gatewayIDTokens authenticates callers of the gateway by ID tokens: of the identity
// provider that people sign in with, for clients that get them by themselves, and of
// further issuers.
type gatewayIDTokens struct {
	issuers  []gatewayIssuer
	registry *registry.Registry
	names    gateway.Names
}

func newGatewayIDTokens(signIn *SignIn, further []config.Issuer, o SignInOptions, reg *registry.Registry, names gateway.Names) (*gatewayIDTokens, error) {
	g := &gatewayIDTokens{registry: reg, names: names}
	if signIn.Enabled() {
		g.issuers = append(g.issuers, gatewayIssuer{idTokens: signIn.idTokens, signIn: signIn})
	}
	for _, one := range further {
		tokens, err := newIDTokens(one.TokenRules, o)
		if err != nil {
			return nil, fmt.Errorf("gatewayIssuers: %s: %w", one.IssuerURL, err)
		}
		g.issuers = append(g.issuers, gatewayIssuer{idTokens: tokens, organization: one.Organization})
	}
	return g, nil
}

// Method implements gateway.Authenticator.
func (*gatewayIDTokens) Method() gateway.Method { return gateway.MethodOIDC }

// of returns the issuer that a token says it is of, and if there are several of that
// name, the one whose client it is for. Nobody has proved it yet.
func (g *gatewayIDTokens) of(token string) (found gatewayIssuer, ok bool) {
	if token == "" || len(g.issuers) == 0 {
		return found, false
	}
	issuer, audience := oidc.Unverified(token)
	for _, i := range g.issuers {
		if issuer != i.rules.IssuerURL {
			continue
		}
		if slices.Contains(audience, i.rules.ClientID) {
			return i, true
		}
		if !ok {
			found, ok = i, true
		}
	}
	return found, ok
}

// Authenticate implements gateway.Authenticator.
func (g *gatewayIDTokens) Authenticate(r *http.Request, _ kubeurl.URL) (gateway.Caller, error) {
	token := gateway.Token(r)
	issuer, ok := g.of(token)
	if !ok {
		return gateway.Caller{}, gateway.ErrNoCredentials
	}
	ctx, cancel := context.WithTimeout(r.Context(), issuerTime)
	defer cancel()
	claims, err := issuer.claims(ctx, token)
	if err == nil && issuer.signIn != nil {
		err = issuer.signIn.ours(claims)
	}
	if err != nil {
		return gateway.Caller{}, err
	}
	p, err := issuer.personOf(claims)
	if err != nil {
		return gateway.Caller{}, err
	}
	c := gateway.Caller{
		Principal: identity.Principal{Kind: identity.KindUser, Name: p.user}, Groups: p.groups, Organization: issuer.organization,
		Hub:     issuer.signIn != nil && issuer.signIn.administers(p.user, p.groups),
		Expires: claims.Expires, Still: func(ctx context.Context) error { return userStands(ctx, g.registry, p.user) },
	}
	if err := c.Still(ctx); err != nil {
		return gateway.Caller{}, err
	}
	c.Kubernetes, c.Dropped, err = g.names.User(p.user, p.groups)
	c.Dropped = append(c.Dropped, p.reserved...)
	return c, err
}
