package install_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/charts"
	"postern.dev/postern/internal/install"
)

const testdata = "../../charts/testdata"

// load returns an embedded chart.
func load(t *testing.T, name string) *install.Chart {
	t.Helper()
	files, err := charts.Files(name)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := install.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	return chart
}

// goldenCases returns the files of values of all charts, by chart.
func goldenCases(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for _, name := range charts.Names() {
		cases, err := filepath.Glob(filepath.Join(testdata, name, "*.values.yaml"))
		if err != nil || len(cases) == 0 {
			t.Fatalf("chart %s has no golden files, %v", name, err)
		}
		all[name] = cases
	}
	return all
}

// TestGolden renders what helm template has rendered, byte for byte. The golden files are Helm's:
// test/kube/charts holds them to the real one.
func TestGolden(t *testing.T) {
	for name, cases := range goldenCases(t) {
		chart := load(t, name)
		for _, file := range cases {
			t.Run(name+"/"+filepath.Base(file), func(t *testing.T) {
				t.Parallel()
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				want, err := os.ReadFile(strings.TrimSuffix(file, ".values.yaml") + ".golden.yaml")
				if err != nil {
					t.Fatal(err)
				}
				var values install.Values
				if err := values.AddFile(text); err != nil {
					t.Fatal(err)
				}
				got, err := chart.Render(install.Release{Name: "demo", Namespace: "postern", Hooks: true}, values)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.Manifests); diff != "" {
					t.Errorf("not what helm template writes (-want +got):\n%s", diff)
				}
				without, err := chart.Render(install.Release{Name: "demo", Namespace: "postern"}, values)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.HasPrefix(got.Manifests, without.Manifests) || strings.Contains(without.Manifests, "helm.sh/hook:") {
					t.Error("without hooks something else than the hooks is left out, or a hook is there")
				}
				if strings.Contains(got.Notes, "<no value>") || len(got.Notes) < 100 {
					t.Errorf("the notes say %q", got.Notes)
				}
			})
		}
	}
}

// TestCommonParts holds the helpers of all charts together: they are the same file in each.
func TestCommonParts(t *testing.T) {
	var first string
	for _, name := range charts.Names() {
		text, err := os.ReadFile(filepath.Join("../../charts", name, "templates/_common.tpl"))
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(text)
		}
		if diff := cmp.Diff(first, string(text)); diff != "" {
			t.Errorf("_common.tpl of %s differs (-want +got):\n%s", name, diff)
		}
	}
}

// TestSecretsStayOut looks for a Secret in what the charts make: there is none, since whoever makes
// one has had its content in values, and Helm keeps those.
func TestSecretsStayOut(t *testing.T) {
	secret := regexp.MustCompile(`(?m)^kind: Secret$`)
	for _, cases := range goldenCases(t) {
		for _, file := range cases {
			text, err := os.ReadFile(strings.TrimSuffix(file, ".values.yaml") + ".golden.yaml")
			if err != nil {
				t.Fatal(err)
			}
			if secret.Match(text) {
				t.Errorf("%s makes a Secret", file)
			}
		}
	}
}
