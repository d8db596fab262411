package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// Principal is who shows a long-lived token.
type Principal struct {
	Admin        bool   // the administrator, who may do everything; the rest is empty then
	Organization string // of a robot or agent
	Robot        string
	AccessID     string // names the robot's token
	Agent        string // instead of Robot: an agent that signed with a key of its own
	KeyID        string // names the agent's key
}

// Name returns the principal for logs.
func (p Principal) Name() string {
	switch {
	case p.Admin:
		return "administrator"
	case p.Agent != "":
		return "agent:" + p.Agent
	default:
		return "robot:" + p.Robot
	}
}

// Ground returns what credentials in an organization are issued on, when the
// principal asks for them.
func (p Principal) Ground(org string) registry.Ground {
	switch {
	case p.Admin:
		return registry.Ground{Organization: org, Kind: registry.GroundAdmin}
	case p.Agent != "":
		return registry.Ground{Organization: p.Organization, Kind: registry.GroundAgent, Name: p.Agent, Item: p.KeyID}
	default:
		return registry.Ground{Organization: p.Organization, Kind: registry.GroundRobot, Name: p.Robot, Item: p.AccessID}
	}
}

// Authenticator tells whose a long-lived token is. It is safe for concurrent use.
type Authenticator struct {
	state    *State
	registry *registry.Registry
	now      func() time.Time
	used     *usedAssertions
}

// NewAuthenticator returns an Authenticator for the tokens of a hub. A nil now
// means time.Now.
func NewAuthenticator(state *State, reg *registry.Registry, now func() time.Time) *Authenticator {
	if now == nil {
		now = time.Now
	}
	return &Authenticator{state: state, registry: reg, now: now, used: newUsedAssertions()}
}

// Authenticate returns whose token it is: the administrator's, or a robot's that
// was issued here, has not expired and was not revoked. Errors are *wire.Failure
// that blame the hub's leg, with CodeUnauthenticated unless the hub itself is at
// fault; they do not hold the token.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (Principal, error) {
	if token == "" {
		return Principal{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "no token was sent").WithHint("%s", hintToken)
	}
	if a.state.IsAdmin(token) {
		return Principal{Admin: true}, nil
	}
	now := a.now()
	claims, err := a.state.Tokens().VerifyRobot(token, now)
	if err != nil {
		return Principal{}, a.refusal(err, now)
	}
	err = a.registry.CheckToken(ctx, claims, token)
	switch {
	case errors.Is(err, registry.ErrRevoked):
		return Principal{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token %s of robot %q in organization %q was revoked",
			claims.AccessID, claims.Robot, claims.Organization).WithHint("%s", hintToken).WithCause(err)
	case err != nil:
		return Principal{}, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the token up").WithCause(err)
	}
	return Principal{Organization: claims.Organization, Robot: claims.Robot, AccessID: claims.AccessID}, nil
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
