package config

import "postern.dev/postern/internal/wire"

// Doctor is the settings of the walk along the legs from here to a target. It
// takes what the agent or proxy that does not work was given.
type Doctor struct {
	Uplink
	Organization string
	AgentID      string // empty: no further than the bus
	Target       string // empty: no further than the agent
	TokenFile    string
	Token        Secret // from the environment only; unused when TokenFile is set
	Name         string // of this process as a proxy; always derived
}

// DefaultDoctor returns a doctor's settings before anything is configured.
func DefaultDoctor() Doctor { return Doctor{Organization: DefaultOrganization} }

func (d *Doctor) fields() []*Field {
	all := d.Uplink.fields()
	all[0].or(EnvPrefix + "HUB") // in an administrator's shell
	return append(all,
		text("organization", "ORG", &d.Organization, "organization to work for").or("UPBOUND_ORG"),
		text("agent-id", "ID", &d.AgentID, "agent to reach; without it the walk ends at the bus"),
		text("target", "TARGET", &d.Target, "target to reach through the agent, tcp:HOST:PORT or kubernetes; without it the walk ends at the agent"),
		text("token-file", "FILE", &d.TokenFile, "the token that the agent or proxy was given, or the administrator's"),
		hidden("token", &d.Token, "the token itself, where a file cannot be had").or("UPBOUND_TOKEN"),
	)
}

func (d *Doctor) fromFile() bool { return false }

func (d *Doctor) complete(s *Set, env Environment) {
	s.oneToken(&d.TokenFile, &d.Token)
	d.Name = ReplicaName(env)
}

func (d *Doctor) check(c *checker) {
	d.Uplink.check(c)
	if c.require("organization", d.Organization) {
		c.name("organization", "organization", d.Organization)
	}
	if d.AgentID != "" {
		c.name("agent-id", "agent ID", d.AgentID)
	}
	if d.Target != "" {
		if _, err := wire.ParseTarget(d.Target); err != nil {
			c.fail("target", "", "%v", err)
		}
		if d.AgentID == "" {
			c.fail("target", "give --agent-id too", "%s can be reached through an agent only", d.Target)
		}
	}
	if d.Token == "" {
		c.require("token-file", d.TokenFile)
	}
}
