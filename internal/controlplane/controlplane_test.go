package controlplane_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/controlplane"
)

func TestSubject(t *testing.T) {
	for _, tt := range []struct{ account, ref, provider, want string }{
		{"my-org", "prod-1", "provider-aws", "mcp:my-org/prod-1:provider:provider-aws"},
		{"my-org", "prod1", "provider-aws-s3", "mcp:my-org/prod1:provider:provider-aws-s3"},
		{"acme", "eu/default/prod-1", "provider-aws", "mcp:acme/eu/default/prod-1:provider-aws"},
		{"acme", "prod", "family.v1", "mcp:acme/prod:provider:family.v1"},
		{"", "prod", "p", ""}, {"acme", "", "p", ""}, {"acme", "prod", "", ""},
		{"acme", "a/b", "p", ""}, {"acme", "a/b/c/d", "p", ""}, {"acme", "/g/c", "p", ""}, {"acme", "s//c", "p", ""}, {"acme", "s/g/", "p", ""},
		{"acme", "prod:provider:admin", "p", ""}, {"acme", "prod", "p:provider:q", ""}, {"acme", "prod", "p/q", ""}, {"a/b", "prod", "p", ""},
		{"acme", "prod*", "p", ""}, {"acme", "prod", "p?", ""}, {"acme", "Prod", "p", ""}, {"acme", "prod ", "p", ""}, {"acme", "-prod", "p", ""},
		{"acme", "prod.", "p", ""}, {"acme", "pröd", "p", ""}, {"acme", "prod\n", "p", ""}, {"acme", "prod", strings.Repeat("p", 254), ""},
		{"acme", "prod", strings.Repeat("p", 230), "mcp:acme/prod:provider:" + strings.Repeat("p", 230)},
		{"acme", "prod", strings.Repeat("p", 240), ""},
	} {
		r, err := controlplane.ParseRef(tt.ref)
		got := ""
		if err == nil {
			got, err = controlplane.Subject(tt.account, r, tt.provider)
		}
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q %q %q: %q, %v; want %q", tt.account, tt.ref, tt.provider, got, err, tt.want)
		}
	}
	if _, err := controlplane.Subject("acme", controlplane.Ref{Space: "s", Name: "c"}, "p"); err == nil {
		t.Error("a space without a group is a name")
	}
}

// TestSubjectsAreUnambiguous: two different sets of names never give one subject.
func TestSubjectsAreUnambiguous(t *testing.T) {
	part := rapid.StringMatching(`[a-c:/.-]{0,4}(provider)?`)
	rapid.Check(t, func(t *rapid.T) {
		draw := func() (string, controlplane.Ref, string) {
			r := controlplane.Ref{Name: part.Draw(t, "name")}
			if rapid.Bool().Draw(t, "scoped") {
				r.Space, r.Group = part.Draw(t, "space"), part.Draw(t, "group")
			}
			return part.Draw(t, "account"), r, part.Draw(t, "provider")
		}
		a1, r1, p1 := draw()
		a2, r2, p2 := draw()
		s1, err1 := controlplane.Subject(a1, r1, p1)
		s2, err2 := controlplane.Subject(a2, r2, p2)
		if err1 == nil && err2 == nil && s1 == s2 && (a1 != a2 || r1 != r2 || p1 != p2) {
			t.Fatalf("%q: both (%q, %v, %q) and (%q, %v, %q)", s1, a1, r1, p1, a2, r2, p2)
		}
	})
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, ref string
		want         bool
	}{
		{"prod-1", "prod-1", true}, {"prod-1", "prod-10", false}, {"prod-*", "prod-1", true}, {"prod-*", "prod", false}, {"prod-*", "dev-1", false},
		{"*", "anything", true}, {"*", "s/g/c", false}, {"*/*/*", "s/g/c", true}, {"*/*/*", "c", false}, {"s/g/*", "s/g/c", true}, {"s/g/*", "s/h/c", false},
		{"s/*/c", "s/g/c", true}, {"a.c", "abc", false}, {"*-1", "prod-1", true}, {"p*d-*", "prod-1", true},
	} {
		p, err := controlplane.ParsePattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		r, err := controlplane.ParseRef(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		if p.Match(r) != tt.want || p.String() != tt.pattern || controlplane.Match([]controlplane.Pattern{{}, p}, r) != tt.want {
			t.Errorf("%s matches %s: %v", p, r, !tt.want)
		}
	}
	if (controlplane.Pattern{}).Match(controlplane.Ref{Name: "x"}) || controlplane.Match(nil, controlplane.Ref{Name: "x"}) {
		t.Error("no pattern matches something")
	}
	for _, bad := range []string{"", "a/b", "**", "a**", "A", "a:b", "a/b/c/d", "/g/c", "-*", "[ab]", "a?", strings.Repeat("a", 600)} {
		if p, err := controlplane.ParsePattern(bad); err == nil {
			t.Errorf("%.40q is the pattern %s", bad, p)
		}
	}
	if _, err := controlplane.ParsePatterns(make([]string, 65)); err == nil {
		t.Error("65 patterns pass")
	}
	if all, err := controlplane.ParsePatterns([]string{"a", "b-*"}); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
}

// FuzzRef reads names and patterns from outside.
func FuzzRef(f *testing.F) {
	for _, s := range []string{"prod-1", "s/g/c", "a*/b/c", "a:b", "", "//", "a/b/c/d"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, name, pattern string) {
		r, err := controlplane.ParseRef(name)
		if err == nil {
			if r.String() != name {
				t.Fatalf("%q prints %q", name, r)
			}
			s, err := controlplane.Subject("acme", r, "p")
			if err == nil && (strings.Count(s, ":") > 3 || len(s) > controlplane.MaxSubject) {
				t.Fatalf("%q: %q", name, s)
			}
		}
		p, err2 := controlplane.ParsePattern(pattern)
		if err2 != nil {
			return
		}
		if p.String() != pattern {
			t.Fatalf("%q prints %q", pattern, p)
		}
		if err == nil && !strings.Contains(pattern, "*") && p.Match(r) != (name == pattern) {
			t.Fatalf("%q matches %q", pattern, name)
		}
	})
}
