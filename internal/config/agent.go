package config

import (
	"slices"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
)

// Agent is the settings of an agent: the party in the private network that
// dials out and decides what may be reached.
type Agent struct {
	Party
	Allow      []string // rules of internal/policy; empty means the default allowance
	Deny       []string // rules of internal/policy; they win over Allow and PolicyFile
	PolicyFile string   // further rules, read again when the file changes
	Zone       string   // where the agent runs; proxies of the same zone prefer it
	Limit      []string // LEVEL.LIMIT=VALUE; see Limits
	Gateway    bool     // the hub's gateway may reach the API server
	Kubernetes Kubernetes

	AuditOpenAfter time.Duration // streams that live longer are told to the audit log when they open, too

	// Alias is what logs, metrics and health call the organization; empty for its name.
	Alias string

	// Listed tells that the settings are those of one of several organizations.
	Listed bool

	// Organizations are those of an agent that serves several; Organization, the token,
	// Allow and PolicyFile are empty then. Each resolves them.
	Organizations []Membership
}

// DefaultAgent returns an agent's settings before anything is configured.
func DefaultAgent() Agent {
	return Agent{Party: Party{DrainTimeout: defaultDrain, Log: Log{Format: "auto", Level: "info"}}, AuditOpenAfter: defaultOpenAfter}
}

func (a *Agent) fields() []*Field {
	all := a.Party.fields("ID of this agent; its replicas share it",
		"name of this replica, unique among those of the agent; without it POD_NAME, or the host's name and a random end")
	all = append(all, a.keyFields()...)
	for i, f := range all {
		if f.Name == "organization" {
			all[i] = onlyOnce(f)
		}
	}
	all = append(all,
		organizationsField(),
		allowField(&a.Allow), denyField(&a.Deny), policyFileField(&a.PolicyFile),
		text("zone", "ZONE", &a.Zone, "where this process runs; a proxy prefers the agents' replicas of its own zone"),
		limitField(&a.Limit, "how much may go through this replica in all, and by each proxy, in each organization: agent.streams=500, "+
			"proxy.streams=50, agent.bytes-per-second=100MB, agent.opens-per-second=100; the hub may allow less"),
		openAfterField(&a.AuditOpenAfter),
	)
	all = append(all, gatewayField(&a.Gateway))
	all = append(all, a.Kubernetes.fields()...)
	return append(all, a.tail()...)
}

func (a *Agent) fromFile() bool { return true }

func (a *Agent) complete(s *Set, env Environment) {
	a.Party.complete(s, env)
	if s.Field(organizationsName).origin.Source == SourceDefault {
		a.completeJoin(s, env)
	}
	a.completeEntries(s, env)
	if a.anyGateway() {
		a.Kubernetes.complete(env)
	}
}

func (a *Agent) check(c *checker) {
	c.limits("limit", a.Limit, limit.Agent, limit.Proxy)
	c.openAfter(a.AuditOpenAfter)
	a.Kubernetes.check(c, a.anyGateway())
	if c.set.Field(organizationsName).origin.Source != SourceDefault {
		a.checkEntries(c)
		return
	}
	a.Party.check(c)
	if c.require("agent-id", a.AgentID) {
		c.name("agent-id", "agent ID", a.AgentID)
	}
	c.rules("allow", a.Allow)
	c.rules("deny", a.Deny)
	if a.Zone != "" {
		c.name("zone", "zone", a.Zone)
	}
}

// anyGateway tells whether any organization has the gateway.
func (a *Agent) anyGateway() bool {
	return a.Gateway || slices.ContainsFunc(a.Organizations, func(m Membership) bool { return m.Gateway })
}

// ID returns the names of the agent's identity. The trust domain is the hub's to tell.
func (a *Agent) ID() identity.ID {
	return identity.ID{Organization: a.Organization, Role: identity.RoleAgent, Name: a.AgentID, Replica: a.Name}
}
