package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someIssuers = `data: hub
oidcIssuerUrl: https://login.example.org
oidcClientId: postern
gatewayIssuers:
  - issuerUrl: https://login.example.org
    clientId: kubernetes
    usernameClaim: email
    usernamePrefix: "-"
    groupsClaim: roles
    groupsPrefix: "idp:"
    requiredClaim: ["hd=example.org"]
  - issuerUrl: https://ci.example.org
    clientId: clusters
    organization: acme
    signingAlgs: [ES256]
    caConfigmap: postern/ca
`

// loadHub loads a hub's settings from a file's text.
func loadHub(t *testing.T, file string) (Hub, error) {
	t.Helper()
	hub := DefaultHub()
	set := Bind(&hub)
	env := Environment{
		LookupEnv: func(key string) (string, bool) { return "hub.yaml", key == "POSTERN_CONFIG" },
		ReadFile:  func(string) ([]byte, error) { return []byte(file), nil },
		Hostname:  func() (string, error) { return "h", nil },
	}
	err := set.Load(env)
	return hub, err
}

func TestGatewayIssuers(t *testing.T) {
	t.Parallel()
	hub, err := loadHub(t, someIssuers)
	if err != nil {
		t.Fatal(err)
	}
	want := []Issuer{
		{DefaultOrganization, TokenRules{
			IssuerURL: "https://login.example.org", ClientID: "kubernetes", UsernameClaim: "email", UsernamePrefix: "-", GroupsClaim: "roles", GroupsPrefix: "idp:",
			RequiredClaims: []string{"hd=example.org"}, ReservedPrefixes: []string{"system:"}, Algorithms: []string{"RS256"},
		}},
		{"acme", TokenRules{
			IssuerURL: "https://ci.example.org", ClientID: "clusters", UsernameClaim: "sub", UsernamePrefix: "https://ci.example.org#",
			ReservedPrefixes: []string{"system:"}, Algorithms: []string{"ES256"}, CAConfigMap: "postern/ca",
		}},
	}
	if diff := cmp.Diff(want, hub.GatewayIssuers); diff != "" {
		t.Error(diff)
	}
	for name, one := range map[string]struct{ old, now, want string }{
		"no URL":             {"issuerUrl: https://ci.example.org", "issuerUrl:", "issuerUrl"},
		"a bad URL":          {"https://ci.example.org", "http://ci.example.org", "gatewayIssuers[1].issuerUrl"},
		"no client":          {"clientId: clusters", `clientId: ""`, "gatewayIssuers[1].clientId"},
		"a bad organization": {"organization: acme", "organization: A", "gatewayIssuers[1].organization"},
		"an email as it is":  {`usernamePrefix: "-"`, "caFile: x", "users of this issuer would have the names of those of others"},
		"groups as they are": {`groupsPrefix: "idp:"`, "caFile: x", "groups of this issuer would have the names of those of others"},
		"no claim":           {"usernameClaim: email", `usernameClaim: ""`, "username"},
		"a bad claim":        {"hd=example.org", "hd", "CLAIM=VALUE"},
		"a bad algorithm":    {"ES256", "HS256", "HS256"},
		"a bad ConfigMap":    {"postern/ca", "postern", "NAMESPACE/NAME"},
		"two CAs":            {"caConfigmap: postern/ca", "caConfigmap: postern/ca\n    caFile: x", "is set beside"},
		"of signing in":      {"clientId: kubernetes", "clientId: postern", "is the provider that people sign in with"},
		"twice":              {"https://ci.example.org\n    clientId: clusters", "https://login.example.org\n    clientId: kubernetes", "in the list already"},
		"an unknown key":     {"organization: acme", "organisation: acme", "organisation"},
	} {
		file := strings.Replace(someIssuers, one.old, one.now, 1)
		if file == someIssuers {
			t.Fatalf("%s: nothing is replaced", name)
		}
		if _, err := loadHub(t, file); err == nil || !strings.Contains(err.Error(), one.want) {
			t.Errorf("%s: %v, want %q", name, err, one.want)
		}
	}
}

func TestParseConfigMap(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][3]string{
		"postern/ca": {"postern", "ca", "ca.crt"}, "kube-system/my.ca/CA_bundle.pem": {"kube-system", "my.ca", "CA_bundle.pem"},
	} {
		if namespace, name, key, err := ParseConfigMap(text); err != nil || [3]string{namespace, name, key} != want {
			t.Errorf("%s: %s %s %s, %v", text, namespace, name, key, err)
		}
	}
	for _, text := range []string{"", "ca", "/ca", "a/", "a/b/", "a/b/c/d", "a/../b", "a/b?x", "a/b%2f", "a/ b", "a/b/.."} {
		if _, _, _, err := ParseConfigMap(text); err == nil {
			t.Errorf("%q is a ConfigMap", text)
		}
	}
}
