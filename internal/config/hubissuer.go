package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// gatewayIssuersName is the name of the list of the gateway's further issuers.
const gatewayIssuersName = "gateway-issuers"

// Issuer is one entry of the list of issuers whose ID tokens are good at the gateway,
// and nowhere else, beside those of the provider that people sign in with. Its settings
// mean what those of kube-apiserver mean that are called alike.
type Issuer struct {
	Organization string // for whose clusters its tokens are good
	TokenRules
}

// TokenRules say which ID tokens of an issuer are good, and who their owners are.
type TokenRules struct {
	IssuerURL        string
	ClientID         string   // that a token has to be for
	UsernameClaim    string   // empty: email if it is verified, or else sub
	UsernamePrefix   string   // before the name; empty or "-" for none
	GroupsClaim      string   // a list of texts, or one
	GroupsPrefix     string   // before each group; empty or "-" for none
	ReservedPrefixes []string // that no name of a user or group may begin with
	RequiredClaims   []string // CLAIM=VALUE, which an ID token has to have
	Algorithms       []string // of signatures
	CAFile           string   // PEM file with the issuer's CA; empty for the system's
	CAConfigMap      string   // NAMESPACE/NAME[/KEY] of a ConfigMap with it, in the cluster that the hub runs in
}

// DefaultCAKey is the key of --oidc-ca-configmap that counts if none is named.
const DefaultCAKey = "ca.crt"

// ParseConfigMap reads NAMESPACE/NAME or NAMESPACE/NAME/KEY.
func ParseConfigMap(s string) (namespace, name, key string, err error) {
	namespace, rest, _ := strings.Cut(s, "/")
	name, key, given := strings.Cut(rest, "/")
	if !given {
		key = DefaultCAKey
	}
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
	}
	for _, one := range []string{namespace, name, key} {
		if one == "" || len(one) > 253 || one[0] == '.' || strings.ContainsFunc(one, odd) {
			return "", "", "", fmt.Errorf("%.300q is not of the form NAMESPACE/NAME or NAMESPACE/NAME/KEY", s)
		}
	}
	return namespace, name, key, nil
}

// GatewayIssuers returns the fields of an entry of the list, for the reference.
func GatewayIssuers() []*Field { return Bind(defaultIssuer()).Fields() }

func defaultIssuer() *Issuer {
	return &Issuer{
		Organization: DefaultOrganization,
		TokenRules:   TokenRules{UsernameClaim: "sub", ReservedPrefixes: []string{"system:"}, Algorithms: []string{"RS256"}},
	}
}

func gatewayIssuersField() *Field {
	e := &entries{bind: func() Settings { return defaultIssuer() }}
	return e.field(gatewayIssuersName, "further issuers whose ID tokens are good at the gateway, each for the clusters of one organization")
}

func (i *Issuer) fields() []*Field {
	return []*Field{
		text("issuer-url", "URL", &i.IssuerURL, "issuer of the tokens, exactly as it names itself; required"),
		text("client-id", "ID", &i.ClientID, "client that the tokens have to be for, their audience; required"),
		text("organization", "ORG", &i.Organization, "organization for whose clusters the tokens are good; access grants decide for which, and its users need no role"),
		text("username-claim", "CLAIM", &i.UsernameClaim, "claim that names the user"),
		text("username-prefix", "PREFIX", &i.UsernamePrefix, "put before user names; - for none. Without it the issuer's URL and #, and with the claim email it has to be given"),
		text("groups-claim", "CLAIM", &i.GroupsClaim, "claim that lists the user's groups; without it there are none"),
		text("groups-prefix", "PREFIX", &i.GroupsPrefix, "put before groups; - for none. With groupsClaim it has to be given"),
		list("reserved-name-prefixes", "PREFIX", &i.ReservedPrefixes, "beginning that no name of a user may have; groups with such names do not count"),
		list("required-claim", "CLAIM=VALUE", &i.RequiredClaims, "claim that a token has to have"),
		list("signing-algs", "ALGORITHM", &i.Algorithms, "signature algorithm that is accepted"),
		text("ca-file", "FILE", &i.CAFile, "CA certificate of the issuer; without it the system's CAs are trusted"),
		text("ca-configmap", "NAMESPACE/NAME[/KEY]", &i.CAConfigMap, "ConfigMap with the CA certificate, in the cluster that the hub runs in; without a key "+DefaultCAKey),
	}
}

func (*Issuer) fromFile() bool { return false }

func (i *Issuer) complete(*Set, Environment) {
	if i.UsernamePrefix == "" && i.UsernameClaim != "email" { // as kube-apiserver does
		i.UsernamePrefix = i.IssuerURL + "#"
	}
}

func (i *Issuer) check(c *checker) {
	if i.IssuerURL == "" {
		c.fail("issuer-url", "name the issuer of this entry", "is not set")
	} else if !isIssuer(i.IssuerURL) {
		c.fail("issuer-url", issuerMend, "%q is not the URL of an issuer", redactURL(i.IssuerURL))
	}
	if i.ClientID == "" {
		c.fail("client-id", "name the client that the tokens are made for: without it a token for anybody would do", "is not set")
	}
	c.name("organization", "organization", i.Organization)
	const mend = `write what tells them apart, or "-" if the issuer may name anybody whom access grants name`
	if i.UsernameClaim == "" {
		c.fail("username-claim", "name the claim, such as sub", "is empty")
	}
	if i.UsernameClaim == "email" && i.UsernamePrefix == "" {
		c.fail("username-prefix", mend, "is not set, so users of this issuer would have the names of those of others")
	}
	if i.GroupsClaim != "" && i.GroupsPrefix == "" {
		c.fail("groups-prefix", mend, "is not set, so groups of this issuer would have the names of those of others")
	}
	i.TokenRules.check(c, "")
}

const issuerMend = "write https://HOST[/PATH], exactly as the provider names itself"

// isIssuer reports whether s may be an issuer's URL: https, or http on loopback.
func isIssuer(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	loopback := u.Hostname() == "localhost" || err == nil && a.IsLoopback()
	return u.Scheme == "https" || u.Scheme == "http" && loopback
}

// check checks what does not depend on where the rules stand; prefix is before the
// names of their settings.
func (r *TokenRules) check(c *checker, prefix string) {
	for _, one := range r.RequiredClaims {
		if name, value, ok := strings.Cut(one, "="); !ok || name == "" || value == "" {
			c.fail(prefix+"required-claim", "write CLAIM=VALUE, for example hd=example.org", "%q is not of this form", one)
		}
	}
	known := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	for _, a := range r.Algorithms {
		if !slices.Contains(known, a) {
			c.fail(prefix+"signing-algs", "", "%q is not one of %s", a, strings.Join(known, ", "))
		}
	}
	if r.CAConfigMap == "" {
		return
	}
	if _, _, _, err := ParseConfigMap(r.CAConfigMap); err != nil {
		c.fail(prefix+"ca-configmap", "", "%v", err)
	}
	if r.CAFile != "" {
		c.fail(prefix+"ca-configmap", "give one of the two", "is set beside %s", prefix+"ca-file")
	}
}

// completeIssuers completes the entries of the list and takes them over.
func (g *Gateway) completeIssuers(s *Set, env Environment) {
	for _, set := range s.Field(gatewayIssuersName).entries.sets {
		i := set.settings.(*Issuer)
		i.complete(set, env)
		g.GatewayIssuers = append(g.GatewayIssuers, *i)
	}
}

// checkIssuers checks each entry of the list, and that no two are about the same tokens.
func (h *Hub) checkIssuers(c *checker) {
	f := c.set.Field(gatewayIssuersName)
	type tokens struct{ issuer, client string }
	seen := map[tokens]string{}
	if h.IssuerURL != "" {
		seen[tokens{h.IssuerURL, h.ClientID}] = "is the provider that people sign in with, whose tokens are good at the gateway anyway"
	}
	for n, set := range f.entries.sets {
		i := set.settings.(*Issuer)
		sub := &checker{set: set}
		i.check(sub)
		mine := tokens{i.IssuerURL, i.ClientID}
		if why, twice := seen[mine]; twice && i.IssuerURL != "" {
			sub.fail("client-id", "remove the entry, or name another client", "%s for client %s %s", i.IssuerURL, i.ClientID, why)
		}
		seen[mine] = "is in the list already"
		c.errs = append(c.errs, f.entries.named(f, n, sub.errs)...)
	}
}
