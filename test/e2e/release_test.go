package e2e_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReleaseIsReproducible builds a release of the small program in two directories
// and two environments. Both give the same bytes, images and packages too, and the bill of materials
// lists what the program is made of. The build cache is shared: to fill another takes minutes.
func TestReleaseIsReproducible(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	build := func(dir string, env ...string) string {
		t.Helper()
		copySources(t, root, dir)
		cmd := exec.CommandContext(t.Context(), "tools/release.sh", "v0.0.0-test", "out", "linux/amd64")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), append(env, "RELEASE_COMMANDS=postern-agent", "SOURCE_DATE_EPOCH=1700000000")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return filepath.Join(dir, "out")
	}
	one := build(filepath.Join(t.TempDir(), "a"))
	two := build(filepath.Join(t.TempDir(), "somewhere/else"), "TZ=Asia/Tokyo", "LANG=C", "GOAMD64=v3", "GOFLAGS=-tags=other", "USER=other")
	entries, err := os.ReadDir(one)
	if err != nil || len(entries) != 5 {
		t.Fatalf("the release is %v, %v", entries, err)
	}
	files := filesBelow(t, one)
	if other := filesBelow(t, two); !slices.Equal(files, other) {
		t.Errorf("the files are %v and %v", files, other)
	}
	for _, name := range files {
		a, errA := os.ReadFile(filepath.Join(one, name))
		b, errB := os.ReadFile(filepath.Join(two, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %d and %d bytes, %v, %v", name, len(a), len(b), errA, errB)
		}
	}
	for _, want := range []string{"images/DIGESTS", "images/postern-agent/index.json", "images/postern-agent_v0.0.0-test_linux_amd64.tar"} {
		if !slices.Contains(files, want) {
			t.Errorf("the release lacks %s", want)
		}
	}

	unpacked := t.TempDir()
	archive := filepath.Join(one, "postern_v0.0.0-test_linux_amd64.tar.gz")
	if out, err := exec.CommandContext(t.Context(), "tar", "-xzf", archive, "-C", unpacked, "--strip-components=1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program := filepath.Join(unpacked, "postern-agent")
	if out, err := exec.CommandContext(t.Context(), program, "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "v0.0.0-test") {
		t.Errorf("it says %q, %v", out, err)
	}
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = one
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("the sums: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(unpacked, "postern-agent.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, c := range bill.Components {
		listed[c.Name+" "+c.Version] = true
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			if modules++; !listed[f[1]+" "+f[2]] {
				t.Errorf("the bill lacks %s %s", f[1], f[2])
			}
		}
		if strings.Contains(line, root) || strings.Contains(line, one) {
			t.Errorf("the program tells where it was built: %s", line)
		}
	}
	if modules == 0 {
		t.Errorf("the program has no modules:\n%s", out)
	}
}

// filesBelow lists the files in a folder and all below it.
func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, err = filepath.Rel(dir, name)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// copySources copies what a build needs.
func copySources(t *testing.T, root, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"go.mod", "go.sum", "LICENSE", "README.md", "cmd", "docs", "internal", "packaging", "tools"} {
		if out, err := exec.CommandContext(t.Context(), "cp", "-r", filepath.Join(root, name), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}
