package hub

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
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

// replicaOf returns how the API tells a presence.
func replicaOf(p bus.Presence) api.Replica {
	r := api.Replica{
		Agent: p.Agent, Name: p.Replica, State: string(p.State), Since: p.Since, Version: p.Version, Zone: p.Zone,
		Address: p.Address, Started: p.Started, RTTMillis: float64(p.RTT) / float64(time.Millisecond),
		Streams: p.Streams, Pipes: p.Pipes, BytesIn: p.BytesIn, BytesOut: p.BytesOut,
		LastError: p.LastError, LastErrorAt: p.LastErrorAt, Allow: p.Allow, Gateway: p.Gateway,
	}
	if s := p.Policy; s != nil {
		r.Policy = &api.Policy{Rules: s.Rules, Version: s.Version, Since: s.Since, Error: s.Error, ErrorAt: s.ErrorAt}
	}
	return r
}

func (a *API) listAgents(r *http.Request) (any, error) {
	_, agents, err := a.agents(r)
	return agents, err
}

func (a *API) getAgent(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := identity.ValidateName("agent ID", id); err != nil {
		return nil, err
	}
	org, agents, err := a.agents(r)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(agents, func(agent api.Agent) bool { return agent.ID == id })
	if i < 0 {
		return nil, &api.Problem{
			Status: http.StatusNotFound, Code: wire.CodeNoAgent.String(), Leg: wire.LegAgent.String(),
			Detail: "no agent " + id + " is connected in organization " + org,
			Hint:   "start it with: postern agent --agent-id " + id + " --organization " + org + " ...",
		}
	}
	return agents[i], nil
}

// agents returns the agents of the organization that a request is about: any
// for the administrator, its own for a robot, one where it has a role for a user.
func (a *API) agents(r *http.Request) (org string, agents []api.Agent, err error) {
	p, err := a.caller(r)
	if err != nil {
		return "", nil, err
	}
	org = cmp.Or(r.URL.Query().Get("organization"), p.Organization, registry.DefaultOrganization)
	if p.Kind == identity.KindUser {
		if err := a.holds(r.Context(), p, org, role.Read); err != nil {
			return "", nil, err
		}
	} else if !p.Admin() && org != p.Organization {
		return "", nil, wire.Fail(wire.LegHub, wire.CodeDenied, "%s of organization %q may not see organization %q", p.Principal, p.Organization, clip(org)).
			WithHint("ask for organization %q, or use another token", p.Organization)
	}
	revocations, err := a.o.Registry.Revocations(r.Context(), org)
	if err != nil {
		return "", nil, err
	}
	for i := range revocations {
		if p.Kind == identity.KindRobot { // why is not for what may have been kept out
			revocations[i].Reason, revocations[i].By = "", ""
		}
	}
	agents = markRevoked(org, groupReplicas(org, convert(a.o.Presence.Presence(org), replicaOf)), revocations)
	labels := a.o.Access.Labels(org)
	for i := range agents {
		agents[i].Labels = labels[agents[i].ID]
	}
	if !p.Admin() {
		err = a.markGateway(org, p, agents)
	}
	return org, agents, err
}

// markGateway notes which agents' clusters the access grants let a caller reach.
func (a *API) markGateway(org string, c Caller, agents []api.Agent) error {
	grants, err := a.o.Access.Grants(org)
	if err != nil {
		return err
	}
	set, who, now := access.New(grants), policy.Asker{Proxy: ownProxy, Principal: c.Principal, Groups: c.Groups}, a.o.Now()
	for i := range agents {
		one := &agents[i]
		d := set.For(who, access.Agent{ID: one.ID, Labels: one.Labels}, now).Check(wire.Gateway())
		one.Gateway = sideVerdict(d.Allowed, d.NeedsAddress)
	}
	return nil
}

// groupReplicas puts the replicas of each agent together, both by name. It sorts
// what it is given.
func groupReplicas(org string, replicas []api.Replica) []api.Agent {
	slices.SortFunc(replicas, func(x, y api.Replica) int {
		return cmp.Or(strings.Compare(x.Agent, y.Agent), strings.Compare(x.Name, y.Name))
	})
	agents := []api.Agent{}
	for _, replica := range replicas {
		if n := len(agents); n == 0 || agents[n-1].ID != replica.Agent {
			agents = append(agents, api.Agent{ID: replica.Agent, Organization: org, State: replica.State})
		}
		last := &agents[len(agents)-1]
		last.Replicas = append(last.Replicas, replica)
		if stateRank(replica.State) < stateRank(last.State) {
			last.State = replica.State
		}
	}
	return agents
}

// markRevoked marks the agents that are revoked by name, and adds those that are not seen.
func markRevoked(org string, agents []api.Agent, revocations []registry.Revocation) []api.Agent {
	for _, v := range revocations {
		if v.Role != identity.RoleAgent {
			continue
		}
		i, seen := slices.BinarySearchFunc(agents, v.Name, func(agent api.Agent, id string) int { return strings.Compare(agent.ID, id) })
		if !seen {
			agents = slices.Insert(agents, i, api.Agent{ID: v.Name, Organization: org, Replicas: []api.Replica{}})
		}
		one := revocationOf(v)
		agents[i].State, agents[i].Revoked = api.StateRevoked, &one
	}
	return agents
}

// stateRank orders states from best to worst; an unknown one is the worst.
func stateRank(state string) int {
	ranks := []string{api.StateReady, api.StateDraining, api.StateStopped, api.StateLost}
	if i := slices.Index(ranks, state); i >= 0 {
		return i
	}
	return len(ranks)
}

func (a *API) version(*http.Request) (any, error) {
	return api.HubVersion{Version: a.o.Version, API: api.Version, TrustDomain: a.o.State.TrustDomain()}, nil
}

func (a *API) ca(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", api.TypePEM)
	_, _ = w.Write(a.o.State.Trust().Bundle) // the client is gone: there is nobody to tell
}

// ready answers 200 or 503. What exactly is wrong is for the administrator: this
// port is open to the world.
func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	readiness := a.o.Health.Ready(r.Context())
	status := http.StatusOK
	if !readiness.Ready {
		status = http.StatusServiceUnavailable
	}
	if r.Header.Get("Authorization") != "" {
		if _, err := a.permit(r, role.Hub); err != nil {
			a.fail(w, r, err)
			return
		}
	} else {
		readiness.Checks = nil
	}
	api.WriteJSON(w, status, api.TypeJSON, readiness)
}
