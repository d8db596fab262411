package hub

import (
	"net/http"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// limitRoutes routes what there is below a path. An organization's own limits are the
// hub's to set: a tenant must not raise them.
func (a *API) limitRoutes(path string) {
	a.handle("GET "+path, role.Read, a.listLimits)
	a.handle("PATCH "+path, role.Hub, a.setLimits)
	a.handle("DELETE "+path, role.Hub, a.removeLimits)
	a.handle("PATCH "+path+"/{level}/{name}", role.Administer, a.setLimits)
	a.handle("DELETE "+path+"/{level}/{name}", role.Administer, a.removeLimits)
}

func (a *API) listLimits(r *http.Request) (any, error) {
	org, err := a.o.Registry.Organization(r.Context(), r.PathValue("org"))
	if err != nil {
		return nil, err
	}
	return convert(a.o.Quotas.Book().Usage(org.Name), limitsOf), nil
}

// limited returns whose limits a request is about.
func limited(r *http.Request) (limit.Key, error) {
	key := limit.Key{Level: limit.Organization, Organization: r.PathValue("org"), Name: r.PathValue("name")}
	switch r.PathValue("level") {
	case "":
		return key, nil
	case api.LevelAgent:
		key.Level = limit.Agent
		return key, identity.ValidateName("agent ID", key.Name)
	case api.LevelProxy:
		key.Level = limit.Proxy
		return key, identity.ValidateName("proxy name", key.Name)
	default:
		return key, wire.Fail(wire.LegHub, wire.CodeBadRequest, "there are no limits of %q: want agent or proxy", clip(r.PathValue("level")))
	}
}

func (a *API) setLimits(r *http.Request) (any, error) {
	key, err := limited(r)
	if err != nil {
		return nil, err
	}
	var change limit.Limits
	if err := api.ReadJSON(r, &change); err != nil {
		return nil, err
	}
	if err := change.Check(key.Level); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	if change == (limit.Limits{}) {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "no limit is given")
	}
	if err := a.o.Quotas.Set(r.Context(), key, change); err != nil {
		return nil, err
	}
	attrs := []any{"party", key.String()}
	for k := range limit.Kind(limit.Kinds) {
		if v := change.Get(k); v != limit.Unset {
			attrs = append(attrs, k.String(), v.Text(k))
		}
	}
	a.o.Log.Info("limits set", attrs...)
	return a.listLimits(r)
}

func (a *API) removeLimits(r *http.Request) (any, error) {
	key, err := limited(r)
	if err != nil {
		return nil, err
	}
	if err := a.o.Quotas.Remove(r.Context(), key); err != nil {
		return nil, err
	}
	a.o.Log.Info("limits removed", "party", key.String())
	return nil, nil
}

func limitsOf(u limit.Usage) api.PartyLimits {
	p := api.PartyLimits{
		Organization: u.Organization, Level: u.Level.String(), Name: u.Name, Set: u.Own, Limits: u.Limits,
		Streams: u.Streams, Pipes: u.Pipes, Agents: u.Agents, Connections: u.Connections, ThrottledSeconds: u.Throttled.Seconds(),
	}
	for k, n := range u.Refused {
		if n > 0 {
			if p.Refusals == nil {
				p.Refusals = make(map[string]uint64)
			}
			p.Refusals[limit.Kind(k).String()] = n
		}
	}
	return p
}
