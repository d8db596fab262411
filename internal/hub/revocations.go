package hub

import (
	"context"
	"net/http"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

func (a *API) revocationRoutes() {
	revocations := api.PathOrganizations + "/{org}/revocations"
	a.handle("GET "+revocations, role.Read, a.listRevocations)
	a.handle("PUT "+revocations+"/{party}/{name}", role.Operate, a.revokeParty)
	a.handle("DELETE "+revocations+"/{party}/{name}", role.Operate, a.restoreParty)
}

func (a *API) listRevocations(r *http.Request) (any, error) {
	all, err := a.o.Registry.Revocations(r.Context(), r.PathValue("org"))
	return convert(all, revocationOf), err
}

// revoked returns which party a request is about.
func revoked(r *http.Request) (identity.Role, string, error) {
	which, name := identity.Role(r.PathValue("party")), r.PathValue("name")
	what := "agent ID"
	switch which {
	case identity.RoleAgent:
	case identity.RoleProxy:
		what = "proxy name"
	default:
		return "", "", wire.Fail(wire.LegHub, wire.CodeBadRequest, "%q cannot be revoked by name: want agent or proxy", clip(string(which)))
	}
	if err := identity.ValidateName(what, name); err != nil {
		return "", "", err
	}
	noteOf(r).object = string(which) + ":" + name
	return which, name, nil
}

// revokeParty keeps a name out, and cuts off whoever has it. Doing so again finishes what
// was not finished.
func (a *API) revokeParty(r *http.Request) (any, error) {
	which, name, err := revoked(r)
	if err != nil {
		return nil, err
	}
	var req api.RevokeParty
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	if which == identity.RoleProxy && name == ownProxy {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s is the name of the hub's own proxies: they are not revoked", ownProxy).
			WithHint("switch them off in the hub's settings: --http \"\", --socks5 \"\", and no --forward")
	}
	v, err := a.o.Registry.RevokeParty(r.Context(), registry.Revocation{
		Organization: r.PathValue("org"), Role: which, Name: name, Reason: req.Reason, By: callerOf(r).String(),
	})
	if err != nil {
		return nil, err
	}
	out := revocationOf(v)
	out.Cut = a.o.Issued.RevokeParty(context.WithoutCancel(r.Context()), v.Organization, which, name)
	noteOf(r).what = "revoke"
	if req.Reason != "" {
		noteOf(r).what += ": " + req.Reason
	}
	a.o.Log.Info("party revoked", "organization", v.Organization, "party", string(which)+":"+name, "by", v.By, "connections", out.Cut)
	return out, nil
}

func (a *API) restoreParty(r *http.Request) (any, error) {
	which, name, err := revoked(r)
	if err != nil {
		return nil, err
	}
	v, err := a.o.Registry.RestoreParty(r.Context(), r.PathValue("org"), which, name)
	if err != nil {
		return nil, err
	}
	noteOf(r).what = "restore"
	a.o.Log.Info("party restored", "organization", v.Organization, "party", string(which)+":"+name, "by", callerOf(r).String())
	return nil, nil
}

// partyRevoked words for a party that it is revoked. Why and by whom is not for it to
// know: who asks may be the one who was to be kept out.
func partyRevoked(err *registry.RevokedError) *api.Problem {
	v := err.Revocation
	return &api.Problem{
		Status: http.StatusForbidden, Code: api.ErrorPartyRevoked, Leg: wire.LegHub.String(), Detail: err.Error(),
		Hint: "if it is to come back, an operator of the organization restores it: postern " + string(v.Role) + " restore " + v.Name + " -a " + v.Organization,
	}
}

func revocationOf(v registry.Revocation) api.Revocation {
	return api.Revocation{
		Organization: v.Organization, Role: string(v.Role), Name: v.Name, Reason: v.Reason, By: v.By, Revoked: v.Revoked,
	}
}
