package charts_test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/bins"
)

// update writes the golden files anew: go test ./charts -update. Read the difference before you commit it.
var update = flag.Bool("update", false, "write the golden files of the charts")

// folder is where the charts are.
const folder = "../../../charts"

// release and namespace are those of every golden file.
const (
	release   = "demo"
	namespace = "postern"
)

// helm returns a function that runs the real Helm, away from the user's own settings.
func helm(t *testing.T) func(args ...string) (stdout, stderr string, err error) {
	t.Helper()
	programs, err := bins.Ensure(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	return func(args ...string) (string, string, error) {
		var out, errs bytes.Buffer
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), programs.Path("helm"), args...)
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		return out.String(), errs.String(), err
	}
}

// charts returns the directories of all charts.
func charts(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(folder + "/*/Chart.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("there are %d charts in %s, %v", len(files), folder, err)
	}
	for i := range files {
		files[i] = filepath.Dir(files[i])
	}
	return files
}

// TestHelmTemplate holds the golden files to what Helm itself renders. A test of package install in
// the root module holds our own renderer to the same files.
func TestHelmTemplate(t *testing.T) {
	run := helm(t)
	for _, chart := range charts(t) {
		name := filepath.Base(chart)
		cases, err := filepath.Glob(filepath.Join(folder, "testdata", name, "*.values.yaml"))
		if err != nil || len(cases) == 0 {
			t.Fatalf("chart %s has no golden files, %v", name, err)
		}
		for _, values := range cases {
			t.Run(name+"/"+strings.TrimSuffix(filepath.Base(values), ".values.yaml"), func(t *testing.T) {
				t.Parallel()
				got, stderr, err := run("template", release, chart, "--namespace", namespace, "--values", values)
				if err != nil {
					t.Fatalf("helm template: %v\n%s", err, stderr)
				}
				golden := strings.TrimSuffix(values, ".values.yaml") + ".golden.yaml"
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("%s is not what helm template writes; look at: go test ./charts -update && git diff", golden)
				}
				decodeAll(t, got)
			})
		}
	}
}

// TestHelmLint lints every chart as strictly as Helm can.
func TestHelmLint(t *testing.T) {
	run := helm(t)
	for _, chart := range charts(t) {
		out, stderr, err := run("lint", "--strict", chart)
		if err != nil {
			t.Errorf("helm lint %s: %v\n%s%s", chart, err, out, stderr)
		}
	}
}
