package policy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
)

func TestParseWhom(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"proxy:ci", "proxy:*", "proxy:a-1", "user:ann@example.org", "user:*", "group:Betrieb & Netz", "robot:ci", "robot:*",
		"workload:system:serviceaccount:a:b", "client:bob", "hub:*", "admin:*",
	} {
		if w, err := ParseWhom(s); err != nil || w.String() != s {
			t.Errorf("%q: %v, %v", s, w, err)
		}
	}
	for _, s := range []string{
		"", "ci", "proxy:", "proxy:A", "proxy:a*", "proxy:a b", "PROXY:a", "user:", "user: ann", "user:a\nb", "group:*", "agent:office", "agent:*", "x:y",
	} {
		if w, err := ParseWhom(s); err == nil {
			t.Errorf("%q reads as %v", s, w)
		}
	}
	var w struct{ To Whom }
	if err := json.Unmarshal([]byte(`{"To":"group:*"}`), &w); err == nil {
		t.Error("JSON reads what ParseWhom does not")
	}
}

func TestParseAsker(t *testing.T) {
	t.Parallel()
	a, err := ParseAsker("group:sre", "user:ann", "proxy:laptop", "group:dba")
	if err != nil || a.Proxy != "laptop" || a.Principal.String() != "user:ann" || !slices.Equal(a.Groups, []string{"sre", "dba"}) {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, texts := range [][]string{{"user:a", "user:b"}, {"proxy:a", "proxy:b"}, {"user:a", "robot:b"}, {"proxy:*"}, {"ann"}} {
		if a, err := ParseAsker(texts...); err == nil {
			t.Errorf("%v reads as %+v", texts, a)
		}
	}
}

// TestAskerIs compares Is with a plain reading of what names mean, and Names with Is.
func TestAskerIs(t *testing.T) {
	t.Parallel()
	name := rapid.SampledFrom([]string{"a", "b"})
	rapid.Check(t, func(t *rapid.T) {
		a := Asker{Groups: rapid.SliceOfN(name, 0, 2).Draw(t, "groups")}
		if rapid.Bool().Draw(t, "has proxy") {
			a.Proxy = name.Draw(t, "proxy")
		}
		if kind := rapid.SampledFrom([]identity.PrincipalKind{"", identity.KindUser, identity.KindRobot}).Draw(t, "kind"); kind != "" {
			a.Principal = identity.Principal{Kind: kind, Name: name.Draw(t, "principal")}
		}
		w := Whom{
			rapid.SampledFrom([]identity.PrincipalKind{identity.KindUser, identity.KindRobot, identity.KindGroup, identity.KindProxy}).Draw(t, "whom"),
			rapid.SampledFrom([]string{"a", "b", Everyone}).Draw(t, "name"),
		}
		said := []string{a.Principal.String(), "proxy:" + a.Proxy, "proxy:*"}
		if a.Principal.Kind != "" {
			said = append(said, string(a.Principal.Kind)+":*")
		}
		for _, g := range a.Groups {
			said = append(said, "group:"+g)
		}
		if want := slices.Contains(said, w.String()); a.Is(w) != want || slices.Contains(slices.Collect(a.Names()), w) != want {
			t.Fatalf("%+v is %s: %v, among %v; want %v", a, w, a.Is(w), slices.Collect(a.Names()), want)
		}
	})
}

// TestRuleCovers looks at targets by their name and by an address.
func TestRuleCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rule, target, addr, want string }{
		{"kubernetes", "kubernetes", "10.0.0.1:6443", "yes"},
		{"kubernetes", "tcp:kubernetes.default.svc:443", "10.0.0.1:6443", "yes"},
		{"kubernetes", "tcp:kubernetes.default.svc:80", "10.0.0.1:80", "no"},
		{"tcp:*:*", "kubernetes", "10.0.0.1:6443", "no"},
		{"tcp:*:*", "tcp:db:5432", "127.0.0.1:5432", "yes"},
		{"tcp:*:*", "tcp:169.254.169.254:80", "169.254.169.254:80", "yes"},
		{"tcp:*:1-99", "tcp:db:5432", "10.0.0.1:5432", "no"},
		{"tcp:db:5432", "tcp:db:5432", "10.0.0.1:5432", "yes"},
		{"tcp:db:5432", "tcp:10.0.0.1:5432", "10.0.0.1:5432", "no"},
		{"tcp:*.example.com:443", "tcp:a.b.example.com:443", "10.0.0.1:443", "yes"},
		{"tcp:*.example.com:443", "tcp:example.com:443", "10.0.0.1:443", "no"},
		{"tcp:10.0.0.0/8:5432", "tcp:db:5432", "10.9.9.9:5432", "address"},
		{"tcp:10.0.0.0/8:5432", "tcp:db:5432", "11.9.9.9:5432", "not the address"},
		{"tcp:10.0.0.0/8:5432", "tcp:10.1.2.3:5432", "10.1.2.3:5432", "yes"},
		{"tcp:10.0.0.0/8:5432", "tcp:11.1.2.3:5432", "11.1.2.3:5432", "no"},
	} {
		tgt, rule := target(t, c.target), rules(t, c.rule)[0]
		yes, byAddress := rule.Covers(tgt)
		got := "no"
		switch on := rule.CoversAddr(tgt, netip.MustParseAddrPort(c.addr)); {
		case yes && on:
			got = "yes"
		case byAddress && on:
			got = "address"
		case byAddress:
			got = "not the address"
		case yes || on:
			got = "by name and address differently"
		}
		if got != c.want {
			t.Errorf("%s, %s at %s: %s; want %s", c.rule, c.target, c.addr, got, c.want)
		}
	}
	var r Rule
	if err := r.UnmarshalText([]byte("tcp:x")); err == nil || !strings.Contains(err.Error(), "port") {
		t.Errorf("got %v", err)
	}
}
