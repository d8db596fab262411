package identity_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"testing"

	"postern.dev/postern/internal/identity"
)

// edKey reads a PKCS #8 key.
func edKey(t *testing.T, keyPEM []byte) crypto.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(keyPEM)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestParseID(t *testing.T) {
	for in, want := range map[string]identity.ID{
		"spiffe://a.test/org/acme/agent/edge/r1":  agentID("a.test", "acme", "edge"),
		"spiffe://a.test/hub/hub-1":               {TrustDomain: "a.test", Role: identity.RoleHub, Name: "hub-1"},
		"spiffe://a.test/org/acme/proxy/p/r-2":    {TrustDomain: "a.test", Organization: "acme", Role: identity.RoleProxy, Name: "p", Replica: "r-2"},
		"spiffe://a.test":                         {},
		"spiffe://a.test/":                        {},
		"spiffe:///org/acme/agent/edge/r1":        {},
		"https://a.test/org/acme/agent/edge/r1":   {},
		"spiffe://a.test/org/acme/admin/edge/r1":  {},
		"spiffe://a.test/org/acme/agent/edge":     {},
		"spiffe://a.test/org//agent/edge/r1":      {},
		"spiffe://a.test/org/acme/agent/edge/r1/": {},
		"spiffe://a.test//org/acme/agent/edge/r1": {},
		"spiffe://a.test/org/ACME/agent/edge/r1":  {},
		"spiffe://a.test/org/a%2Fb/agent/edge/r1": {},
		"spiffe://a.test:1/hub/hub-1":             {},
		"spiffe://A.test/hub/hub-1":               {},
		"spiffe://u@a.test/hub/hub-1":             {},
		"spiffe://a.test/hub/hub-1?q":             {},
		"spiffe://a.test/hub/hub-1#f":             {},
		"spiffe:a.test/hub/hub-1":                 {},
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := identity.ParseID(u)
		switch {
		case want == identity.ID{}:
			if err == nil {
				t.Errorf("%s: accepted as %v", in, got)
			}
		case err != nil || got != want:
			t.Errorf("%s: %v, %v", in, got, err)
		case got.String() != in:
			t.Errorf("%s: printed as %s", in, got)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://a.test/org/acme/agent/edge/r1")
	f.Add("spiffe://a.test/hub/hub-1")
	f.Add("spiffe://a.test/org/a%2Fb/agent/edge/r1")
	f.Fuzz(func(t *testing.T, in string) {
		u, err := url.Parse(in)
		if err != nil {
			return
		}
		id, err := identity.ParseID(u)
		if err != nil {
			return
		}
		again, err := identity.ParseID(id.URI())
		if err != nil || again != id {
			t.Fatalf("%q: %v became %v, %v", in, id, again, err)
		}
		if parsed, err := url.Parse(id.String()); err != nil || parsed.String() != id.String() {
			t.Fatalf("%q: text %q does not survive", in, id)
		}
	})
}
