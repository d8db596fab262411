package config

import (
	"slices"
	"strings"
	"time"
)

// DefaultOrganization is the organization that every hub has from the start.
const DefaultOrganization = "default"

// defaultDrain is how long streams may go on after SIGTERM: a little less than
// the 30 s after which Kubernetes kills a pod.
const defaultDrain = 25 * time.Second

// Log says how a process logs.
type Log struct {
	Format string // "auto" (text on a terminal, JSON elsewhere), "text" or "json"
	Level  string // "debug", "info", "warn" or "error"
}

func (l *Log) fields() []*Field {
	return []*Field{
		text("log-format", "FORMAT", &l.Format, "how to log: text, json, or auto for text on a terminal and JSON elsewhere"),
		text("log-level", "LEVEL", &l.Level, "what to log: debug, info, warn or error"),
	}
}

func (l *Log) check(c *checker) {
	c.oneOf("log-format", l.Format, "auto", "text", "json")
	c.oneOf("log-level", l.Level, "debug", "info", "warn", "error")
}

// Uplink says how a party reaches the one port of a hub or relay.
type Uplink struct {
	ConnectURL  string // tls://HOST[:4222], https://HOST[:443] or wss://HOST[:443][/PATH]
	CAFile      string // PEM file with the hub's CA; empty for the system's roots, unless CAPin is set
	CAPin       string // "sha256:HEX" of the hub's CA, instead of CAFile or in addition
	ProxyURL    string // HTTP proxy to leave the network by; empty for HTTPS_PROXY and NO_PROXY
	ProxyCAFile string // PEM file with the CA of an https:// proxy, or of what ends TLS before a wss:// hub; empty for the system's roots
}

func (u *Uplink) fields() []*Field {
	return []*Field{
		text("connect-url", "URL", &u.ConnectURL, "address of the hub: tls://HOST[:4222], or wss://HOST[:443] where only web traffic passes"),
		text("ca-file", "FILE", &u.CAFile, "the hub's CA certificate, DIR/ca.crt on the hub; without it and --ca-pin the system's CAs are trusted"),
		text("ca-pin", "PIN", &u.CAPin, "fingerprint of the hub's CA as the hub prints it (sha256:...), instead of --ca-file or in addition"),
		link("proxy-url", &u.ProxyURL, "HTTP proxy to reach the hub through, http://HOST:PORT or https://HOST:PORT; "+
			"without it HTTPS_PROXY and NO_PROXY count; keep a password in AGENT_PROXY").or("AGENT_PROXY"),
		text("proxy-ca-file", "FILE", &u.ProxyCAFile, "CA certificate of an https:// proxy, or of the load balancer or inspecting firewall before a wss:// hub"),
	}
}

func (u *Uplink) check(c *checker) {
	if c.require("connect-url", u.ConnectURL) {
		c.connectURL("connect-url", u.ConnectURL)
		if u.untrusted() {
			c.fail("ca-pin", "give the pin that the hub prints at its start, or its ca.crt with --ca-file", untrustedProblem)
		}
	}
	c.trust(u.CAPin)
	c.proxyURL(u.ProxyURL)
}

const untrustedProblem = "is needed with wss://, so that what ends TLS on the way cannot pose as the hub"

// untrusted reports whether the connect URL lacks the trust that it needs.
func (u *Uplink) untrusted() bool {
	return strings.HasPrefix(strings.ToLower(u.ConnectURL), "wss:") && u.CAFile == "" && u.CAPin == ""
}

// Party is what agents and proxies have in common: a place to connect to, an
// identity, and a secret that proves it.
type Party struct {
	Uplink
	Organization string
	AgentID      string // the agent's own ID; for a proxy the agent that is meant when a client names none
	TokenFile    string // file with a robot token: JSON {"accessId","token"} or the bare token
	Token        Secret // the robot token itself, from the environment only; unused when TokenFile is set
	// An agent may have a private key instead of a token; other parties have none.
	PrivateKeyFile string // file with the key in PEM
	PrivateKey     Secret // the key itself, from the environment only; unused when PrivateKeyFile is set
	// Or the token of an issuer that the organization trusts.
	WorkloadTokenFile string
	Joining           // for an agent without any of these

	Context string // of a person who signed in; a proxy may have one

	Name         string // unique among the replicas that share an identity; derived when not given
	Metrics      string // HOST:PORT for /metrics, /healthz and /readyz; empty for none
	DrainTimeout time.Duration
	Log          Log
}

func (p *Party) fields(agentID, name string) []*Field {
	all := p.Uplink.fields()
	all = append(all,
		text("organization", "ORG", &p.Organization, "organization to work for").or("UPBOUND_ORG"),
		text("agent-id", "ID", &p.AgentID, agentID),
		text("token-file", "FILE", &p.TokenFile, "robot token, as postern robot token create writes it; another one in the file is taken within seconds"),
		hidden("token", &p.Token, "the robot token itself, where a file cannot be had").or("UPBOUND_TOKEN"),
		text("workload-token-file", "FILE", &p.WorkloadTokenFile, "token of an issuer that the organization trusts, such as a projected service account token of Kubernetes, "+
			"instead of --token-file; read again at each renewal"),
		text("name", "NAME", &p.Name, name),
	)
	return all
}

// keyFields are the settings of a party that may have a key pair: an agent.
func (p *Party) keyFields() []*Field {
	return append([]*Field{
		text("private-key-file", "FILE", &p.PrivateKeyFile, "private key in PEM of an agent that is registered with its public key, instead of --token-file; another one in the file is taken within seconds"),
		hidden("private-key", &p.PrivateKey, "the private key itself in PEM, where a file cannot be had; line breaks may be written as \\n"),
	}, p.joinFields()...)
}

func (p *Party) tail() []*Field {
	all := []*Field{
		text("metrics", "ADDR", &p.Metrics, "serve /metrics, /healthz and /readyz on this address, without authentication: prefer loopback, or a network of your own"),
		period("drain-timeout", &p.DrainTimeout, "how long streams may go on after SIGTERM"),
	}
	return append(all, p.Log.fields()...)
}

func (p *Party) complete(s *Set, env Environment) {
	if p.Name == "" {
		p.Name = ReplicaName(env)
	}
	s.oneToken(&p.TokenFile, &p.Token)
	if s.Field("private-key-file") != nil {
		s.oneSecret("private-key-file", &p.PrivateKeyFile, &p.PrivateKey)
		s.oneSecret("join-file", &p.JoinFile, &p.JoinString)
	}
	p.oneProof(s)
}

// proof is one way to prove who a party is.
type proof struct {
	setting string
	file    *string
	value   *Secret // nil: from a file only
}

// given reports whether the proof is there.
func (p proof) given() bool { return *p.file != "" || p.value != nil && *p.value != "" }

// source returns where a proof that is there came from.
func (p proof) source(s *Set) Source {
	if *p.file != "" {
		return s.Field(p.setting + "-file").origin.Source
	}
	return s.Field(p.setting).origin.Source
}

func (p proof) clear() {
	*p.file = ""
	if p.value != nil {
		*p.value = ""
	}
}

// proofs returns the ways to prove who the party is that were given.
func (p *Party) proofs() []proof {
	all := []proof{
		{"token", &p.TokenFile, &p.Token}, {"private-key", &p.PrivateKeyFile, &p.PrivateKey},
		{"workload-token", &p.WorkloadTokenFile, nil}, {"join", &p.JoinFile, &p.JoinString},
	}
	return slices.DeleteFunc(all, func(one proof) bool { return !one.given() })
}

// oneProof settles which proof counts when several are given by different means:
// the one that was given closest to the command line. Those from the same place
// contradict each other; check says so.
func (p *Party) oneProof(s *Set) {
	best := SourceDefault
	for _, one := range p.proofs() {
		best = max(best, one.source(s))
	}
	for _, one := range p.proofs() {
		if one.source(s) < best {
			one.clear()
		}
	}
}

// oneToken settles which of two tokens counts when both a file and a value are
// given.
func (s *Set) oneToken(file *string, value *Secret) { s.oneSecret("token-file", file, value) }

// oneSecret settles which counts when a secret is given by a file and by itself:
// the file, unless only the configuration file names it, over which the
// environment wins.
func (s *Set) oneSecret(fileField string, file *string, value *Secret) {
	switch {
	case *file == "" || *value == "":
	case s.Field(fileField).origin.Source >= SourceEnv:
		*value = ""
	default:
		*file = ""
	}
}

func (p *Party) check(c *checker) {
	p.Uplink.check(c)
	if c.require("organization", p.Organization) {
		c.name("organization", "organization", p.Organization)
	}
	switch proofs := p.proofs(); {
	case len(proofs) > 1:
		names := make([]string, 0, len(proofs))
		for _, one := range proofs {
			names = append(names, "--"+one.setting+"-file")
		}
		c.fail(proofs[1].setting+"-file", "give one of "+strings.Join(names, " and "), "%s", severalProofs)
	case len(proofs) == 0 && p.State == "" && p.Context == "":
		c.require("token-file", p.TokenFile)
	}
	p.checkProcess(c)
}

const severalProofs = "an agent or proxy proves in one way who it is: by a token, a key, a workload's token or a join string"

// checkProcess checks what concerns the process and no organization.
func (p *Party) checkProcess(c *checker) {
	c.name("name", "replica name", p.Name)
	if p.Metrics != "" {
		c.listenAddr("metrics", p.Metrics)
	}
	c.drain(p.DrainTimeout)
	p.Log.check(c)
}
