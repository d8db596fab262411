package charts_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// The lists of permissions stand between these lines.
const (
	beginRules = "<!-- permissions: made of the chart by go test ./charts -update -->\n"
	endRules   = "<!-- end of permissions -->\n"
)

// TestPermissions holds what README.md says of the operator's permissions to what the chart gives it.
// A rule without a comment that says what it is for fails.
func TestPermissions(t *testing.T) {
	f, err := os.Open("testdata/postern-operator/default.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var list strings.Builder
	for d := yaml.NewDecoder(f); ; {
		var doc yaml.Node
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		permissions(t, &list, &doc)
	}
	const file = "postern-operator/README.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), beginRules)
	_, after, ok2 := strings.Cut(rest, endRules)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the permissions: want\n%s%s", file, beginRules, endRules)
	}
	want := before + beginRules + list.String() + "\n" + endRules + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("%s is not what the chart says; run go test ./charts -update (-want +got):\n%s", file, diff)
	}
}

// permissions writes the rules of one role of the operator's own.
func permissions(t *testing.T, list *strings.Builder, doc *yaml.Node) {
	var role struct {
		Kind     string
		Metadata struct{ Name string }
		Rules    []yaml.Node
	}
	if err := doc.Decode(&role); err != nil {
		t.Fatal(err)
	}
	where := map[string]string{"ClusterRole": "In the whole cluster", "Role": "In its own namespace"}[role.Kind]
	if where == "" || !strings.HasSuffix(role.Metadata.Name, "-postern-operator") {
		return
	}
	list.WriteString("\n" + where + ":\n\n| what | verbs | for |\n| --- | --- | --- |\n")
	reason := ""
	for _, node := range role.Rules {
		var rule struct {
			APIGroups     []string `yaml:"apiGroups"`
			Resources     []string
			ResourceNames []string `yaml:"resourceNames"`
			Verbs         []string
		}
		if err := node.Decode(&rule); err != nil {
			t.Fatal(err)
		}
		if node.HeadComment != "" {
			reason = strings.ReplaceAll(strings.TrimPrefix(node.HeadComment, "# "), "\n# ", " ")
		}
		if reason == "" {
			t.Errorf("nothing says why the operator may %v %v", rule.Verbs, rule.Resources)
		}
		var what []string
		for _, r := range rule.Resources {
			for _, g := range rule.APIGroups {
				what = append(what, "`"+strings.TrimSuffix(r+"."+g, ".")+"`")
			}
		}
		name := ""
		if len(rule.ResourceNames) > 0 {
			name = ", of its own name only"
		}
		list.WriteString("| " + strings.Join(what, ", ") + name + " | " + strings.Join(rule.Verbs, ", ") + " | " + reason + " |\n")
	}
}
