package hub_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openState(t testing.TB, dir string, o hub.StateOptions) *hub.State {
	t.Helper()
	s, err := hub.OpenState(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// contents returns every file below dir, with its mode.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			all[path] += string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func made(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }

func TestStateSurvivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub", "hub")
	s := openState(t, dir, hub.StateOptions{})
	if !s.Fresh() {
		t.Error("a new directory is not fresh")
	}
	pin, node, key, kid := s.Authority().Pin(), s.Node(), s.BusKey(), s.Tokens().KeyID()
	if b, err := s.Secret("bus-seeds", made("seed 1")); err != nil || string(b) != "seed 1" {
		t.Errorf("secret: %q, %v", b, err)
	}
	admin, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	if tok := strings.TrimSpace(string(admin)); !s.IsAdmin(tok) || s.IsAdmin(tok+"x") || s.IsAdmin("") {
		t.Error("the administrator's token is not the one in the file")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path, c := range contents(t, dir) {
		if !strings.HasPrefix(c, "-rw-------") && !strings.HasPrefix(c, "drwx------") {
			t.Errorf("%s has mode %.10s", path, c)
		}
	}

	before := contents(t, dir)
	s = openState(t, dir, hub.StateOptions{})
	if s.Fresh() || s.Authority().Pin() != pin || s.Node() != node || !bytes.Equal(s.BusKey(), key) || s.Tokens().KeyID() != kid ||
		s.TrustDomain() != s.Authority().TrustDomain() || !s.IsAdmin(strings.TrimSpace(string(admin))) {
		t.Error("the hub is another after a restart")
	}
	if b, err := s.Secret("bus-seeds", made("seed 2")); err != nil || string(b) != "seed 1" {
		t.Errorf("secret after restart: %q, %v", b, err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("opening changed files:\n%s", diff)
	}
	if err := s.RemoveSecret("bus-seeds"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveSecret("bus-seeds"); err != nil {
		t.Error(err)
	}
	if b, err := s.Secret("bus-seeds", made("seed 2")); err != nil || string(b) != "seed 2" {
		t.Errorf("secret after removal: %q, %v", b, err)
	}
	for _, name := range []string{"", "../ca.key", "a/b", "A", strings.Repeat("a", 129)} {
		if _, err := s.Secret(name, made("x")); err == nil {
			t.Errorf("secret name %q accepted", name)
		}
	}
}

func TestStateRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, dir string) // dir holds a hub's state
		options hub.StateOptions
		want    error
		text    string
	}{
		"second hub": {
			func(t *testing.T, dir string) { openState(t, dir, hub.StateOptions{}) }, hub.StateOptions{}, hub.ErrStateLocked, "another hub",
		},
		"foreign": {
			func(t *testing.T, dir string) { empty(t, dir); write(t, dir, "notes.txt", "mine") }, hub.StateOptions{}, hub.ErrStateForeign, "notes.txt",
		},
		"foreign state.json": {
			func(t *testing.T, dir string) { empty(t, dir); write(t, dir, "state.json", `{"some":"thing"}`) }, hub.StateOptions{}, hub.ErrStateForeign, "is not a hub's",
		},
		"a file": {
			func(t *testing.T, dir string) {
				empty(t, dir)
				if err := os.Remove(dir); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Dir(dir), filepath.Base(dir), "x")
			}, hub.StateOptions{}, hub.ErrStateForeign, "no directory",
		},
		"newer": {
			func(t *testing.T, dir string) { edit(t, dir, func(m map[string]any) { m["format"] = 2 }) }, hub.StateOptions{}, hub.ErrStateVersion, "format is 2",
		},
		"broken state.json": {
			func(t *testing.T, dir string) { write(t, dir, "state.json", `{"product":`) }, hub.StateOptions{}, hub.ErrStateCorrupt, "not JSON",
		},
		"no authority key": {
			func(t *testing.T, dir string) { remove(t, dir, "ca.key") }, hub.StateOptions{}, hub.ErrStateCorrupt, "ca.key",
		},
		"truncated key": {
			func(t *testing.T, dir string) { write(t, dir, "token.key", "-----BEGIN PRIVATE KEY-----\n") }, hub.StateOptions{}, hub.ErrStateCorrupt, "changed or truncated",
		},
		"another hub's authority": {
			func(t *testing.T, dir string) {
				other := filepath.Join(t.TempDir(), "other")
				openState(t, other, hub.StateOptions{}).Close()
				for _, name := range []string{"ca.crt", "state.json"} {
					b, err := os.ReadFile(filepath.Join(other, name))
					if err != nil {
						t.Fatal(err)
					}
					write(t, dir, name, string(b))
				}
			}, hub.StateOptions{}, hub.ErrStateCorrupt, "changed",
		},
		"lost secret": {
			func(t *testing.T, dir string) { remove(t, dir, "keys/bus-seeds") }, hub.StateOptions{}, hub.ErrStateCorrupt, "bus-seeds",
		},
		"open key": {
			func(t *testing.T, dir string) {
				if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o644); err != nil {
					t.Fatal(err)
				}
			}, hub.StateOptions{}, hub.ErrStateExposed, "chmod",
		},
		"open directory": {
			func(t *testing.T, dir string) {
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
			}, hub.StateOptions{}, hub.ErrStateExposed, "0777",
		},
		"empty administrator's token": {
			func(t *testing.T, dir string) { write(t, dir, "admin.token", "\n") }, hub.StateOptions{}, hub.ErrStateCorrupt, "delete it",
		},
		"other trust domain": {
			func(*testing.T, string) {}, hub.StateOptions{TrustDomain: "other.test"}, hub.ErrStateOptions, "cannot be changed to other.test",
		},
		"bad trust domain": {
			func(*testing.T, string) {}, hub.StateOptions{TrustDomain: "Other"}, hub.ErrStateOptions, "only a-z",
		},
		"no bus key file": {
			func(*testing.T, string) {}, hub.StateOptions{BusKeyFile: "/nonexistent/bus.key"}, hub.ErrStatePermission, "no such file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "hub")
			s := openState(t, dir, hub.StateOptions{})
			if _, err := s.Secret("bus-seeds", made("seed")); err != nil {
				t.Fatal(err)
			}
			s.Close()
			tc.prepare(t, dir)
			before := contents(t, dir)
			_, err := hub.OpenState(dir, tc.options)
			var se *hub.StateError
			if !errors.Is(err, tc.want) || !errors.As(err, &se) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v, want %v with %q", err, tc.want, tc.text)
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("the refusal changed files:\n%s", diff)
			}
		})
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, dir string, f func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	f(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "state.json", string(b))
}

func TestFirstStartThatWasCutOff(t *testing.T) {
	dir := t.TempDir()
	first := openState(t, dir, hub.StateOptions{})
	pin := first.Authority().Pin()
	first.Close()
	edit(t, dir, func(m map[string]any) { m["complete"] = false })
	remove(t, dir, "token.key")
	write(t, dir, ".postern-new-123", "half")
	s := openState(t, dir, hub.StateOptions{})
	if !s.Fresh() || s.Authority().Pin() == pin {
		t.Error("the hub was not made again")
	}
	if _, err := os.Stat(filepath.Join(dir, ".postern-new-123")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a leftover remains")
	}
}

func TestDirectoriesThatCountAsEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, ".postern-new-1", "cut off before the mark was there")
	if s := openState(t, dir, hub.StateOptions{TrustDomain: "a.test"}); s.TrustDomain() != "a.test" {
		t.Errorf("trust domain %s", s.TrustDomain())
	}
}

func TestAdminTokenIsReplacedByDeletingIt(t *testing.T) {
	dir := t.TempDir()
	s := openState(t, dir, hub.StateOptions{})
	old, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	remove(t, dir, "admin.token")
	var log bytes.Buffer
	s = openState(t, dir, hub.StateOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	fresh, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	if s.IsAdmin(strings.TrimSpace(string(old))) || !s.IsAdmin(strings.TrimSpace(string(fresh))) {
		t.Error("the token was not replaced")
	}
	if !strings.Contains(log.String(), "administrator") || strings.Contains(log.String(), strings.TrimSpace(string(fresh))) {
		t.Errorf("log: %s", log.String())
	}
}

func TestBusKeyKeptElsewhere(t *testing.T) {
	keys, dir := t.TempDir(), t.TempDir()
	write(t, keys, "bus.key", strings.Repeat("k", 40)+"\n")
	write(t, keys, "short.key", "short")
	o := hub.StateOptions{BusKeyFile: filepath.Join(keys, "bus.key")}
	s := openState(t, dir, o)
	if string(s.BusKey()) != strings.Repeat("k", 40) {
		t.Errorf("key %q", s.BusKey())
	}
	if _, err := os.Stat(filepath.Join(dir, "bus.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a second key was made")
	}
	s.Close()
	if _, err := hub.OpenState(dir, hub.StateOptions{}); !errors.Is(err, hub.ErrStateOptions) || !strings.Contains(err.Error(), "kept elsewhere") {
		t.Errorf("without the key: %v", err)
	}
	if _, err := hub.OpenState(dir, hub.StateOptions{BusKeyFile: filepath.Join(keys, "short.key")}); !errors.Is(err, hub.ErrStateOptions) {
		t.Errorf("short key: %v", err)
	}
	openState(t, dir, o)
}
