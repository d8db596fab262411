package config

import (
	"strings"
	"testing"
)

// FuzzFile checks that no file makes the loader panic, that what it accepts can
// be rendered and loaded again, and that it never says nothing about a key.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "zone: a\n", "allow: [kubernetes]\n", "a: &a [*a]\n", "? [x]\n: y\n", "zone: !!binary aGk=\n", "{zone: a, zone: b}",
		"--- |\n x\n", "<<: {zone: a}\n", "drainTimeout: 1h\nlogLevel: debug\n", "\xff\xfe", "requireToken: true\nhttp: ':1'\n",
		"tls-name:\n- \"\"\n", "name: 'r'\nforward:\n  - 127.0.0.1:0=a/kubernetes\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		reloads(t, file, func() *Set {
			p := DefaultProxy()
			p.ConnectURL, p.Organization, p.Name, p.HTTP = "tls://h", "o", "r", "127.0.0.1:0"
			return Bind(&p)
		})
	})
}

// FuzzOrganizations is FuzzFile for the list of organizations.
func FuzzOrganizations(f *testing.F) {
	for _, seed := range []string{
		"- {organization: o, tokenFile: t}", "- organization: o\n  tokenEnv: HOME\n  allow: [kubernetes]\n- organization: p\n  alias: q\n  privateKeyFile: k",
		"[]", "{}", "- []", "- organization: [o]", "- &a {organization: o}\n- *a", "- {organization: o, organization: p}", "- {token: x}", "-",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		reloads(t, "organizations:\n"+list, func() *Set {
			a := DefaultAgent()
			a.ConnectURL, a.AgentID, a.Name = "tls://h", "a", "r"
			return Bind(&a)
		})
	})
}

// reloads loads a file into what bind returns; what is accepted must be the same after
// it was rendered and loaded again.
func reloads(t *testing.T, file string, bind func() *Set) {
	t.Helper()
	load := func(text string) (*Set, error) {
		set := bind()
		return set, set.reload(text)
	}
	set, err := load(file)
	if err != nil {
		if len(List(err)) == 0 {
			t.Fatalf("error is no SettingError: %v", err)
		}
		return
	}
	var first, second strings.Builder
	if err := set.Render(&first, true); err != nil {
		t.Fatal(err)
	}
	again, err := load(first.String())
	if err != nil {
		if strings.Contains(first.String(), "@") {
			return // a masked password may not be a URL any more
		}
		t.Fatalf("what was rendered cannot be loaded: %v\n%s", err, first.String())
	}
	if err := again.Render(&second, true); err != nil {
		t.Fatal(err)
	}
	strip := func(s string) string { // comments tell origins, which differ
		var lines []string
		for line := range strings.Lines(s) {
			line, _, _ = strings.Cut(line, " #")
			lines = append(lines, strings.TrimSpace(line))
		}
		return strings.Join(lines, "\n")
	}
	if strip(first.String()) != strip(second.String()) {
		t.Fatalf("settings changed:\n%s\n%s", first.String(), second.String())
	}
}

// FuzzForward checks that a forward that is read prints as a text that is read the same.
func FuzzForward(f *testing.F) {
	f.Add("127.0.0.1:5432=office/tcp:db.example.org:5432")
	f.Add("[::1]:0=acme/office/tcp:[2001:db8::1]:1")
	f.Add(":1=a/kubernetes")
	f.Fuzz(func(t *testing.T, text string) {
		one, err := ParseForward(text)
		if err != nil {
			return
		}
		two, err := ParseForward(one.String())
		if err != nil || one != two {
			t.Fatalf("%q: %v, then %v (%v)", text, one, two, err)
		}
	})
}
