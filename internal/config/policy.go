package config

// Policy is the settings of `postern policy explain`: those of an agent's that say
// what may be reached.
type Policy struct {
	Allow      []string
	Deny       []string
	PolicyFile string
	Gateway    bool
}

func (p *Policy) fields() []*Field {
	return []*Field{allowField(&p.Allow), denyField(&p.Deny), policyFileField(&p.PolicyFile), gatewayField(&p.Gateway)}
}

func (p *Policy) fromFile() bool { return false }

func (p *Policy) complete(*Set, Environment) {}

func (p *Policy) check(c *checker) {
	c.rules("allow", p.Allow)
	c.rules("deny", p.Deny)
}

func allowField(p *[]string) *Field {
	return list("allow", "RULE", p, "what may be reached through this agent: kubernetes, tcp:HOST:PORT, tcp:*.DOMAIN:PORT, tcp:CIDR:PORT-PORT; "+
		"without a rule only the API server of the cluster that the agent runs in")
}

func denyField(p *[]string) *Field {
	return list("deny", "RULE", p, "what may not be reached, whatever --allow and the policy file say; rules as for --allow")
}

func policyFileField(p *string) *Field {
	return text("policy-file", "FILE", p, "YAML file of rules, also for some proxies only; a change takes effect within two seconds, "+
		"and cuts streams that are no longer allowed")
}
