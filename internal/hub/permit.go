package hub

import (
	"context"
	"net/http"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// callerKey is where a request's context holds who makes it.
type callerKey struct{}

func withCaller(r *http.Request, c Caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// callerOf returns who makes a request, in a handler of handle or known.
func callerOf(r *http.Request) Caller {
	c, _ := r.Context().Value(callerKey{}).(Caller)
	return c
}

// permit returns who makes a request, if the caller holds a permission in the
// organization of the request's path.
func (a *API) permit(r *http.Request, need role.Permission) (Caller, error) {
	c, err := a.caller(r)
	if err != nil {
		return Caller{}, err
	}
	return c, a.holds(r.Context(), c, r.PathValue("org"), need)
}

// holds returns nil if a caller holds a permission in an organization: the
// break-glass administrator and whoever administers the hub all of them, other users
// those of their roles. An organization that does not exist answers as one in which
// the caller has no role.
func (a *API) holds(ctx context.Context, c Caller, org string, need role.Permission) error {
	if c.Admin() || c.Kind == identity.KindUser && c.Hub {
		return nil
	}
	if c.Kind != identity.KindUser {
		return wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not do this: it takes the permission to %s", c.Principal, need).
			WithHint("sign in as a user who has it, with postern login, or use the administrator's token")
	}
	if need == role.Hub {
		return wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not do this: it is for those who administer the hub itself", c.Principal).
			WithHint("the hub's settings name them: --oidc-admin-group and --oidc-admin-user")
	}
	if identity.ValidateName("organization", org) == nil {
		roles, err := a.o.Registry.Roles(ctx, org, c.Name, c.Groups)
		if err != nil {
			return err
		}
		for _, r := range roles {
			if r.Holds(need) {
				return nil
			}
		}
	}
	return wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not do this: it takes the permission to %s in organization %q", c.Principal, need, clip(org)).
		WithHint("ask an owner of it to give you a role: postern role grant ROLE --to %s -a %s", c.Principal, clip(org))
}
