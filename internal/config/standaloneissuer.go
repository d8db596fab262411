package config

import (
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/workload"
)

// callersName is the name of the list of who may have tokens of an issuer.
const callersName = "callers"

// StandaloneIssuer is the settings of an issuer of identity tokens as a process of its own.
type StandaloneIssuer struct {
	IdentityIssuer
	Listen      string // HOST:PORT of its HTTPS
	TLSCertFile string // PEM chain that it presents; reloaded when it changes. Empty: plain HTTP, on loopback only
	TLSKeyFile  string // its key
	Data        string // directory of its own keys, made at first start; not with KeysDir or KeysSecret
	Callers     []IdentityCaller
	Metrics     string
	Log         Log
}

// IdentityCaller is one entry of the list of who may have tokens of an issuer that runs
// alone: workloads whose platform gives them tokens, such as service accounts of a
// cluster, and the control planes that they may speak for.
type IdentityCaller struct {
	Name          string
	Issuer        string   // of the workloads' tokens, as in "iss"
	Audiences     []string // of which a token has to be for one
	Claims        []string // CLAIM=VALUE, which a token has to have; one is for sub
	CAFile        string   // PEM with the CA of that issuer
	JWKSFile      string   // its keys, for one that cannot be asked
	Account       string   // the organization in subjects
	ControlPlanes []string // patterns of those that they may speak for
}

// IdentityCallers returns the fields of an entry of the list, for the reference.
func IdentityCallers() []*Field { return Bind(new(IdentityCaller)).Fields() }

// DefaultStandaloneIssuer returns an issuer's settings before anything is configured.
func DefaultStandaloneIssuer() StandaloneIssuer {
	return StandaloneIssuer{IdentityIssuer: defaultIdentityIssuer(), Listen: "127.0.0.1:8443", Log: Log{Format: "auto", Level: "info"}}
}

func (i *StandaloneIssuer) fields() []*Field {
	callers := &entries{bind: func() Settings { return new(IdentityCaller) }}
	all := []*Field{
		text("listen", "ADDR", &i.Listen, "address to serve on"),
		text("tls-cert-file", "FILE", &i.TLSCertFile, "certificate chain to present; reloaded when it changes. Without it plain HTTP is served, on loopback only"),
		text("tls-key-file", "FILE", &i.TLSKeyFile, "key of --tls-cert-file"),
		text("data", "DIR", &i.Data, "directory of the issuer's keys; made at first start"),
		callers.field(callersName, "who may have tokens, and for which control planes"),
	}
	all = append(all, i.IdentityIssuer.fields()...)
	all = append(all, text("metrics", "ADDR", &i.Metrics, "serve /metrics, /healthz and /readyz on this address, without authentication: prefer loopback, or a network of your own"))
	return append(all, i.Log.fields()...)
}

func (i *StandaloneIssuer) fromFile() bool { return true }

func (i *StandaloneIssuer) complete(s *Set, _ Environment) {
	for _, set := range s.Field(callersName).entries.sets {
		i.Callers = append(i.Callers, *set.settings.(*IdentityCaller))
	}
}

func (i *StandaloneIssuer) check(c *checker) {
	c.require("issuer-url", i.IssuerURL)
	i.IdentityIssuer.check(c)
	switch {
	case i.Data == "" && i.KeysDir == "" && i.KeysSecret == "":
		c.fail("data", "give --data DIR, in a pod --issuer-keys-secret NAME, or --issuer-keys-dir DIR for keys that somebody else keeps", "is not set")
	case i.Data != "" && i.KeysDir+i.KeysSecret != "":
		c.fail("data", "leave one of them out", "keys are in one place, and --issuer-keys-dir or --issuer-keys-secret names another")
	}
	if (i.TLSCertFile == "") != (i.TLSKeyFile == "") {
		c.fail("tls-cert-file", "give both or neither", "a certificate and its key belong together, and one of --tls-cert-file and --tls-key-file is not set")
	}
	if c.require("listen", i.Listen) && c.listenAddr("listen", i.Listen) && i.TLSCertFile == "" && !Loopback(i.Listen) {
		c.fail("listen", "give --tls-cert-file and --tls-key-file, or listen on 127.0.0.1", "%q can be reached from other machines, and tokens would travel in the clear", i.Listen)
	}
	f := c.set.Field(callersName)
	names := make(map[string]bool)
	for n, set := range f.entries.sets {
		sub := &checker{set: set}
		one := &i.Callers[n]
		one.check(sub)
		if names[one.Name] {
			sub.fail("name", "give each entry a name of its own", "there are two entries %s", one.Name)
		}
		names[one.Name] = true
		c.errs = append(c.errs, f.entries.named(f, n, sub.errs)...)
	}
	if i.Metrics != "" {
		c.listenAddr("metrics", i.Metrics)
	}
	i.Log.check(c)
}

func (i *IdentityCaller) fields() []*Field {
	return []*Field{
		text("name", "NAME", &i.Name, "what logs call them; required"),
		text("issuer", "URL", &i.Issuer, "issuer of their tokens, as in iss; required"),
		list("audience", "AUDIENCE", &i.Audiences, "audience that a token has to be for; one of several; required"),
		list("claim", "CLAIM=VALUE", &i.Claims, "what a token has to claim, all of them; one is for sub, such as sub=system:serviceaccount:postern-system:postern-operator; required"),
		text("issuer-ca-file", "FILE", &i.CAFile, "CA certificate of that issuer, where it is not a public one"),
		text("jwks-file", "FILE", &i.JWKSFile, "that issuer's keys as a JWK set; it is then not asked"),
		text("account", "ORG", &i.Account, "organization that stands in subjects; required"),
		list("control-planes", "PATTERN", &i.ControlPlanes, "control planes that they may speak for: NAME or SPACE/GROUP/NAME, with * as wildcard; required"),
	}
}

func (i *IdentityCaller) fromFile() bool { return false }

func (i *IdentityCaller) complete(*Set, Environment) {}

func (i *IdentityCaller) check(c *checker) {
	if c.require("name", i.Name) {
		c.name("name", "name", i.Name)
	}
	c.require("issuer", i.Issuer)
	if len(i.Audiences) == 0 {
		c.fail("audience", "give the audience that these workloads' tokens are made for", "is not set: a token for anybody would be good")
	}
	if _, err := workload.ParseRules(i.Claims); err != nil {
		c.fail("claim", "", "%v", err)
	}
	if c.require("account", i.Account) {
		c.name("account", "organization", i.Account)
	}
	if len(i.ControlPlanes) == 0 {
		c.fail("control-planes", "name the control planes that they may speak for", "is not set")
	}
	if _, err := controlplane.ParsePatterns(i.ControlPlanes); err != nil {
		c.fail("control-planes", "", "%v", err)
	}
}
