package config

import (
	"slices"
	"time"
)

// SignIn is how people sign in at a hub: the identity provider, and what of its
// ID tokens counts. Without an issuer nobody signs in.
type SignIn struct {
	TokenRules
	Scopes      []string // that the command line asks for
	AdminGroups []string // whose users administer the hub itself
	AdminUsers  []string // who do
	SessionTTL  time.Duration
}

// defaultSignIn returns the settings of signing in before anything is configured.
func defaultSignIn() SignIn {
	return SignIn{
		TokenRules: TokenRules{GroupsClaim: "groups", ReservedPrefixes: []string{"system:"}, Algorithms: []string{"RS256"}},
		Scopes:     []string{"openid", "email", "profile", "groups", "offline_access"}, SessionTTL: time.Hour,
	}
}

func (s *SignIn) fields() []*Field {
	return []*Field{
		text("oidc-issuer-url", "URL", &s.IssuerURL, "identity provider that people sign in with; without it nobody does"),
		text("oidc-client-id", "ID", &s.ClientID, "client that postern is at the provider: a public one, with http://127.0.0.1/callback as redirect URI on any port"),
		text("oidc-username-claim", "CLAIM", &s.UsernameClaim, "claim of the ID token that names the user; without it email if the provider has verified it, or else sub"),
		text("oidc-username-prefix", "PREFIX", &s.UsernamePrefix, "put before user names; - for none"),
		text("oidc-groups-claim", "CLAIM", &s.GroupsClaim, "claim that lists the user's groups"),
		text("oidc-groups-prefix", "PREFIX", &s.GroupsPrefix, "put before groups; - for none"),
		list("oidc-reserved-name-prefixes", "PREFIX", &s.ReservedPrefixes, "beginning that no name of a user or group may have"),
		list("oidc-required-claim", "CLAIM=VALUE", &s.RequiredClaims, "claim that an ID token has to have"),
		list("oidc-signing-algs", "ALGORITHM", &s.Algorithms, "signature algorithm of ID tokens that is accepted"),
		text("oidc-ca-file", "FILE", &s.CAFile, "CA certificate of the provider; without it the system's CAs are trusted"),
		text("oidc-ca-configmap", "NAMESPACE/NAME[/KEY]", &s.CAConfigMap, "ConfigMap with that CA certificate, in the cluster that the hub runs in; without a key "+DefaultCAKey),
		list("oidc-scope", "SCOPE", &s.Scopes, "scope that the program asks for; those of the default that the provider does not name are left out"),
		list("oidc-admin-group", "GROUP", &s.AdminGroups, "group whose users administer the hub itself and all organizations"),
		list("oidc-admin-user", "USER", &s.AdminUsers, "user who does"),
		period("session-ttl", &s.SessionTTL, "how long a session lasts unless it is renewed; the program renews it when the provider lets it"),
	}
}

// Bounds of a session's life.
const (
	minSessionTTL = time.Minute
	maxSessionTTL = 24 * time.Hour
)

func (s *SignIn) check(c *checker) {
	if s.SessionTTL < minSessionTTL || s.SessionTTL > maxSessionTTL {
		c.fail("session-ttl", "", "%v is out of bounds: want between %v and %v", s.SessionTTL, minSessionTTL, maxSessionTTL)
	}
	s.TokenRules.check(c, "oidc-")
	if s.IssuerURL == "" {
		if s.ClientID != "" || len(s.AdminGroups) > 0 || len(s.AdminUsers) > 0 {
			c.fail("oidc-issuer-url", "give the identity provider's URL too", "is not set, and other settings of signing in are")
		}
		return
	}
	if !isIssuer(s.IssuerURL) {
		c.fail("oidc-issuer-url", issuerMend, "%q is not the URL of an issuer", redactURL(s.IssuerURL))
	}
	c.require("oidc-client-id", s.ClientID)
	if !slices.Contains(s.Scopes, "openid") {
		c.fail("oidc-scope", "add openid", "without the scope openid there is no ID token")
	}
}
