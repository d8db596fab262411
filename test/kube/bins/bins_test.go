package bins

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestModuleFiles checks that each module's embedded files and its build agree on the version.
func TestModuleFiles(t *testing.T) {
	modulePaths := map[string]string{
		"kubernetes": "k8s.io/kubernetes",
		"etcd":       "go.etcd.io/etcd/server/v3",
		"helm":       "helm.sh/helm/v4",
		"coredns":    "github.com/coredns/coredns",
	}
	for _, b := range builds() {
		for _, name := range b.templates() {
			text, err := modules.ReadFile(name)
			if err != nil {
				t.Error(err)
			}
			want := modulePaths[b.module] + " " + b.version
			if !strings.HasSuffix(name, ".main") && !strings.Contains(string(text), want) {
				t.Errorf("%s does not name %s", name, want)
			}
		}
	}
}

func TestCacheKey(t *testing.T) {
	key := func(change func(*build)) string {
		t.Helper()
		list := builds()
		change(&list[1])
		key, err := cacheKey(list)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	same := key(func(*build) {})
	if key(func(*build) {}) != same {
		t.Error("the same builds have two keys")
	}
	if key(func(b *build) { b.ldflags += " -X a=b" }) == same {
		t.Error("other flags have the same key")
	}
	if key(func(b *build) { b.packages = b.packages[:0] }) == same {
		t.Error("other programs have the same key")
	}
}

// TestEnsureFindsWhatIsThere has a program in place, so that nothing is built.
func TestEnsureFindsWhatIsThere(t *testing.T) {
	base := t.TempDir()
	list := []build{{module: "coredns", version: "v0", packages: []string{"coredns"}, ldflags: "-s", own: true}}
	key, err := cacheKey(list)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(base, key, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "coredns"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	set, err := ensure(t.Context(), base, list, t.Logf)
	if err != nil || set.Dir() != bin || set.Path("coredns") != filepath.Join(bin, "coredns") {
		t.Errorf("ensure gave %v, %v", set, err)
	}
}

func TestEnsureStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := ensure(ctx, t.TempDir(), builds()[3:], t.Logf)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ensure gave %v", err)
	}
}
