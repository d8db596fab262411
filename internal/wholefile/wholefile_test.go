package wholefile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/wholefile"
)

// holds checks that a directory has these files, with their content.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(b)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReplaceAndCreate(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	for _, step := range []struct {
		write func(string, []byte, fs.FileMode) error
		text  string
		mode  fs.FileMode
		err   error
		want  string
	}{
		{wholefile.Create, "one", 0o600, nil, "one"},
		{wholefile.Create, "two", 0o644, fs.ErrExist, "one"},
		{wholefile.Replace, "three", 0o640, nil, "three"},
	} {
		if err := step.write(name, []byte(step.text), step.mode); !errors.Is(err, step.err) {
			t.Errorf("write %q: %v, want %v", step.text, err, step.err)
		}
		holds(t, dir, map[string]string{"a": step.want})
		if info, err := os.Stat(name); err != nil || step.err == nil && info.Mode() != step.mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, step.mode)
		}
	}
}

// TestCutOff: what was not committed is never in its place, and is tidied up.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	if err := wholefile.Replace(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	discarded, err := wholefile.New(name)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = discarded.WriteString("half")
	discarded.Discard()
	holds(t, dir, map[string]string{"a": "old"})

	cut, err := wholefile.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cut.Close() })
	if _, err := cut.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	if info, err := cut.Stat(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if !wholefile.IsLeftover(cut.Name()) || wholefile.IsLeftover(name) {
		t.Error("a leftover is not told from a file")
	}
	holds(t, dir, map[string]string{"a": "old", filepath.Base(cut.Name()): "half"})
	wholefile.Tidy(filepath.Join(dir, "nowhere"), dir)
	holds(t, dir, map[string]string{"a": "old"})
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	if err := wholefile.Replace(filepath.Join(dir, "nowhere", "a"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	place := filepath.Join(dir, "place")
	if err := os.MkdirAll(filepath.Join(place, "in it"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := wholefile.Create(place, nil, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("where a directory is: %v", err)
	}
	if err := wholefile.Replace(place, nil, 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%d files are there, %v", len(entries), err)
	}
}
