package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/internal/workload"
)

// maxWorkloadLife bounds how long a workload's token may still be good: platforms
// replace theirs every hour or so, and one that is good for a year is a secret that
// somebody stores.
const maxWorkloadLife = 24 * time.Hour

// isWorkloadToken reports whether a token says that an issuer of OpenID Connect made
// it: its name is a URL, and trust domains are not.
func isWorkloadToken(token string) bool {
	return strings.HasPrefix(oidc.UnverifiedIssuer(token), "https://")
}

// workload says whether a token of a trusted issuer may enrol the party that a
// request names. An issuer that the organization does not trust is not asked for
// anything.
func (a *API) workload(r *http.Request, form url.Values) (Caller, error) {
	token, org := form.Get("subject_token"), form.Get("audience")
	if err := identity.ValidateName("organization", org); err != nil {
		return Caller{}, err
	}
	refuse := func(format string, args ...any) *wire.Failure {
		return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, format, args...)
	}
	issuer := oidc.UnverifiedIssuer(token)
	all, err := a.o.Registry.Trusts(r.Context(), org)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return Caller{}, err
	}
	trusts := slices.DeleteFunc(all, func(t registry.Trust) bool { return t.Issuer != issuer })
	if len(trusts) == 0 || a.o.Issuers == nil {
		return Caller{}, refuse("organization %s trusts no issuer %s", org, clip(issuer)).
			WithHint("if it is to, an administrator says so with: postern trust add %s --audience AUDIENCE --claim sub=SUBJECT --agent ID -a %s", clip(issuer), org)
	}
	// Several trusts of one issuer: one has to fit. What is told otherwise is where
	// the last one that came furthest ended.
	var failure error
	furthest := -1
	for _, t := range trusts {
		c, stage, err := a.tryTrust(r.Context(), t, form, token)
		if err == nil {
			return c, nil
		}
		if stage >= furthest {
			furthest, failure = stage, err
		}
	}
	return Caller{}, failure
}

// tryTrust checks a token by one trust. Where it fails, stage says how far it came.
func (a *API) tryTrust(ctx context.Context, t registry.Trust, form url.Values, token string) (c Caller, stage int, err error) {
	now := a.o.Now()
	refuse := func(stage int, code wire.Code, hint, format string, args ...any) (Caller, int, error) {
		return Caller{}, stage, wire.Fail(wire.LegHub, code, format, args...).WithHint("%s", hint)
	}
	claims, err := a.o.Issuers.Verify(ctx, issuerOf(t), token)
	if err != nil {
		return Caller{}, 0, oidc.Failure(err, now)
	}
	if claims.Expires.After(now.Add(maxWorkloadLife + oidc.Leeway)) {
		return refuse(1, wire.CodeUnauthenticated, "have the platform make one that is good for an hour",
			"the token is good until %s, which is too long for a workload's: at most %s", claims.Expires.Format(time.RFC3339), maxWorkloadLife)
	}
	rules, err := workload.ParseRules(t.Claims)
	if err != nil {
		return Caller{}, 1, fmt.Errorf("rules of trust %s: %w", t.Name, err)
	}
	members := claims.All()
	for _, rule := range rules {
		if !rule.Match(members) {
			return refuse(1, wire.CodeUnauthenticated, "compare the rule with what the token claims; see: postern trust list",
				"the token of subject %s does not meet the rule %s of trust %s", clip(claims.Subject), rule, t.Name)
		}
	}
	principal := identity.Principal{Kind: identity.KindWorkload, Name: t.Name + "/" + claims.Subject}
	if err := principal.Validate(); err != nil {
		return refuse(1, wire.CodeUnauthenticated, "", "the token's subject cannot be a name: %s", err)
	}
	name, err := workload.ParseName(t.Identity)
	if err != nil {
		return Caller{}, 2, fmt.Errorf("identity of trust %s: %w", t.Name, err)
	}
	who, err := name.Of(members)
	if err != nil {
		return refuse(2, wire.CodeDenied, "", "trust %s gives the subject %s no name: %s", t.Name, clip(claims.Subject), err)
	}
	if form.Get("role") != string(t.Role) || form.Get("name") != who {
		return refuse(2, wire.CodeDenied, "start it as that one, or see: postern trust list",
			"trust %s enrols the subject %s as %s %s, and not as %s %s", t.Name, clip(claims.Subject), t.Role, who, clip(form.Get("role")), clip(form.Get("name")))
	}
	return Caller{Principal: principal, Organization: t.Organization, Item: t.UID, Party: identity.ID{Role: t.Role, Name: who}}, 3, nil
}

// issuerOf returns what the verifier has to know of a trust.
func issuerOf(t registry.Trust) oidc.Issuer {
	return oidc.Issuer{URL: t.Issuer, Audiences: t.Audiences, CA: []byte(t.CA), Keys: []byte(t.Keys), Public: t.Public}
}

// trustFor returns the trust that is for exactly this agent, if there is one.
func (a *API) trustFor(ctx context.Context, org, agent string) (string, error) {
	all, err := a.o.Registry.Trusts(ctx, org)
	for _, t := range all {
		if t.Role == identity.RoleAgent && t.Identity == agent {
			return t.Name, nil
		}
	}
	return "", err
}

// mayBeWorkload says whether a workload may have an identity: the one that its trust
// names, unless that is an agent with keys of its own.
func (a *API) mayBeWorkload(ctx context.Context, c Caller, id identity.ID) error {
	if id.Role != c.Party.Role || id.Name != c.Party.Name {
		return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized, c.String()+" may be "+string(c.Party.Role)+" "+c.Party.Name+" only", "")
	}
	if id.Role != identity.RoleAgent {
		return nil
	}
	_, err := a.o.Registry.Agent(ctx, id.Organization, id.Name)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized,
		"agent "+id.Name+" of organization "+id.Organization+" is registered with keys; a workload's token does not enrol it",
		"take its registration back with: postern agent unregister "+id.Name+" -a "+id.Organization)
}
