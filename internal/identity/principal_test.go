package identity_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
)

func TestParsePrincipal(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"user:ann@example.org", "user:https://issuer.example/|x:y", "group:Site Reliability", "robot:ci-1", "agent:office", "proxy:edge",
		"admin:break-glass", "workload:system:serviceaccount:postern:agent", "hub:n1",
	} {
		p, err := identity.ParsePrincipal(good)
		if err != nil || p.String() != good {
			t.Errorf("%s: %v, %v", good, p, err)
		}
	}
	for _, bad := range []string{
		"", "user", "user:", ":x", "robot:A", "robot:a b", "user: x", "user:x ", "user:a\nb", "user:\x00", "group:\xff", "king:x",
		"user:" + strings.Repeat("x", identity.MaxPrincipalName+1), "user:\u202etxt",
	} {
		if p, err := identity.ParsePrincipal(bad); err == nil {
			t.Errorf("%q was read as %v", bad, p)
		}
	}
}

// TestHolder: who enrolled a party can be read from its certificate, and forged in
// none.
func TestHolder(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a, err := identity.NewAuthority("a.test", now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Holder{
		Principal: identity.Principal{Kind: identity.KindUser, Name: "ann@example.org"},
		Groups:    []string{"sre", "Ops, all + \"friends\"", "größe", strings.Repeat("g", 200)},
	}
	chain, err := a.IssueParty(agentID("a.test", "acme", "edge"), key.Public(), want, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.CertificateHolder(certs[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	for name, bad := range map[string]identity.Holder{
		"group":     {Principal: want.Principal, Groups: []string{"a\nb"}},
		"principal": {Principal: identity.Principal{Kind: identity.KindRobot, Name: "../x"}},
		"too many":  {Principal: want.Principal, Groups: make([]string, identity.MaxGroups+1)},
	} {
		if _, err := a.IssueParty(agentID("a.test", "acme", "edge"), key.Public(), bad, time.Hour, now); err == nil {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
}

func FuzzParsePrincipal(f *testing.F) {
	f.Add("user:ann@example.org")
	f.Add("robot:ci")
	f.Add("user:\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := identity.ParsePrincipal(s)
		if err != nil {
			return
		}
		if p.String() != s {
			t.Fatalf("%q became %q", s, p.String())
		}
		if strings.ContainsAny(s, "\n\r\x00") {
			t.Fatalf("%q can forge a line", s)
		}
	})
}
