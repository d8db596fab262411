package kubeconfig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/wire"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env     map[string]string
		files   []string
		current string
	}{
		"home":           {map[string]string{"HOME": "/h"}, []string{"/h/.kube/config"}, "/h/.kube/config"},
		"one":            {map[string]string{"HOME": "/h", "KUBECONFIG": "/k"}, []string{"/k"}, "/k"},
		"first existing": {map[string]string{"KUBECONFIG": "/no/k::" + there + ":/no/k"}, []string{"/no/k", there}, there},
		"none existing":  {map[string]string{"KUBECONFIG": "/no/a:/no/b"}, []string{"/no/a", "/no/b"}, "/no/a"},
		"nowhere":        {nil, nil, ""},
	} {
		getenv := func(key string) string { return tt.env[key] }
		if diff := cmp.Diff(tt.files, Files(getenv)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if got, err := Current(getenv); got != tt.current || (err == nil) != (tt.current != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestChange: modes and links stay, a new file is private, and a change that fails
// leaves nothing behind.
func TestChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kube", "config")
	set := func(text string) error {
		return Change(t.Context(), path, func([]byte) ([]byte, error) { return []byte(text), nil })
	}
	mode := func() os.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if err := set("one"); err != nil || mode() != 0o600 {
		t.Fatalf("%v, mode %o", err, mode())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := set("two"); err != nil || mode() != 0o640 {
		t.Errorf("%v, mode %o", err, mode())
	}
	real := path
	path = filepath.Join(dir, "kube", "link")
	if err := os.Symlink("config", path); err != nil {
		t.Fatal(err)
	}
	if err := set("three"); err != nil {
		t.Error(err)
	}
	if to, err := os.Readlink(path); err != nil || to != "config" {
		t.Errorf("the link is gone: %q, %v", to, err)
	}
	if b, err := os.ReadFile(real); err != nil || string(b) != "three" {
		t.Errorf("%q, %v", b, err)
	}
	err := Change(t.Context(), path, func([]byte) ([]byte, error) { return nil, badFile("so") })
	if f, ok := errors.AsType[*wire.Failure](err); !ok || !strings.HasPrefix(f.Text, path+": ") || f.Hint == "" {
		t.Errorf("%v", err)
	}
	path = filepath.Join(dir, "kube")
	if err := set("x"); err == nil {
		t.Error("a directory is no file")
	}
	left, err := filepath.Glob(filepath.Join(dir, "kube", "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestChangesExclude: changes by many at once are all there afterwards, and one that
// finds the lock of somebody who was killed says what to do.
func TestChangesExclude(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := Change(t.Context(), path, func(text []byte) ([]byte, error) {
				e := office()
				e.Name = fmt.Sprintf("postern-%d", i)
				return Merge(text, e)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	text, err := os.ReadFile(path)
	if n := strings.Count(string(text), "server: "); err != nil || n != 20 {
		t.Errorf("%d clusters, %v", n, err)
	}
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = Change(ctx, path, func(text []byte) ([]byte, error) { return text, nil })
	if f, ok := errors.AsType[*wire.Failure](err); !ok || f.Code != wire.CodeTimeout || !strings.Contains(f.Hint, path+".lock") {
		t.Errorf("locked: %v", err)
	}
}
