package config

import (
	"time"

	"postern.dev/postern/internal/limit"
)

// Hub is the settings of a hub: identity, registry, bus, relay and, if it has
// listeners, a proxy, in one process.
type Hub struct {
	Listeners
	SignIn
	Gateway
	Identity      IdentityIssuer
	Data          string   // directory of the hub's state, made at first start
	Listen        string   // HOST:PORT of the one port; an empty host means all addresses
	Names         []string // further names and addresses in the certificate that the hub issues to itself
	TLSCertFile   string   // PEM chain of a public CA, instead of the hub's own certificate; reloaded when it changes
	TLSKeyFile    string   // its key
	TrustDomain   string   // of SPIFFE IDs; chosen at first start if empty, and never changed after
	BusKeyFile    string   // key that encrypts the bus's state on disk; made beside it if empty
	CredentialTTL time.Duration
	Limit         []string // LEVEL.LIMIT=VALUE; see Limits
	Audit
	Metrics      string
	DrainTimeout time.Duration
	Log          Log
}

// DefaultHub returns a hub's settings before anything is configured.
func DefaultHub() Hub {
	return Hub{
		Listen:        "127.0.0.1:4222",
		Listeners:     Listeners{Suffix: DefaultSuffix},
		SignIn:        defaultSignIn(),
		Gateway:       defaultGateway(),
		Identity:      defaultIdentityIssuer(),
		CredentialTTL: time.Hour,
		Audit:         Audit{AuditMaxAge: 90 * day, AuditMaxBytes: 1 << 30, AuditOpenAfter: defaultOpenAfter},
		DrainTimeout:  defaultDrain,
		Log:           Log{Format: "auto", Level: "info"},
	}
}

func (h *Hub) fields() []*Field {
	all := []*Field{
		text("data", "DIR", &h.Data, "directory of the hub's state; made at first start"),
		text("listen", "ADDR", &h.Listen, "address of the one port"),
		list("tls-name", "NAME", &h.Names, "further host name or IP address for the hub's own certificate"),
		text("tls-cert-file", "FILE", &h.TLSCertFile, "certificate chain of a public CA to present instead of the hub's own; reloaded when it changes"),
		text("tls-key-file", "FILE", &h.TLSKeyFile, "key of --tls-cert-file"),
		text("trust-domain", "DOMAIN", &h.TrustDomain, "domain of the identities that this hub issues; chosen at first start, and fixed from then on"),
		text("bus-key-file", "FILE", &h.BusKeyFile, "key that encrypts the bus's state on disk; made at first start without it"),
		period("credential-ttl", &h.CredentialTTL, "how long the certificates of agents and proxies are valid; they renew them at two thirds of it"),
	}
	all = append(all, h.SignIn.fields()...)
	all = append(all, limitField(&h.Limit, "how much organizations, agents and proxies may use unless postern limit set says otherwise: organization.streams=20000, "+
		"proxy.bytes-per-second=100MB, agent.opens-per-second=unlimited"))
	all = append(all, h.Audit.fields()...)
	all = append(all, h.Gateway.fields()...)
	all = append(all, h.Identity.fields()...)
	all = append(all, h.Listeners.fields()...)
	all = append(all,
		text("metrics", "ADDR", &h.Metrics, "serve /metrics, /healthz and /readyz on this address, without authentication: prefer loopback, or a network of your own"),
		period("drain-timeout", &h.DrainTimeout, "how long streams may go on after SIGTERM"),
	)
	return append(all, h.Log.fields()...)
}

func (h *Hub) fromFile() bool { return true }

func (h *Hub) complete(s *Set, env Environment) { h.completeIssuers(s, env) }

// Bounds of a credential's life: shorter ones renew all the time, longer ones
// take the point out of short-lived credentials.
const (
	minCredentialTTL = 10 * time.Second
	maxCredentialTTL = 24 * time.Hour
)

func (h *Hub) check(c *checker) {
	c.require("data", h.Data)
	if c.require("listen", h.Listen) {
		c.listenAddr("listen", h.Listen)
	}
	for _, name := range h.Names {
		c.host("tls-name", name)
	}
	if (h.TLSCertFile == "") != (h.TLSKeyFile == "") {
		c.fail("tls-cert-file", "give both or neither", "a certificate and its key belong together, and one of --tls-cert-file and --tls-key-file is not set")
	}
	if h.TrustDomain != "" {
		c.host("trust-domain", h.TrustDomain)
	}
	if h.CredentialTTL < minCredentialTTL || h.CredentialTTL > maxCredentialTTL {
		c.fail("credential-ttl", "", "%v is out of bounds: want between %v and %v", h.CredentialTTL, minCredentialTTL, maxCredentialTTL)
	}
	h.SignIn.check(c)
	h.Gateway.check(c)
	h.checkIssuers(c)
	h.Identity.check(c)
	c.limits("limit", h.Limit, limit.Organization, limit.Agent, limit.Proxy)
	h.Audit.check(c)
	h.Listeners.check(c, true)
	if h.Metrics != "" {
		c.listenAddr("metrics", h.Metrics)
	}
	c.drain(h.DrainTimeout)
	h.Log.check(c)
}
