package secretfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestExposed(t *testing.T) {
	for _, tt := range []struct {
		mode fs.FileMode
		ours bool
		want bool
	}{
		{0o600, true, false},
		{0o400, true, false},
		{0o440, true, true},
		{0o640, true, true},
		{0o604, true, true},
		{0o440, false, false}, // a Secret of Kubernetes, by fsGroup
		{0o640, false, false},
		{0o444, false, true},
		{0o644, false, true},
		{0o442, false, true},
	} {
		if got := exposed(tt.mode, tt.ours); got != tt.want {
			t.Errorf("mode %04o, ours %t: %t", tt.mode, tt.ours, got)
		}
	}
}

// TestFile looks at real files: one of our own, and what is no file.
func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]bool{0o600: false, 0o640: true, 0o444: true} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := Exposed(info); got != want {
			t.Errorf("mode %04o: %t", mode, got)
		}
	}
	info, err := os.Stat(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if Exposed(info) {
		t.Errorf("%s is exposed", os.DevNull)
	}
}
