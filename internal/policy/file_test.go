package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = `# rules of the office
allow:
  - tcp:db.example.org:5432
  - rule: tcp:10.0.0.0/8:5000-5999
    from: [proxy:ci, "proxy:*"]
  - {rule: kubernetes}
deny:
  - "tcp:[2001:db8::/32]:*"
`

func TestParseFile(t *testing.T) {
	t.Parallel()
	list, err := ParseFile("/etc/postern/policy.yaml", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Origin+" "+e.String())
	}
	want := `policy.yaml:3 allow tcp:db.example.org:5432
policy.yaml:4 allow tcp:10.0.0.0/8:5000-5999 from proxy:ci, proxy:*
policy.yaml:6 allow kubernetes
policy.yaml:8 deny tcp:[2001:db8::/32]:*`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if list, err := ParseFile("p", []byte("allow: []\n")); err != nil || len(list) != 0 {
		t.Errorf("a policy that allows nothing: %v, %v", list, err)
	}
}

func TestParseFileErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                   "p: holds no policy",
		"# soon\n":                           "p: holds no policy",
		"---\n":                              "want the lists",
		"{}":                                 "p:1: want the lists",
		"[]":                                 "p:1: want the lists",
		"allow\n":                            "p:1: want the lists",
		"allow: [":                           "p: is not YAML",
		"allow: []\n---\nallow: []\n":        "more than one YAML document",
		"allow:\n":                           "p:1: allow: want a list",
		"allow: kubernetes\n":                "p:1: allow: want a list",
		"allow: []\nalow: []\n":              `p:2: unknown key "alow"; want allow or deny`,
		"allow: []\nallow: []\n":             "p:2: allow is given twice, first in line 1",
		"allow:\n- db:1\n":                   `p:2: rule "db:1"`,
		"allow:\n- 1\n":                      "p:2: want a rule",
		"allow:\n- [kubernetes]\n":           "p:2: want a rule",
		"allow:\n- {}\n":                     "p:2: the entry has no rule",
		"allow:\n- {from: [proxy:a]}\n":      "p:2: the entry has no rule",
		"allow: [gateway]\n":                 "p:1: rules do not allow the gateway",
		"allow:\n- rule: kubernetes\n  x: 1": `p:3: unknown key "x"; want rule or from`,
		"allow:\n- {rule: kubernetes, from: []}\n":               "p:2: from: want a list",
		"allow:\n- {rule: kubernetes, from: proxy:a}\n":          "p:2: from: want a list",
		"allow:\n- {rule: kubernetes, from: [a]}\n":              `p:2: from: "a": want KIND:NAME`,
		"allow:\n- rule: kubernetes\n  from:\n  - 1\n":           "p:4: want KIND:NAME",
		"allow:\n- rule: kubernetes\n  from:\n":                  "p:3: from: want a list",
		"allow:\n- &a kubernetes\ndeny:\n- *a\n":                 "p:2: anchors and aliases",
		"allow: &a [kubernetes]\ndeny: *a\n":                     "p:1: allow: want a list",
		"allow:\n- &a {rule: kubernetes}\n":                      "p:2: anchors and aliases",
		"allow:\n- db\n- rule: x\n- {}\n":                        "p:4: the entry has no rule",
		"allow:\n" + strings.Repeat("- kubernetes\n", 10_001):    "p:10002: more than 10000 rules",
		"allow:\n- kubernetes\n#" + strings.Repeat("x", MaxFile): "p: is longer than",
	} {
		_, err := ParseFile("p", []byte(text))
		if f, ok := errors.AsType[*FileError](err); !ok || !strings.Contains(err.Error(), want) || len(f.Problems) > maxProblems {
			t.Errorf("%.60q: %v; want %s", text, err, want)
		}
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), "cannot be read: no such file or directory") {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := ReadFile(path); err != nil || len(list) != 4 {
		t.Errorf("%v, %v", list, err)
	}
}

// FuzzParseFile: whatever stands in a file, it gives rules with a line each, or an
// error with a reason, and rules mean the same when they are written anew.
func FuzzParseFile(f *testing.F) {
	for _, s := range []string{sample, "", "allow: []", "allow: [kubernetes]\ndeny: [tcp:a:1]", "{allow: [{rule: tcp:*:*, from: [proxy:a]}]}",
		"allow: &a [*a]", "? [a]\n: b", "--- !!map\nallow: !!seq []", "allow: [!!str kubernetes]", "\xff", "allow: [{<<: {rule: kubernetes}}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseFile("p", data)
		if err != nil {
			if fe, ok := errors.AsType[*FileError](err); !ok || len(fe.Problems) == 0 || list != nil {
				t.Fatalf("%v, %v", list, err)
			}
			return
		}
		var b strings.Builder
		for _, verb := range []string{"allow", "deny"} {
			b.WriteString(verb + ":")
			some := false
			for _, e := range list {
				if e.Deny == (verb == "deny") {
					some = true
					b.WriteString("\n- rule: '" + e.Rule.String() + "'")
					for i, who := range e.From {
						if i == 0 {
							b.WriteString("\n  from:")
						}
						b.WriteString("\n  - '" + who.String() + "'")
					}
				}
			}
			if !some {
				b.WriteString(" []")
			}
			b.WriteString("\n")
		}
		again, err := ParseFile("p", []byte(b.String()))
		if err != nil || NewOf(again, nil).Version() != NewOf(list, nil).Version() {
			t.Fatalf("written anew: %v\n%s", err, b.String())
		}
	})
}
