package hub

import (
	"fmt"
	"net/http"
	"strings"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/internal/workload"
)

// Bounds of what a trust lists.
const (
	maxAudiences = 16
	maxAudience  = 512 // bytes
)

func (a *API) trustRoutes() {
	trusts := api.PathOrganizations + "/{org}/trusts"
	a.handle("GET "+trusts, role.Read, a.listTrusts)
	a.handle("POST "+trusts, role.Administer, a.createTrust)
	a.handle("PUT "+trusts+"/{trust}/keys", role.Administer, a.setTrustKeys)
	a.handle("DELETE "+trusts+"/{trust}", role.Administer, a.removeTrust)
}

func (a *API) listTrusts(r *http.Request) (any, error) {
	all, err := a.o.Registry.Trusts(r.Context(), r.PathValue("org"))
	return convert(all, trustOf), err
}

func (a *API) createTrust(r *http.Request) (any, error) {
	var req api.CreateTrust
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	c := callerOf(r)
	t := registry.Trust{
		Organization: r.PathValue("org"), Name: req.Name, Issuer: req.Issuer, Audiences: req.Audiences, Claims: req.Claims,
		Role: identity.Role(req.Role), Identity: req.Identity, CA: req.CA, Keys: req.Keys,
		// Who administers one organization is a tenant, and does not look around in
		// the hub's own network by its hand.
		Public: !c.Admin() && !c.Hub,
	}
	if err := checkTrust(t); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	if t.Keys == "" && a.o.Issuers != nil {
		if _, err := a.o.Issuers.Discover(r.Context(), issuerOf(t)); err != nil {
			return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "the %s", err).
				WithHint("check the URL and --issuer-ca-file; for an issuer that the hub cannot reach, give its keys with --jwks-file")
		}
	}
	t, err := a.o.Registry.CreateTrust(r.Context(), t)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("issuer trusted", "organization", t.Organization, "trust", t.Name, "issuer", t.Issuer, "claims", t.Claims, "role", t.Role, "identity", t.Identity)
	return trustOf(t), nil
}

// checkTrust checks what a trust says.
func checkTrust(t registry.Trust) error {
	if !strings.HasPrefix(t.Issuer, "https://") {
		return fmt.Errorf("issuer %.200q: want https://HOST[/PATH], as in the tokens' iss", t.Issuer)
	}
	if len(t.Audiences) > maxAudiences {
		return fmt.Errorf("%d audiences; at most %d are possible", len(t.Audiences), maxAudiences)
	}
	for _, audience := range t.Audiences {
		if strings.TrimSpace(audience) == "" || len(audience) > maxAudience {
			return fmt.Errorf("audience %.60q: want 1 to %d bytes", audience, maxAudience)
		}
	}
	if err := issuerOf(t).Validate(); err != nil {
		return err
	}
	if _, err := workload.ParseRules(t.Claims); err != nil {
		return err
	}
	if t.Role != identity.RoleAgent && t.Role != identity.RoleProxy {
		return fmt.Errorf("role %.40q: want agent or proxy", t.Role)
	}
	name, err := workload.ParseName(t.Identity)
	if err == nil && t.Role == identity.RoleProxy && name.Fixed() && t.Identity == ownProxy {
		err = fmt.Errorf("the proxy name %s is that of the hub's own proxies", ownProxy)
	}
	return err
}

func (a *API) setTrustKeys(r *http.Request) (any, error) {
	var req api.SetTrustKeys
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	org, name := r.PathValue("org"), r.PathValue("trust")
	t, err := a.o.Registry.Trust(r.Context(), org, name)
	if err != nil {
		return nil, err
	}
	if t.Keys == "" {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "the hub asks the issuer of trust %s for its keys; none are given to it", name).
			WithHint("to give them, remove the trust and add it again with --jwks-file")
	}
	if t.Keys = req.Keys; t.Keys == "" {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "no keys are given")
	}
	if err := issuerOf(t).Validate(); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	if _, err := a.o.Registry.SetTrustKeys(r.Context(), org, name, req.Keys); err != nil {
		return nil, err
	}
	a.o.Log.Info("keys of a trusted issuer replaced", "organization", org, "trust", name, "issuer", t.Issuer)
	return nil, nil
}

func (a *API) removeTrust(r *http.Request) (any, error) {
	org := r.PathValue("org")
	t, err := a.o.Registry.RemoveTrust(r.Context(), org, r.PathValue("trust"))
	if err != nil {
		return nil, err
	}
	if err := a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundWorkload, Item: t.UID}); err != nil {
		return nil, err
	}
	a.o.Log.Info("issuer no longer trusted", "organization", org, "trust", t.Name, "issuer", t.Issuer)
	return nil, nil
}

func trustOf(t registry.Trust) api.Trust {
	return api.Trust{
		Organization: t.Organization, Name: t.Name, Issuer: t.Issuer, Audiences: t.Audiences, Claims: t.Claims,
		Role: string(t.Role), Identity: t.Identity, Keys: t.Keys != "", Public: t.Public, Created: t.Created,
	}
}
