package hub

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// peopleRoutes adds the routes of signing in, users, sessions and roles.
func (a *API) peopleRoutes() {
	a.open("GET "+api.PathSignIn, func(r *http.Request) (any, error) { return a.o.SignIn.Info(r.Context()) })
	a.known("GET "+api.PathWhoAmI, a.whoAmI)
	a.known("GET "+api.PathSessions, a.listSessions)
	a.known("DELETE "+api.PathSessions+"/{session}", a.deleteSession)

	a.handle("GET "+api.PathUsers, role.Hub, a.listUsers)
	a.handle("POST "+api.PathUsers+"/{user}/revoke", role.Hub, a.revokeUser)
	a.handle("POST "+api.PathUsers+"/{user}/allow", role.Hub, a.allowUser)
	a.handle("POST "+api.PathAdminToken, role.Hub, a.rotateAdminToken)
	a.handle("DELETE "+api.PathAdminToken, role.Hub, a.disableAdminToken)

	roles := api.PathOrganizations + "/{org}/roles"
	a.handle("GET "+roles, role.Read, a.listRoles)
	a.handle("POST "+roles, role.Own, a.grantRole)
	a.handle("DELETE "+roles+"/{role}/{principal}", role.Own, a.revokeRole)
}

// whoAmI tells callers who they are, and what they may do where.
func (a *API) whoAmI(r *http.Request) (any, error) {
	c := callerOf(r)
	me := api.WhoAmI{Principal: c.String(), Organization: c.Organization, Groups: c.Groups, Hub: c.Admin() || c.Hub}
	if c.Kind != identity.KindUser {
		return me, nil
	}
	me.Session, me.Expires = c.Item, c.Expires
	all, err := a.o.Registry.AllRoles(r.Context(), c.Name, c.Groups)
	if err != nil {
		return nil, err
	}
	me.Roles = make(map[string][]string)
	for org, roles := range all {
		me.Roles[org] = convert(roles, func(r role.Role) string { return string(r) })
	}
	return me, nil
}

// listSessions lists one's own sessions, or for those who administer the hub
// anybody's.
func (a *API) listSessions(r *http.Request) (any, error) {
	c, user := callerOf(r), r.URL.Query().Get("user")
	if !c.Admin() && !c.Hub {
		user = cmp.Or(user, c.Name)
		if c.Kind != identity.KindUser || user != c.Name {
			return nil, wire.Fail(wire.LegHub, wire.CodeDenied, "%s may see its own sessions only", c.Principal)
		}
	}
	all, err := a.o.Registry.Sessions(r.Context(), user)
	return convert(all, func(s registry.Session) api.SessionInfo {
		return api.SessionInfo{
			ID: s.ID, User: s.User, Groups: s.Groups, Source: s.Source, Client: s.Client, Created: s.Created, Renewed: s.Renewed, Expires: s.Expires,
		}
	}), err
}

// deleteSession ends a session of one's own, or for those who administer the hub
// anybody's.
func (a *API) deleteSession(r *http.Request) (any, error) {
	c, id, user := callerOf(r), r.PathValue("session"), ""
	if !c.Admin() && !c.Hub {
		if user = c.Name; c.Kind != identity.KindUser {
			return nil, wire.Fail(wire.LegHub, wire.CodeDenied, "%s has no sessions", c.Principal)
		}
	}
	all, err := a.o.Registry.Sessions(r.Context(), user)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(s registry.Session) bool { return s.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("session %s: %w", clip(id), registry.ErrNotFound)
	}
	err = a.o.Registry.DeleteSession(r.Context(), all[i])
	if err := errors.Join(err, a.enforce(r, registry.Ground{Kind: registry.GroundUser, Name: all[i].User, Item: id})); err != nil {
		return nil, err
	}
	a.o.Log.Info("session revoked", "session", id, "user", all[i].User, "by", c.String())
	return nil, nil
}

func (a *API) listUsers(r *http.Request) (any, error) {
	all, err := a.o.Registry.Users(r.Context())
	return convert(all, func(u registry.User) api.User {
		return api.User{
			Name: u.Name, Issuer: u.Issuer, Subject: u.Subject, Groups: u.Groups, Created: u.Created, LastSeen: u.LastSeen, Revoked: u.Revoked,
		}
	}), err
}

func (a *API) revokeUser(r *http.Request) (any, error) {
	user := r.PathValue("user")
	if c := callerOf(r); c.Kind == identity.KindUser && c.Name == user {
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: wire.CodeDenied.String(), Detail: "you would revoke yourself",
			Hint: "have another administrator do it; to sign out use: postern logout",
		}
	}
	if err := (identity.Principal{Kind: identity.KindUser, Name: user}).Validate(); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	err := a.o.Registry.RevokeUser(r.Context(), user)
	if err := errors.Join(err, a.enforce(r, registry.Ground{Kind: registry.GroundUser, Name: user})); err != nil {
		return nil, err
	}
	a.o.Log.Info("user revoked", "user", user, "by", callerOf(r).String())
	return nil, nil
}

func (a *API) allowUser(r *http.Request) (any, error) {
	user := r.PathValue("user")
	if err := a.o.Registry.AllowUser(r.Context(), user); err != nil {
		return nil, err
	}
	a.o.Log.Info("user allowed", "user", user, "by", callerOf(r).String())
	return nil, nil
}

func (a *API) listRoles(r *http.Request) (any, error) {
	all, err := a.o.Registry.Bindings(r.Context(), r.PathValue("org"))
	return convert(all, bindingOf), err
}

func bindingOf(b registry.Binding) api.RoleBinding {
	return api.RoleBinding{Role: string(b.Role), Principal: b.Principal.String(), Created: b.Created, By: b.By.String()}
}

// subjectOf reads whom a role is given to or taken from.
func subjectOf(text string) (identity.Principal, error) {
	p, err := identity.ParsePrincipal(text)
	if err == nil && p.Kind != identity.KindUser && p.Kind != identity.KindGroup {
		err = fmt.Errorf("%s is neither a user nor a group", p)
	}
	if err != nil {
		return p, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithHint("want user:NAME or group:NAME")
	}
	return p, nil
}

func roleOf(text string) (role.Role, error) {
	which, err := role.Parse(text)
	if err != nil {
		return "", wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	return which, nil
}

func (a *API) grantRole(r *http.Request) (any, error) {
	var req api.GrantRole
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	which, err := roleOf(req.Role)
	if err != nil {
		return nil, err
	}
	to, err := subjectOf(req.Principal)
	if err != nil {
		return nil, err
	}
	org, c := r.PathValue("org"), callerOf(r)
	if err := a.mayGive(r, c, org, which); err != nil {
		return nil, err
	}
	b, err := a.o.Registry.Bind(r.Context(), org, which, to, c.Principal)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("role granted", "organization", org, "role", string(which), "to", to.String(), "by", c.String())
	return bindingOf(b), nil
}

// mayGive says whether a caller holds all that a role would give.
func (a *API) mayGive(r *http.Request, c Caller, org string, which role.Role) error {
	for _, p := range which.Permissions() {
		if err := a.holds(r.Context(), c, org, p); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) revokeRole(r *http.Request) (any, error) {
	which, err := roleOf(r.PathValue("role"))
	if err != nil {
		return nil, err
	}
	from, err := subjectOf(r.PathValue("principal"))
	if err != nil {
		return nil, err
	}
	org, c := r.PathValue("org"), callerOf(r)
	if which == role.Owner && !c.Admin() && !c.Hub {
		all, err := a.o.Registry.Bindings(r.Context(), org)
		if err != nil {
			return nil, err
		}
		owners := 0
		for _, b := range all {
			if b.Role == role.Owner {
				owners++
			}
		}
		if owners == 1 && all[0].Principal == from {
			return nil, &api.Problem{
				Status: http.StatusConflict, Code: wire.CodeDenied.String(), Detail: from.String() + " is the last owner of organization " + org,
				Hint: "make another owner first, or ask an administrator of the hub",
			}
		}
	}
	err = a.o.Registry.Unbind(r.Context(), org, which, from)
	// Whoever has no role left here has no business here.
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundUser})); err != nil {
		return nil, err
	}
	a.o.Log.Info("role revoked", "organization", org, "role", string(which), "from", from.String(), "by", c.String())
	return nil, nil
}

// rotateAdminToken replaces the administrator's token. What was issued on the old
// one ends.
func (a *API) rotateAdminToken(r *http.Request) (any, error) {
	token, err := a.o.State.RotateAdmin()
	if err != nil {
		return nil, err
	}
	a.o.Issued.Revoke(r.Context(), registry.Ground{Kind: registry.GroundAdmin})
	a.o.Log.Warn("administrator's token replaced", "by", callerOf(r).String(), "source", sourceOf(r).String())
	return api.AdminToken{Token: token}, nil
}

// disableAdminToken switches the administrator's token off. Only somebody who
// administers the hub without it may do that: so there is somebody.
func (a *API) disableAdminToken(r *http.Request) (any, error) {
	c := callerOf(r)
	if c.Admin() {
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: wire.CodeDenied.String(), Detail: "the token cannot switch itself off: nobody might be left who administers the hub",
			Hint: "sign in as a user of --oidc-admin-group or --oidc-admin-user, with postern login, and do it then",
		}
	}
	if err := a.o.State.DisableAdmin(); err != nil {
		return nil, err
	}
	a.o.Issued.Revoke(r.Context(), registry.Ground{Kind: registry.GroundAdmin})
	a.o.Log.Warn("administrator's token switched off", "by", c.String(), "source", sourceOf(r).String())
	return nil, nil
}
