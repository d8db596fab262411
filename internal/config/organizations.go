package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"postern.dev/postern/internal/wire"
)

// organizationsName is the name of the list of an agent's organizations.
const organizationsName = "organizations"

// Membership is one entry of the list of organizations that an agent serves. What it
// leaves out is common to all entries; Agent.Each says what is not.
type Membership struct {
	Organization string
	Alias        string // what logs, metrics and health call it; empty for Organization
	AgentID      string
	Uplink
	TokenFile         string
	TokenEnv          string // the variable that holds the token
	PrivateKeyFile    string
	PrivateKeyEnv     string // the variable that holds the private key
	WorkloadTokenFile string
	Allow             []string
	Deny              []string // beside the common ones
	PolicyFile        string
	Zone              string
	Gateway           bool

	token, key Secret // from the variables
}

// Memberships returns the fields of an entry of the list, for the reference.
func Memberships() []*Field { return Bind(new(Membership)).Fields() }

func organizationsField() *Field {
	e := &entries{bind: func() Settings { return new(Membership) }}
	return e.field(organizationsName, "organizations to serve, instead of --organization, each with its own token or key and rules")
}

func (m *Membership) fields() []*Field {
	return []*Field{
		text("organization", "ORG", &m.Organization, "organization to serve; required"),
		text("alias", "NAME", &m.Alias, "what logs, metrics and health call it, where two hubs have organizations of one name; without it the organization"),
		text("agent-id", "ID", &m.AgentID, "ID of this agent in the organization; without it the common one"),
		text("connect-url", "URL", &m.ConnectURL, "address of the organization's hub; without it the common one. With it, the common caFile and caPin do not count"),
		text("ca-file", "FILE", &m.CAFile, "the hub's CA certificate; with it, the common caPin does not count"),
		text("ca-pin", "PIN", &m.CAPin, "fingerprint of the hub's CA; with it, the common caFile does not count"),
		link("proxy-url", &m.ProxyURL, "HTTP proxy to reach the hub through; without it the common one, AGENT_PROXY included"),
		text("proxy-ca-file", "FILE", &m.ProxyCAFile, "CA certificate of that proxy, or of what ends TLS before a wss:// hub; without it the common one"),
		text("token-file", "FILE", &m.TokenFile, "robot token of the organization; a token is never common"),
		text("token-env", "VARIABLE", &m.TokenEnv, "environment variable that holds the robot token, instead of tokenFile"),
		text("private-key-file", "FILE", &m.PrivateKeyFile, "private key of the agent as it is registered in the organization; without any key or token the common one"),
		text("private-key-env", "VARIABLE", &m.PrivateKeyEnv, "environment variable that holds the private key, instead of privateKeyFile"),
		text("workload-token-file", "FILE", &m.WorkloadTokenFile, "token of an issuer that the organization trusts; never common"),
		list("allow", "RULE", &m.Allow, "what the organization may reach; allowances are never common"),
		list("deny", "RULE", &m.Deny, "what the organization may not reach, beside the common deny rules"),
		text("policy-file", "FILE", &m.PolicyFile, "file of rules for the organization; never common, but entries may name the same file"),
		text("zone", "ZONE", &m.Zone, "where this replica runs, in the organization's words; without it the common one"),
		toggle("gateway", &m.Gateway, "let the gateway of the organization's hub reach the cluster's API server; never common"),
	}
}

func (m *Membership) fromFile() bool { return false }

func (m *Membership) complete(_ *Set, env Environment) {
	value := func(variable string) Secret {
		v, _ := env.LookupEnv(variable)
		return Secret(strings.TrimSpace(v))
	}
	if m.TokenEnv != "" {
		m.token = value(m.TokenEnv)
	}
	if m.PrivateKeyEnv != "" {
		m.key = value(m.PrivateKeyEnv)
	}
}

// Label returns what logs, metrics and health call the organization.
func (a *Agent) Label() string {
	if a.Alias != "" {
		return a.Alias
	}
	return a.Organization
}

// Each returns the settings of the agent of each organization: one for each entry of
// the list, or the settings themselves if there is no list.
//
// An entry takes from the common settings what it leaves out, but for what would tell
// one organization's secret to another, or open to one what was meant for another: a
// token, and what allows. How a hub is verified is taken only together with the
// hub's address. What denies is added to what the entry denies.
func (a Agent) Each() []Agent {
	if len(a.Organizations) == 0 {
		return []Agent{a}
	}
	all := make([]Agent, len(a.Organizations))
	for i, m := range a.Organizations {
		one := a
		one.Organizations, one.Listed = nil, true
		one.Organization, one.Alias = m.Organization, m.Alias
		one.Allow, one.PolicyFile, one.Gateway = m.Allow, m.PolicyFile, m.Gateway
		one.Deny = append(append([]string(nil), a.Deny...), m.Deny...)
		if m.ConnectURL != "" || m.CAFile != "" || m.CAPin != "" {
			one.CAFile, one.CAPin = m.CAFile, m.CAPin
		}
		if m.proofs() > 0 {
			one.TokenFile, one.Token, one.PrivateKeyFile, one.PrivateKey = m.TokenFile, m.token, m.PrivateKeyFile, m.key
			one.WorkloadTokenFile = m.WorkloadTokenFile
		}
		for own, common := range map[*string]*string{
			&m.ConnectURL: &one.ConnectURL, &m.ProxyURL: &one.ProxyURL, &m.ProxyCAFile: &one.ProxyCAFile,
			&m.AgentID: &one.AgentID, &m.Zone: &one.Zone,
		} {
			if *own != "" {
				*common = *own
			}
		}
		all[i] = one
	}
	return all
}

// proofs counts the ways in which an entry says to prove who the agent is.
func (m *Membership) proofs() (n int) {
	for _, way := range []string{m.TokenFile, m.TokenEnv, m.PrivateKeyFile, m.PrivateKeyEnv, m.WorkloadTokenFile} {
		if way != "" {
			n++
		}
	}
	return n
}

// completeEntries completes the entries of the list and takes them over.
func (a *Agent) completeEntries(s *Set, env Environment) {
	for _, set := range s.Field(organizationsName).entries.sets {
		m := set.settings.(*Membership)
		m.complete(set, env)
		a.Organizations = append(a.Organizations, *m)
	}
}

const joinMend = "join each organization with an agent that serves it alone, then give the entry the agent.key of its --state as privateKeyFile"

// checkEntries checks the settings of an agent that has a list of organizations.
func (a *Agent) checkEntries(c *checker) {
	f := c.set.Field(organizationsName)
	for _, one := range []struct{ name, mend string }{
		{"organization", "make it an entry of the list, or leave the list out"},
		{"token-file", "give each entry its tokenFile: a token is good for one organization"},
		{"token", "give each entry its tokenFile or tokenEnv: a token is good for one organization"},
		{"workload-token-file", "give each entry its workloadTokenFile: a token is good for one organization"},
		{"join-file", joinMend}, {"join", joinMend}, {"state", joinMend},
		{"allow", "give each entry what its organization may reach"},
		{"policy-file", "give each entry its policyFile; it may be the same file"},
		{"gateway", "give the entries that shall have it their gateway"},
	} {
		if own := c.set.Field(one.name); own.origin.Source != SourceDefault && own.String() != "" && own.String() != "false" {
			c.fail(one.name, one.mend, "cannot be given together with the list of organizations (%s)", f.origin)
		}
	}
	if a.ConnectURL != "" {
		c.connectURL("connect-url", a.ConnectURL)
	}
	c.trust(a.CAPin)
	c.proxyURL(a.ProxyURL)
	a.checkProcess(c)
	if a.AgentID != "" {
		c.name("agent-id", "agent ID", a.AgentID)
	}
	c.rules("deny", a.Deny)
	if a.Zone != "" {
		c.name("zone", "zone", a.Zone)
	}
	resolved := a.Each()
	for i, set := range f.entries.sets {
		sub := &checker{set: set}
		set.settings.check(sub)
		set.settings.(*Membership).checkResolved(sub, &resolved[i], f.entries.where[i])
		c.errs = append(c.errs, f.entries.named(f, i, sub.errs)...)
	}
	checkTwice(c, f, resolved)
}

// check checks what an entry itself says.
func (m *Membership) check(c *checker) {
	if m.Organization != "" {
		c.name("organization", "organization", m.Organization)
	}
	for _, one := range []struct{ setting, kind, value string }{
		{"alias", "alias", m.Alias}, {"agent-id", "agent ID", m.AgentID}, {"zone", "zone", m.Zone},
	} {
		if one.value != "" {
			c.name(one.setting, one.kind, one.value)
		}
	}
	if m.ConnectURL != "" {
		c.connectURL("connect-url", m.ConnectURL)
	}
	c.trust(m.CAPin)
	c.proxyURL(m.ProxyURL)
	c.rules("allow", m.Allow)
	c.rules("deny", m.Deny)
	if m.proofs() > 1 {
		c.fail(m.proof(), "give one of tokenFile, tokenEnv, privateKeyFile, privateKeyEnv and workloadTokenFile", "an agent shows one token or one key")
	}
	if m.TokenEnv != "" && m.token == "" {
		c.fail("token-env", "", "the variable %s is not set", m.TokenEnv)
	}
	if m.PrivateKeyEnv != "" && m.key == "" {
		c.fail("private-key-env", "", "the variable %s is not set", m.PrivateKeyEnv)
	}
}

// proof returns the setting by which the entry proves who the agent is.
func (m *Membership) proof() string {
	switch {
	case m.WorkloadTokenFile != "":
		return "workload-token-file"
	case m.PrivateKeyEnv != "":
		return "private-key-env"
	case m.PrivateKeyFile != "":
		return "private-key-file"
	case m.TokenEnv != "":
		return "token-env"
	default:
		return "token-file"
	}
}

// checkResolved checks that an entry has all that it needs, of its own or in common.
func (m *Membership) checkResolved(c *checker, r *Agent, where Origin) {
	missing := func(name, mend string) {
		c.errs = append(c.errs, &SettingError{Setting: name, Origin: where, Problem: "is not set", Mend: mend})
	}
	if m.Organization == "" {
		missing("organization", "name the organization of this entry")
	}
	if r.ConnectURL == "" {
		missing("connect-url", "give it in the entry, or for all with --connect-url or connectUrl")
	}
	if r.untrusted() {
		c.errs = append(c.errs, &SettingError{Setting: "ca-pin", Origin: where, Problem: untrustedProblem,
			Mend: "give the entry the pin that its hub prints at its start, or its ca.crt with caFile"})
	}
	if r.AgentID == "" {
		missing("agent-id", "give it in the entry, or for all with --agent-id or agentId")
	}
	if m.proofs() == 0 && r.PrivateKeyFile == "" && r.PrivateKey == "" {
		missing("token-file", "give the entry a tokenFile, tokenEnv, privateKeyFile or privateKeyEnv, or all a common privateKeyFile")
	}
}

// checkTwice refuses two entries that are called the same, and two for the same
// organization of the same hub.
func checkTwice(c *checker, f *Field, resolved []Agent) {
	labels, places := make(map[string]int), make(map[string]int)
	for i := range resolved {
		r := &resolved[i]
		if r.Organization == "" {
			continue
		}
		fail := func(first int, problem, mend string) {
			c.errs = append(c.errs, &SettingError{Setting: fmt.Sprintf("%s[%d]", f.Name, i), Origin: f.entries.where[i],
				Problem: fmt.Sprintf("%s, first in %s", problem, f.entries.where[first].Where), Mend: mend})
		}
		place := r.Organization + " " + meetingPlace(r.ConnectURL)
		if first, twice := places[place]; twice {
			fail(first, fmt.Sprintf("organization %s of the hub %s is listed twice", r.Organization, redactURL(r.ConnectURL)), "remove one of the entries")
			continue
		}
		places[place] = i
		if first, twice := labels[r.Label()]; twice {
			fail(first, fmt.Sprintf("%s is the name of two entries", r.Label()), "give one of them an alias")
			continue
		}
		labels[r.Label()] = i
	}
}

// meetingPlace returns the host and port of a connect URL, the same for all spellings.
func meetingPlace(connectURL string) string {
	u, err := url.Parse(connectURL)
	if err != nil {
		return connectURL
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "tls":
		port = "4222"
	default:
		port = "443"
	}
	host := u.Hostname()
	if h, err := wire.NormalizeHost(host); err == nil {
		host = h
	}
	return net.JoinHostPort(host, port)
}

// onlyOnce makes a field refuse a second flag, where people may take it for a list.
func onlyOnce(f *Field) *Field {
	set, given := f.set, false
	f.set = func(text string) error {
		if given {
			return errors.New("give it once; an agent of several organizations names them in its configuration file, below " + organizationsName)
		}
		given = true
		return set(text)
	}
	return f
}
