package hub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// Caller is who showed a long-lived secret, or proved to hold one.
type Caller struct {
	identity.Principal
	Organization string   // that it belongs to; empty for the administrator
	Item         string   // what it showed: a token's access ID, a key's ID, the session's ID
	Groups       []string // of a user

	Party identity.ID // the one, by role and name, that a workload may be

	Hub     bool      // a user who holds the permission over the hub itself
	Expires time.Time // of a user's session
}

// Admin reports whether it is the break-glass administrator, who may do everything.
func (c Caller) Admin() bool { return c.Kind == identity.KindAdmin }

// Holder returns on whose behalf certificates are issued to the caller.
func (c Caller) Holder() identity.Holder {
	return identity.Holder{Principal: c.Principal, Groups: c.Groups}
}

// Ground returns what credentials in an organization are issued on, when the
// caller asks for them.
func (c Caller) Ground(org string) registry.Ground {
	if c.Admin() {
		return registry.Ground{Organization: org, Kind: registry.GroundAdmin}
	}
	if c.Kind == identity.KindUser {
		return registry.Ground{Organization: org, Kind: registry.GroundUser, Name: c.Name, Item: c.Item}
	}
	return registry.Ground{Organization: c.Organization, Kind: string(c.Kind), Name: c.Name, Item: c.Item}
}

// limit returns how long credentials may live that are issued to the caller now:
// ttl, or as long as its session if that is less.
func (c Caller) limit(ttl time.Duration, now time.Time) time.Duration {
	if c.Expires.IsZero() {
		return ttl
	}
	return max(min(ttl, c.Expires.Sub(now).Truncate(time.Second)), time.Second)
}

// administrator is the caller who shows the administrator's token.
func administrator() Caller {
	return Caller{Principal: identity.Principal{Kind: identity.KindAdmin, Name: "break-glass"}}
}

// Authenticator tells whose a long-lived token is. It is safe for concurrent use.
type Authenticator struct {
	state    *State
	registry *registry.Registry
	signIn   *SignIn
	now      func() time.Time
	used     *usedAssertions
}

// NewAuthenticator returns an Authenticator for the tokens of a hub. A nil signIn
// means that nobody administers the hub as a user, a nil now time.Now.
func NewAuthenticator(state *State, reg *registry.Registry, signIn *SignIn, now func() time.Time) *Authenticator {
	if now == nil {
		now = time.Now
	}
	return &Authenticator{state: state, registry: reg, signIn: signIn, now: now, used: newUsedAssertions()}
}

// Authenticate returns whose token it is: the administrator's, a robot's or that of
// a person's session, which was issued here, has not expired and was not revoked. Errors are *wire.Failure
// that blame the hub's leg, with CodeUnauthenticated unless the hub itself is at
// fault; they do not hold the token.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (Caller, error) {
	if token == "" {
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "no token was sent").WithHint("%s", hintToken)
	}
	if a.state.IsAdmin(token) {
		return administrator(), nil
	}
	if identity.IsSession(token) {
		return a.session(ctx, token)
	}
	if strings.HasPrefix(token, adminPrefix) {
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the administrator's token is not this hub's, was replaced, or is switched off").
			WithHint("sign in with postern login, or make a new one on the hub's machine: postern hub admin-token enable --data DIR")
	}
	now := a.now()
	claims, err := a.state.Tokens().VerifyRobot(token, now)
	if err != nil {
		return Caller{}, a.refusal(err, now)
	}
	err = a.registry.CheckToken(ctx, claims, token)
	switch {
	case errors.Is(err, registry.ErrRevoked):
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token %s of robot %q in organization %q was revoked",
			claims.AccessID, claims.Robot, claims.Organization).WithHint("%s", hintToken).WithCause(err)
	case err != nil:
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the token up").WithCause(err)
	}
	return Caller{
		Principal: identity.Principal{Kind: identity.KindRobot, Name: claims.Robot}, Organization: claims.Organization, Item: claims.AccessID,
	}, nil
}

// session returns whose session a token is of.
func (a *Authenticator) session(ctx context.Context, token string) (Caller, error) {
	const hint = "sign in again: postern login"
	now := a.now()
	claims, err := a.state.Tokens().VerifySession(token, now)
	if err != nil {
		f := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the session is not good: %s", err).WithCause(err).WithHint("%s", hint)
		if errors.Is(err, identity.ErrTokenExpired) {
			f.Text = fmt.Sprintf("the session ended at %s; by the hub's clock it is %s", claims.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		return Caller{}, f
	}
	s, err := a.registry.CheckSession(ctx, claims, token)
	switch {
	case errors.Is(err, registry.ErrRevoked):
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the session of user %s has ended or was revoked", claims.User).
			WithHint("%s", hint).WithCause(err)
	case err != nil:
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the session up").WithCause(err)
	}
	return Caller{
		Principal: identity.Principal{Kind: identity.KindUser, Name: s.User}, Item: s.ID, Groups: s.Groups,
		Hub: a.signIn.administers(s.User, s.Groups), Expires: claims.Expires,
	}, nil
}

const hintToken = "make a new one with: postern robot token create ROBOT NAME -a ORG -f FILE"

// refusal words why a token is not good.
func (a *Authenticator) refusal(err error, now time.Time) error {
	f := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the %s", err).WithCause(err)
	switch {
	case errors.Is(err, identity.ErrTokenExpired):
		f.Text += fmt.Sprintf("; by the hub's clock it is %s", now.UTC().Format(time.RFC3339))
		f.Hint = hintToken
	case errors.Is(err, identity.ErrTokenIssuer):
		f.Hint = "use the hub that issued it, or a token of this one"
	case errors.Is(err, identity.ErrTokenMalformed):
		f.Hint = "check that the whole token was given: a robot's has three parts with dots between, or is the administrator's as it stands in admin.token"
	default:
		f.Hint = hintToken
	}
	return f
}
