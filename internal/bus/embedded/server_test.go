package embedded

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

func newKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k)
	return k
}

func newConfig(t *testing.T) (Config, []byte) {
	t.Helper()
	seeds, err := NewSeeds()
	if err != nil {
		t.Fatal(err)
	}
	return Config{Dir: filepath.Join(t.TempDir(), "bus"), EncryptionKey: newKey(), TrustDomain: "test.example", Node: "one"}, seeds
}

func start(t *testing.T, c Config, seeds []byte) *Server {
	t.Helper()
	s, err := Start(c, seeds)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openKV(t *testing.T, s *Server) *KV {
	t.Helper()
	kv, err := s.KV(t.Context(), "registry")
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestKV(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	defer s.Shutdown()
	kv, ctx := openKV(t, s), t.Context()

	if _, _, err := kv.Get(ctx, "a.x"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	if err := kv.Delete(ctx, "a.x"); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
	if _, err := kv.Update(ctx, "a.x", nil, 7); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("Update of nothing: %v", err)
	}
	if _, err := kv.Update(ctx, "a.x", nil, 0); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("Update of revision 0: %v", err)
	}
	rev, err := kv.Create(ctx, "a.x", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(ctx, "a.x", nil); !errors.Is(err, registry.ErrExists) {
		t.Errorf("Create twice: %v", err)
	}
	rev2, err := kv.Update(ctx, "a.x", []byte("two"), rev)
	if err != nil || rev2 <= rev {
		t.Errorf("Update: %d after %d, %v", rev2, rev, err)
	}
	if _, err := kv.Update(ctx, "a.x", nil, rev); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("stale Update: %v", err)
	}
	if v, r, err := kv.Get(ctx, "a.x"); err != nil || string(v) != "two" || r != rev2 {
		t.Errorf("Get: %q %d %v", v, r, err)
	}
	for _, k := range []string{"a.y.z", "ab.c", "b.c"} {
		if _, err := kv.Create(ctx, k, []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	if err := kv.Delete(ctx, "a.y.z"); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string][]string{"a.": {"a.x"}, "": {"a.x", "ab.c", "b.c"}, "a": {"a.x", "ab.c"}, "none.": nil} {
		keys, err := kv.List(ctx, prefix)
		slices.Sort(keys)
		if err != nil || !slices.Equal(keys, want) {
			t.Errorf("List(%q) = %v, %v; want %v", prefix, keys, err, want)
		}
	}
	if _, err := kv.Create(ctx, "a.y.z", []byte("again")); err != nil {
		t.Errorf("Create after Delete: %v", err)
	}
	if _, err := kv.Create(ctx, "big", make([]byte, MaxValue+1)); err == nil {
		t.Error("too large a value is taken")
	}
}

func TestRestartKeepsTheStore(t *testing.T) {
	c, seeds := newConfig(t)
	const secret = "a value that must not be readable on disk"
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, ".postern-new-1"), []byte("a first start that was cut off"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, c, seeds)
	if _, err := openKV(t, s).Create(t.Context(), "org.acme", []byte(secret)); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, plain := range []string{secret, "org.acme"} {
			if bytes.Contains(data, []byte(plain)) {
				t.Errorf("%s holds %q in clear", path, plain)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	wrong := c
	wrong.EncryptionKey = newKey()
	if _, err := Start(wrong, seeds); !errors.Is(err, ErrWrongKey) {
		t.Errorf("start with another key: %v", err)
	}
	s = start(t, c, seeds)
	defer s.Shutdown()
	if v, _, err := openKV(t, s).Get(t.Context(), "org.acme"); err != nil || string(v) != secret {
		t.Errorf("after restart: %q, %v", v, err)
	}
}

func TestStartRefuses(t *testing.T) {
	c, seeds := newConfig(t)
	short := c
	short.EncryptionKey = []byte("short")
	foreign := c
	foreign.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign.Dir, "photo.jpg"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := c
	damaged.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged.Dir, checkFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := c
	file.Dir = filepath.Join(foreign.Dir, "photo.jpg")
	for name, tc := range map[string]struct {
		c     Config
		seeds []byte
		want  string
	}{
		"short key":   {short, seeds, "at least 32"},
		"foreign":     {foreign, seeds, "not a bus's store"},
		"damaged":     {damaged, seeds, "damaged"},
		"file":        {file, seeds, "photo.jpg"},
		"bad seeds":   {c, []byte("{"), "cannot be read"},
		"new seeds":   {c, []byte(`{"version":9}`), "version 9"},
		"wrong seeds": {c, []byte(`{"version":1,"operator":"SOX"}`), "seed of the bus operator"},
		"node":        {Config{Dir: c.Dir, EncryptionKey: c.EncryptionKey, Node: "A B"}, seeds, "node"},
	} {
		_, err := Start(tc.c, tc.seeds)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want %q", name, err, tc.want)
		}
	}
	if entries, _ := os.ReadDir(foreign.Dir); len(entries) != 1 {
		t.Error("a foreign directory was touched")
	}
}

func TestAccounts(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	defer s.Shutdown()
	seed, err := NewAccountSeed()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAccountSeed()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.EnsureAccount("acme", seed); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.EnsureAccount("acme", other); err == nil {
		t.Error("an organization changed its account")
	}
	if err := s.EnsureAccount("Bad Name", other); err == nil {
		t.Error("a bad name is taken")
	}
	if err := s.EnsureAccount("b", []byte("SAX")); err == nil || strings.Contains(err.Error(), "SAX") {
		t.Errorf("bad seed: %v", err)
	}
	public, _, err := bus.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, mint := range map[string]func() (string, error){
		"no organization": func() (string, error) { return s.MintUser("none", public, identity.RoleAgent, "a", "r", time.Hour) },
		"wildcard":        func() (string, error) { return s.MintUser("acme", public, identity.RoleAgent, "*", "r", time.Hour) },
		"dots":            func() (string, error) { return s.MintUser("acme", public, identity.RoleProxy, "a.b", "r", time.Hour) },
		"replica":         func() (string, error) { return s.MintUser("acme", public, identity.RoleAgent, "a", ">", time.Hour) },
		"key":             func() (string, error) { return s.MintUser("acme", "U>", identity.RoleAgent, "a", "r", time.Hour) },
		"role":            func() (string, error) { return s.MintUser("acme", public, "boss", "a", "r", time.Hour) },
	} {
		if token, err := mint(); err == nil || token != "" {
			t.Errorf("%s: a token was minted", name)
		}
	}
	conn, err := s.Connect(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.RemoveAccount("acme"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveAccount("acme"); err != nil {
		t.Errorf("remove twice: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for conn.Connected() && ctx.Err() == nil {
		_, _ = conn.RTT(ctx) // fails as soon as the server has hung up
	}
	if conn.Connected() {
		t.Error("connection into a removed account lives on")
	}
	if _, err := s.Connect(t.Context(), "acme"); !errors.Is(err, ErrNoAccount) {
		t.Errorf("Connect after removal: %v", err)
	}
	if err := s.EnsureAccount("acme", other); err != nil {
		t.Errorf("make the account again: %v", err)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := &logger{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	l.Noticef("quiet")
	l.Tracef("quiet")
	l.Debugf("quiet")
	l.Warnf("w%d", 1)
	l.Errorf("e%d", 2)
	if l.fatalError() != nil {
		t.Error("fatal already")
	}
	l.Fatalf("f%d", 3)
	if err := l.fatalError(); err == nil || err.Error() != "f3" {
		t.Errorf("fatal error: %v", err)
	}
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "text=w1") || !strings.Contains(s, "text=e2") || !strings.Contains(s, "text=f3") {
		t.Errorf("log:\n%s", s)
	}
}
