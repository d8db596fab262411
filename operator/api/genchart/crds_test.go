package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"postern.dev/postern/operator/api/crds"
)

// TestDefinitionsAreGenerated holds definitions, role and copies to the types and markers that they
// are made of: a field that is changed without `make generate` fails here.
func TestDefinitionsAreGenerated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"object", "output:object:dir=" + filepath.Join(dir, "own"), "paths=../v1alpha1"},
		{"object", "output:object:dir=" + filepath.Join(dir, "upbound"), "paths=../upbound/v1alpha1"},
		{"crd:maxDescLen=400", "paths=../v1alpha1", "paths=../upbound/v1alpha1", "output:crd:dir=" + dir},
		{"rbac:roleName=postern-operator,fileName=role.yaml", "paths=../../controller", "output:rbac:dir=" + dir},
	} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "controller-gen"}, args...)...)
		cmd.Dir = "../crds"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	same := func(made, there string) {
		t.Helper()
		a, err := os.ReadFile(filepath.Join(dir, made))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(there)
		if err != nil || string(a) != string(b) {
			t.Errorf("%s is out of date, run make generate: %v", there, err)
		}
	}
	same("own/zz_generated.deepcopy.go", "../v1alpha1/zz_generated.deepcopy.go")
	same("upbound/zz_generated.deepcopy.go", "../upbound/v1alpha1/zz_generated.deepcopy.go")
	all, err := crds.Files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		same(f.Name(), "../crds/"+f.Name())
	}
}
