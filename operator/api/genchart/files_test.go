package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGenerated holds what is generated of the definitions to what is there.
func TestGenerated(t *testing.T) {
	all, err := files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range all {
		got, err := os.ReadFile(filepath.Join("../../..", filepath.FromSlash(name)))
		if err != nil || string(got) != want {
			t.Errorf("%s is out of date, run make generate: %v", name, err)
		}
	}
	reference := all["docs/reference/resources.md"]
	for _, want := range []string{"`spec.secretRef.key` | string | required", "an empty selector would match all pods unintentionally", "`WaitingForProxy`, `Connected`, `Disconnected`"} {
		if !strings.Contains(reference, want) {
			t.Errorf("the reference lacks %q", want)
		}
	}
}
