package hub

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

const (
	maxAccessLife  = 10 * 365 * 24 * time.Hour
	explainTimeout = 5 * time.Second // for replicas to answer
	maxExplained   = 16              // replicas that are asked
	maxFrom        = identity.MaxGroups + 2
)

// Explainer asks replicas of agents what they would say to a stream.
type Explainer interface {
	Explain(ctx context.Context, org, agent, replica string, r bus.ExplainRequest) (bus.Explanation, error)
}

// Explain implements Explainer.
func (t *tenants) Explain(ctx context.Context, org, agent, replica string, r bus.ExplainRequest) (bus.Explanation, error) {
	one := t.get(org)
	if one == nil {
		return bus.Explanation{}, wire.Fail(wire.LegHub, wire.CodeNoAgent, "there is no organization %q", org)
	}
	return one.bus.Explain(ctx, agent, replica, r)
}

// accessRoutes adds what is about access grants and labels. Whoever changes labels
// changes what grants by labels reach, so it takes the same permission.
func (a *API) accessRoutes() {
	org := api.PathOrganizations + "/{org}"
	a.handle("GET "+org+"/access", role.Read, a.listAccess)
	a.handle("POST "+org+"/access", role.Administer, a.grantAccess)
	a.handle("DELETE "+org+"/access/{grant}", role.Administer, a.revokeAccess)
	a.handle("GET "+org+"/explain", role.Read, a.explainAccess)
	a.handle("GET "+org+"/agents/{agent}/labels", role.Read, a.getLabels)
	a.handle("POST "+org+"/agents/{agent}/labels", role.Administer, a.setLabels)
}

func (a *API) listAccess(r *http.Request) (any, error) {
	grants, err := a.o.Access.Grants(r.PathValue("org"))
	return convert(grants, a.accessGrantOf), err
}

func (a *API) accessGrantOf(g access.Grant) api.AccessGrant {
	out := api.AccessGrant{
		ID: g.ID, To: g.To.String(), Agent: g.Agent.String(), Note: g.Note, Created: g.Created, Expires: g.Expires, Expired: g.Expired(a.o.Now()),
	}
	for _, rule := range g.Targets {
		out.Targets = append(out.Targets, rule.String())
	}
	if g.By != (identity.Principal{}) {
		out.CreatedBy = g.By.String()
	}
	return out
}

func (a *API) grantAccess(r *http.Request) (any, error) {
	var req api.CreateAccessGrant
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	var err error
	by := callerOf(r)
	g := access.Grant{ID: req.ID, Note: req.Note, By: by.Principal}
	bad := func(err error) error {
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	if g.To, err = policy.ParseWhom(req.To); err != nil {
		return nil, bad(err)
	}
	if g.Agent, err = access.ParseSelector(req.Agent); err != nil {
		return nil, bad(err)
	}
	for _, text := range req.Targets {
		rule, err := policy.ParseRule(text)
		if err != nil {
			return nil, bad(err)
		}
		g.Targets = append(g.Targets, rule)
	}
	if req.ExpiresIn < 0 || req.ExpiresIn > int64(maxAccessLife/time.Second) {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "an access grant cannot expire in %d seconds", req.ExpiresIn).
			WithHint("want 0 for never, or at most ten years")
	}
	if req.ExpiresIn > 0 {
		g.Expires = a.o.Now().UTC().Truncate(time.Millisecond).Add(time.Duration(req.ExpiresIn) * time.Second)
	}
	org := r.PathValue("org")
	if g, err = a.o.Access.Grant(r.Context(), org, g); err != nil {
		return nil, err
	}
	a.o.Log.Info("access granted", "organization", org, "grant", g.ID, "to", g.To.String(), "agent", g.Agent.String(), "scope", g.Scope(),
		"expires", expiryText(g.Expires), "by", by.String())
	return a.accessGrantOf(g), nil
}

func (a *API) revokeAccess(r *http.Request) (any, error) {
	by, org := callerOf(r), r.PathValue("org")
	g, err := a.o.Access.Revoke(r.Context(), org, r.PathValue("grant"))
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("access revoked", "organization", org, "grant", g.ID, "to", g.To.String(), "agent", g.Agent.String(), "by", by.String())
	return nil, nil
}

func (a *API) getLabels(r *http.Request) (any, error) {
	org, agent := r.PathValue("org"), r.PathValue("agent")
	if _, err := a.o.Access.Grants(org); err != nil { // there is such an organization
		return nil, err
	}
	return api.AgentLabels{Organization: org, Agent: agent, Labels: a.o.Access.Labels(org)[agent]}, identity.ValidateName("agent ID", agent)
}

func (a *API) setLabels(r *http.Request) (any, error) {
	var req api.SetLabels
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	org, agent := r.PathValue("org"), r.PathValue("agent")
	if err := identity.ValidateName("agent ID", agent); err != nil {
		return nil, err
	}
	labels, err := a.o.Access.Label(r.Context(), org, agent, req.Labels)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("agent labelled", "organization", org, "agent", agent, "labels", access.FormatLabels(labels), "by", callerOf(r).String())
	return api.AgentLabels{Organization: org, Agent: agent, Labels: labels}, nil
}

// explainAccess says what both sides say of a target.
func (a *API) explainAccess(r *http.Request) (any, error) {
	q := r.URL.Query()
	e := api.AccessExplanation{From: q["from"], Agent: q.Get("agent"), Target: q.Get("target"), Address: q.Get("address"), Replicas: []api.AccessReplica{}}
	org := r.PathValue("org")
	bad := func(err error) (any, error) {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	if err := identity.ValidateName("agent ID", e.Agent); err != nil {
		return bad(err)
	}
	target, err := wire.ParseTarget(e.Target)
	if err != nil {
		return bad(err)
	}
	var addr netip.AddrPort
	if e.Address != "" {
		ip, err := netip.ParseAddr(e.Address)
		if err != nil {
			return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%q is not an IP address", clip(e.Address))
		}
		addr = netip.AddrPortFrom(ip.Unmap(), target.Port)
	}
	if len(e.From) == 0 || len(e.From) > maxFrom {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "want who asks, as KIND:NAME")
	}
	who, err := policy.ParseAsker(e.From...)
	if err != nil {
		return bad(err)
	}
	if who.Principal == (identity.Principal{}) && who.Proxy != "" && who.Proxy != ownProxy {
		if p, ok := a.o.Issued.Enrolled(org, who.Proxy); ok {
			who.Principal = p
			e.From = append(slices.Clone(e.From), p.String())
		}
	}
	if who.Principal.Kind == identity.KindUser && len(who.Groups) == 0 {
		if who.Groups, e.GroupsOf, err = a.groupsOf(r.Context(), callerOf(r), org, who.Principal.Name); err != nil {
			return nil, err
		}
		for _, g := range who.Groups {
			e.From = append(e.From, string(identity.KindGroup)+":"+g)
		}
	}
	if e.Hub, e.Labels, err = a.hubSide(org, who, e.Agent, target, addr); err != nil {
		return nil, err
	}
	e.Replicas = a.replicaSides(r.Context(), org, e)
	e.Verdict = verdictOf(e)
	return e, nil
}

// groupsOf returns the groups that a user was in when the hub last saw him, and when that
// was. It tells them to whoever administers the hub, and of those who have a role in the
// organization that is asked about; of others it is no business of anybody there.
func (a *API) groupsOf(ctx context.Context, c Caller, org, user string) ([]string, time.Time, error) {
	u, err := a.o.Registry.User(ctx, user)
	if errors.Is(err, registry.ErrNotFound) || err == nil && len(u.Groups) == 0 {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	if !c.Admin() && !c.Hub {
		if roles, err := a.o.Registry.Roles(ctx, org, user, u.Groups); err != nil || len(roles) == 0 {
			return nil, time.Time{}, err
		}
	}
	return u.Groups, u.LastSeen, nil
}

// hubSide is what the hub's access grants say.
func (a *API) hubSide(org string, who policy.Asker, agent string, t wire.Target, addr netip.AddrPort) (api.AccessSide, string, error) {
	grants, err := a.o.Access.Grants(org)
	if err != nil {
		return api.AccessSide{}, "", err
	}
	labels := a.o.Access.Labels(org)[agent]
	view := access.New(grants).For(who, access.Agent{ID: agent, Labels: labels}, a.o.Now())
	d := view.Check(t)
	if addr.IsValid() {
		d = view.CheckAddr(t, addr)
	}
	side := api.AccessSide{Verdict: sideVerdict(d.Allowed, d.NeedsAddress), Rule: d.Rule, Origin: d.Grant, Until: d.Until, Reason: d.Reason, Hint: d.Hint}
	if i := slices.IndexFunc(grants, func(g access.Grant) bool { return g.ID == d.Grant }); i >= 0 {
		side.To = grants[i].To.String()
	}
	return side, access.FormatLabels(labels), nil
}

func sideVerdict(allowed, byAddress bool) string {
	switch {
	case !allowed:
		return api.VerdictRefused
	case byAddress:
		return api.VerdictUndecided
	default:
		return api.VerdictAllowed
	}
}

// replicaSides asks the agent's replicas that are connected.
func (a *API) replicaSides(ctx context.Context, org string, e api.AccessExplanation) []api.AccessReplica {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	out := []api.AccessReplica{}
	for _, p := range a.o.Presence.Presence(org) {
		if p.Agent == e.Agent && (p.State == bus.StateReady || p.State == bus.StateDraining) && len(out) < maxExplained {
			out = append(out, api.AccessReplica{Name: p.Replica})
		}
	}
	slices.SortFunc(out, func(x, y api.AccessReplica) int { return strings.Compare(x.Name, y.Name) })
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			x, err := a.o.Explainer.Explain(ctx, org, e.Agent, out[i].Name, bus.ExplainRequest{From: e.From, Target: e.Target, Address: e.Address})
			if err != nil {
				out[i].Error = err.Error()
				out[i].Owner.Verdict = api.VerdictUnknown
				return
			}
			out[i].Owner, out[i].Policy = sideOf(x.Owner), x.Policy
			if grants := sideOf(x.Access); grants.Verdict != e.Hub.Verdict {
				out[i].Behind, out[i].Grants = true, &grants
			}
		})
	}
	wg.Wait()
	return out
}

func sideOf(v bus.Verdict) api.AccessSide {
	return api.AccessSide{Verdict: sideVerdict(v.Allowed, v.ByAddress), Rule: v.Rule, Origin: v.Origin, Reason: v.Reason, Missing: v.Missing}
}

// verdictOf sums an explanation up: whoever refuses decides, then who cannot say.
func verdictOf(e api.AccessExplanation) string {
	said := []string{e.Hub.Verdict}
	if len(e.Replicas) == 0 {
		said = append(said, api.VerdictUnknown)
	}
	for _, one := range e.Replicas {
		said = append(said, one.Owner.Verdict)
	}
	for _, v := range []string{api.VerdictRefused, api.VerdictUnknown, api.VerdictUndecided} {
		if slices.Contains(said, v) {
			return v
		}
	}
	return api.VerdictAllowed
}

// Enrolled returns who enrolled a proxy, if everything that is valid under its name
// was issued to the same one.
func (i *Issued) Enrolled(org, proxy string) (identity.Principal, bool) {
	var found registry.Ground
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, one := range i.all {
		if one.Revoked || one.party != (partyName{org, identity.RoleProxy, proxy}) || !i.now().Before(one.Expires) {
			continue
		}
		if ground := (registry.Ground{Kind: one.Ground.Kind, Name: one.Ground.Name}); found == (registry.Ground{}) {
			found = ground
		} else if found != ground {
			return identity.Principal{}, false
		}
	}
	p := identity.Principal{Kind: identity.PrincipalKind(found.Kind), Name: found.Name}
	if p.Kind == identity.KindAdmin {
		p = administrator().Principal
	}
	return p, p.Validate() == nil
}

// expiryText is a time of expiry for the log.
func expiryText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}
