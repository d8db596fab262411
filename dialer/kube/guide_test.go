package kube_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestGuideCompiles builds the program for Kubernetes in the guide to the library.
func TestGuideCompiles(t *testing.T) {
	text, err := os.ReadFile("../../docs/guide/library.md")
	if err != nil {
		t.Fatal(err)
	}
	programs := regexp.MustCompile("(?s)```go kube\n(.*?)```").FindAllSubmatch(text, -1)
	if len(programs) != 1 {
		t.Fatalf("%d programs", len(programs))
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, programs[0][1], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
