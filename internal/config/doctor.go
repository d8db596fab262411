package config

import (
	"errors"
	"io/fs"
	"path/filepath"

	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/wire"
)

// Doctor is the settings of the walk along the legs from here to a target. It
// takes what the agent or proxy that does not work was given. Party.AgentID is the agent
// to reach, or with an agent's own key that agent; empty: no further than the bus.
// Party.Name is always derived. A join string is not taken: it is good once.
type Doctor struct {
	Party
	Proxy  string // name of the proxy that a workload token is for; empty: an agent's
	Target string // empty: no further than the agent
}

// DefaultDoctor returns a doctor's settings before anything is configured.
func DefaultDoctor() Doctor { return Doctor{Party: Party{Organization: DefaultOrganization}} }

func (d *Doctor) fields() []*Field {
	all := d.Uplink.fields()
	all[0].or(EnvPrefix + "HUB") // in an administrator's shell
	return append(all,
		text("organization", "ORG", &d.Organization, "organization to work for").or("UPBOUND_ORG"),
		text("agent-id", "ID", &d.AgentID, "agent to reach; without it the walk ends at the bus; with a key or --state the agent itself"),
		text("target", "TARGET", &d.Target, "target to reach through the agent, tcp:HOST:PORT or kubernetes; without it the walk ends at the agent"),
		text("token-file", "FILE", &d.TokenFile, "the token that the agent or proxy was given, or the administrator's"),
		hidden("token", &d.Token, "the token itself, where a file cannot be had").or("UPBOUND_TOKEN"),
		text("private-key-file", "FILE", &d.PrivateKeyFile, "the private key that the agent was given"),
		hidden("private-key", &d.PrivateKey, "the private key itself in PEM, where a file cannot be had; line breaks may be written as \\n"),
		text("state", "DIR", &d.State, "the directory of an agent that has joined with a join string"),
		text("workload-token-file", "FILE", &d.WorkloadTokenFile, "the token of an issuer that the organization trusts: that of the agent of --agent-id, or of the proxy of --proxy-name"),
		text("proxy-name", "NAME", &d.Proxy, "name of the proxy that the workload token is for"),
		text(contextName, "NAME", &d.Context, "context of postern login to use; without it the current one, unless --connect-url is another hub"),
	)
}

func (d *Doctor) contextFields() (context, hub string) {
	if d.State != "" {
		return "", "" // the directory says which hub it is for
	}
	return contextName, "connect-url"
}

// SignedIn reports whether the session of the context is what to enrol with.
func (d *Doctor) SignedIn() bool { return d.Context != "" && d.State == "" && len(d.proofs()) == 0 }

// AsAgent reports whether what is given proves to be the agent itself, so that nothing can be
// reached with it.
func (d *Doctor) AsAgent() bool {
	if d.TokenFile != "" || d.Token != "" || d.SignedIn() {
		return false
	}
	return d.WorkloadTokenFile == "" || d.Proxy == ""
}

func (d *Doctor) fromFile() bool { return false }

func (d *Doctor) complete(s *Set, env Environment) {
	d.Name = ReplicaName(env)
	s.oneToken(&d.TokenFile, &d.Token)
	s.oneSecret("private-key-file", &d.PrivateKeyFile, &d.PrivateKey)
	d.oneProof(s)
	if d.State == "" || len(d.proofs()) > 0 {
		return
	}
	if _, err := env.ReadFile(filepath.Join(d.State, joinstring.MembershipFile)); errors.Is(err, fs.ErrNotExist) {
		s.checker.fail("state", "start the agent once with its join string", "%s holds no %s: no agent has joined with it", d.State, joinstring.MembershipFile)
		return
	}
	d.completeJoin(s, env)
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
	switch proofs := d.proofs(); {
	case len(proofs) > 1:
		c.fail(proofs[1].setting+"-file", "give one of them", "%s", severalProofs)
	case len(proofs) == 0 && d.State == "" && d.Context == "":
		c.require("token-file", d.TokenFile)
	case d.AsAgent():
		c.require("agent-id", d.AgentID)
	}
}
