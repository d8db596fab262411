package charts_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"postern.dev/postern/charts"
)

// update writes the tables of values anew: go test ./charts -update.
var update = flag.Bool("update", false, "write the tables of values in the charts' README.md")

// The table stands between these lines.
const (
	begin = "<!-- values: made of values.yaml by go test ./charts -update -->\n"
	end   = "<!-- end of values -->\n"
)

// TestReadme holds the table of values in each README.md to values.yaml: a value without a sentence
// that says what it does fails.
func TestReadme(t *testing.T) {
	for _, name := range charts.Names() {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(name, "values.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var doc yaml.Node
			if err := yaml.Unmarshal(text, &doc); err != nil {
				t.Fatal(err)
			}
			table := "| value | default | meaning |\n| --- | --- | --- |\n" + rows(t, "", doc.Content[0])
			file := filepath.Join(name, "README.md")
			readme, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			before, rest, ok := strings.Cut(string(readme), begin)
			_, after, ok2 := strings.Cut(rest, end)
			if !ok || !ok2 {
				t.Fatalf("%s has no place for the table: want\n%s%s", file, begin, end)
			}
			want := before + begin + table + end + after
			if *update {
				if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, string(readme)); diff != "" {
				t.Errorf("%s is not what values.yaml says; run go test ./charts -update (-want +got):\n%s", file, diff)
			}
		})
	}
}

// rows returns the rows of a mapping: one for each value, and below a key for those that have a
// comment of their own.
func rows(t *testing.T, prefix string, mapping *yaml.Node) string {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		name := prefix + key.Value
		if value.Kind == yaml.MappingNode && commented(value) {
			b.WriteString(rows(t, name+".", value))
			continue
		}
		comment := strings.Join(strings.Fields(strings.ReplaceAll("\n"+key.HeadComment, "\n#", " ")), " ")
		if comment == "" {
			t.Errorf("%s has no comment", name)
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", name, flow(t, value), strings.ReplaceAll(comment, "|", `\|`))
	}
	return b.String()
}

// commented reports whether the values of a mapping have comments of their own.
func commented(mapping *yaml.Node) bool {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].HeadComment != "" || mapping.Content[i+1].Kind == yaml.MappingNode && commented(mapping.Content[i+1]) {
			return true
		}
	}
	return false
}

// flow returns a value in one line.
func flow(t *testing.T, value *yaml.Node) string {
	t.Helper()
	if value.Kind == yaml.ScalarNode && value.Style == 0 {
		return value.Value
	}
	var v any
	if err := value.Decode(&v); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
