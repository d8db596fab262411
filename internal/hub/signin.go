package hub

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

const (
	// maxSignInAge is how old an ID token may be: the program shows it as soon as
	// it has it, so an older one is somebody else's find.
	maxSignInAge = 10 * time.Minute

	// sessionSweep is how often ended sessions are looked for, whose connections
	// are to end too.
	sessionSweep = 5 * time.Second
)

// SignIn lets people in: it checks ID tokens of the identity provider that the
// settings name, and says who their user is. It is safe for concurrent use.
type SignIn struct {
	*idTokens // nil if nobody signs in
	cfg       config.SignIn
}

// SignInOptions are what a SignIn works with.
type SignInOptions struct {
	Verifier *oidc.Verifier      // shared with others
	Cluster  *podcluster.Cluster // that the hub runs in, for --oidc-ca-configmap
	Now      func() time.Time
	Log      *slog.Logger // nil: nothing is told
}

// signInOptions returns what SignIn and the gateway's further issuers work with.
func (h *Hub) signInOptions() SignInOptions {
	return SignInOptions{Verifier: h.issuers, Cluster: h.pod, Now: time.Now, Log: h.log}
}

// NewSignIn returns the SignIn of some settings. The provider is not asked before
// somebody signs in.
func NewSignIn(cfg config.SignIn, o SignInOptions) (*SignIn, error) {
	s := &SignIn{cfg: cfg}
	if cfg.IssuerURL == "" {
		return s, nil
	}
	var err error
	if s.idTokens, err = newIDTokens(cfg.TokenRules, o); err != nil {
		return nil, fmt.Errorf("--oidc-issuer-url: %w", err)
	}
	return s, nil
}

// Enabled reports whether people can sign in.
func (s *SignIn) Enabled() bool { return s != nil && s.idTokens != nil }

// Info returns what a program needs to know to sign somebody in.
func (s *SignIn) Info(ctx context.Context) (api.SignIn, error) {
	if !s.Enabled() {
		return api.SignIn{}, nil
	}
	issuer, err := s.current(ctx)
	if err != nil {
		return api.SignIn{}, oidc.Failure(err, s.now())
	}
	return api.SignIn{Issuer: s.cfg.IssuerURL, ClientID: s.cfg.ClientID, Scopes: s.cfg.Scopes, CA: string(issuer.CA)}, nil
}

// administers reports whether a user holds the permission over the hub itself.
func (s *SignIn) administers(user string, groups []string) bool {
	if !s.Enabled() {
		return false
	}
	return slices.Contains(s.cfg.AdminUsers, user) ||
		slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(s.cfg.AdminGroups, g) })
}

// verify says who an ID token is of. nonce is the secret whose digest the program
// had the provider put into the token; a token without a nonce has none. Errors are
// *wire.Failure.
func (s *SignIn) verify(ctx context.Context, token, nonce string) (person, error) {
	refuse := func(format string, args ...any) (person, error) {
		return person{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, format, args...).WithHint("sign in again: postern login")
	}
	if !s.Enabled() {
		return person{}, wire.Fail(wire.LegHub, wire.CodeDenied, "people cannot sign in at this hub").
			WithHint("start the hub with --oidc-issuer-url and --oidc-client-id, or use a token: --token-file")
	}
	c, err := s.claims(ctx, token)
	if err != nil {
		return person{}, err
	}
	if c.IssuedAt.IsZero() || s.now().Sub(c.IssuedAt) > maxSignInAge+oidc.Leeway {
		return refuse("the ID token is not of this sign-in: it was issued more than %s ago", maxSignInAge)
	}
	if want := c.String("nonce"); want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(api.NonceOf(nonce))) != 1 {
		return refuse("the ID token was made for another sign-in than this one")
	}
	if err := s.ours(c); err != nil {
		return person{}, err
	}
	p, err := s.personOf(c)
	if err == nil && len(p.reserved) > 0 {
		return person{}, nameReserved(p.reserved[0], s.reserved(p.reserved[0]))
	}
	return p, err
}

// ours says whether an ID token was made for the program of this hub, and not only to be
// shown to it, too.
func (s *SignIn) ours(c *oidc.Claims) error {
	azp := c.String("azp")
	if azp == s.cfg.ClientID || azp == "" && len(c.Audience) == 1 {
		return nil
	}
	return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the ID token was issued to another client, %.100q", azp).WithHint("sign in again: postern login")
}

// isSignIn reports whether a token request shows an ID token to get a session.
func isSignIn(form url.Values) bool { return form.Get("subject_token_type") == api.TokenTypeID }

// signIn exchanges an ID token for a session (RFC 8693).
func (a *API) signIn(r *http.Request, form url.Values) (*api.Session, error) {
	if form.Get("grant_type") != api.GrantTypeExchange {
		return nil, tokenProblem(http.StatusBadRequest, api.ErrorUnsupportedGrant, "only a token exchange is possible here", "want grant_type="+api.GrantTypeExchange)
	}
	if form.Get("requested_token_type") != api.TokenTypeAccess {
		return nil, invalidRequest("an ID token is exchanged for a session only", "want requested_token_type="+api.TokenTypeAccess)
	}
	token := form.Get("subject_token")
	who, err := a.o.SignIn.verify(r.Context(), token, form.Get("nonce_secret"))
	if err != nil {
		_, err = a.limitFailures(r, Caller{}, err)
		return nil, err
	}
	sum := sha256.Sum256([]byte(token))
	err = a.o.Registry.UseOnce(r.Context(), base64.RawURLEncoding.EncodeToString(sum[:]))
	if errors.Is(err, registry.ErrReplayed) {
		_, err = a.limitFailures(r, Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the ID token has been used already").
			WithHint("sign in again: postern login"))
	}
	if err != nil {
		return nil, err
	}
	s, secret, err := a.o.Registry.OpenSession(r.Context(), registry.Session{
		ID: form.Get("session"), User: who.user, Groups: who.groups, Hub: a.o.SignIn.administers(who.user, who.groups),
		Issuer: a.o.SignIn.cfg.IssuerURL, Source: sourceOf(r).String(), Client: clip(form.Get("client")),
		Expires: a.o.Now().Add(a.o.SignIn.cfg.SessionTTL),
	}, who.subject, a.o.State.Tokens().SignSession)
	if errors.Is(err, registry.ErrRevoked) {
		return nil, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "user %s was revoked at this hub", who.user).WithCause(err).
			WithHint("an administrator of the hub can undo it: postern user allow %s", who.user)
	}
	if err != nil {
		return nil, err
	}
	// Groups may be fewer than they were, and with them roles.
	if err := a.enforce(r, registry.Ground{Kind: registry.GroundUser, Name: who.user}); err != nil {
		return nil, err
	}
	n := noteOf(r)
	n.caller.Principal, n.object = identity.Principal{Kind: identity.KindUser, Name: s.User}, "session:"+s.ID
	a.o.Log.Info("signed in", "user", s.User, "session", s.ID, "source", s.Source, "renewed", s.ID == form.Get("session"), "expires", s.Expires)
	return &api.Session{
		AccessToken: secret, IssuedTokenType: api.TokenTypeAccess, TokenType: "Bearer",
		ExpiresIn: int64(a.o.SignIn.cfg.SessionTTL / time.Second), SessionID: s.ID, User: s.User, Groups: s.Groups,
	}, nil
}

// sweepSessions ends, until ctx does, what was issued on sessions that have
// expired.
func sweepSessions(ctx context.Context, reg *registry.Registry, issued *Issued, log *slog.Logger) {
	tick := time.NewTicker(sessionSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ended, err := reg.EndedSessions(ctx)
		if ended && err == nil {
			err = issued.Enforce(ctx, registry.Ground{Kind: registry.GroundUser})
		}
		if err != nil && ctx.Err() == nil {
			log.Error("what was issued on ended sessions may not have ended yet; will try again", "error", err)
		}
	}
}
