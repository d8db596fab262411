package hubtest_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/archive"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

// backup returns a backup of the hub that runs.
func (w *world) backup() []byte {
	w.t.Helper()
	var b bytes.Buffer
	if err := w.admin.Backup(w.t.Context(), &b); err != nil {
		w.t.Fatal(err)
	}
	if _, err := archive.Verify(bytes.NewReader(b.Bytes())); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

func restore(t *testing.T, dir string, b []byte, o hub.RestoreOptions) error {
	t.Helper()
	_, err := hub.Restore(t.Context(), dir, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, o)
	return err
}

// refused checks that an agent with a token is told that it was revoked.
func (w *world) refused(tokenFile string) {
	w.t.Helper()
	settings := config.DefaultAgent()
	settings.Party = w.party("thief")
	settings.TokenFile, settings.AgentID = tokenFile, "thief"
	a, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	var f *wire.Failure
	if err := a.Run(w.t.Context()); !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated || !strings.Contains(f.Error(), "revoked") {
		w.t.Errorf("a revoked token: %v", err)
	}
}

// TestBackupAndRestore backs a hub up under traffic, loses it, and restores it into
// another directory: the agents and proxies that ran come back to it by
// themselves, and what was revoked stays revoked.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0"; c.DrainTimeout = 100 * time.Millisecond })
	ca := w.keepCA()
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	gone := w.robot(config.DefaultOrganization, "former")
	if err := w.admin.DeleteRobotToken(t.Context(), config.DefaultOrganization, "former", "first"); err != nil {
		t.Fatal(err)
	}
	w.agent("a", func(c *config.Agent) { c.CAFile = ca })
	tr := w.traffic(func(c *config.Proxy) { c.CAFile = ca })
	if _, err := w.admin.RotateCA(t.Context(), api.RotateCA{}); err != nil {
		t.Fatal(err)
	}
	b := w.backup()
	for _, c := range tr.held {
		if err := ping(c); err != nil {
			t.Errorf("a stream during the backup: %v", err)
		}
	}
	if _, err := w.admin.CreateOrganization(t.Context(), "later"); err != nil {
		t.Fatal(err)
	}
	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
	old := w.config.Data
	w.config.Data = filepath.Join(t.TempDir(), "elsewhere")
	if err := restore(t, w.config.Data, b, hub.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	w.startHub()
	eventually(t, patience, func() error { return once(tr.near.forwards[0]) })
	eventually(t, patience, func() error { return onceBy(w.info.Clients[0].String(), agentID, tr.echo) })
	orgs, err := w.admin.Organizations(t.Context())
	if err != nil || len(orgs) != 2 || orgs[0].Name != "acme" {
		t.Errorf("organizations %+v, %v", orgs, err)
	}
	if now := w.phases(); now != "announced signing" {
		t.Errorf("authorities %s", now)
	}
	w.refused(gone)
	w.fresh("b", ca, "")
}

// TestBackupOfAStoppedHub takes a backup of a directory, with the bus's key kept
// elsewhere, and restores it with another key.
func TestBackupOfAStoppedHub(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	key := func(name string) string {
		file := filepath.Join(keys, name)
		if err := os.WriteFile(file, []byte(rand.Text()+rand.Text()), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	w := newWorld(t, func(c *config.Hub) { c.BusKeyFile = key("one"); c.DrainTimeout = 100 * time.Millisecond })
	save := func(keyFile string) ([]byte, error) {
		var b bytes.Buffer
		err := hub.BackupDir(t.Context(), &b, w.config.Data, keyFile, "test", w.log)
		return b.Bytes(), err
	}
	if _, err := save(w.config.BusKeyFile); !errors.Is(err, hub.ErrStateLocked) {
		t.Errorf("while the hub runs: %v", err)
	}
	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := save(""); !errors.Is(err, hub.ErrStateOptions) {
		t.Errorf("without the key: %v", err)
	}
	b, err := save(w.config.BusKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := restore(t, dir, b, hub.RestoreOptions{}); !errors.Is(err, hub.ErrStateOptions) {
		t.Errorf("restore without a key: %v", err)
	}
	w.config.Data, w.config.BusKeyFile = dir, key("two")
	if err := restore(t, dir, b, hub.RestoreOptions{BusKeyFile: w.config.BusKeyFile, Log: w.log}); err != nil {
		t.Fatal(err)
	}
	w.startHub()
	w.agent("a", nil)
	w.awaitState("a", api.StateReady, patience)
	if err := hub.BackupDir(t.Context(), io.Discard, filepath.Join(t.TempDir(), "none"), "", "test", w.log); !errors.Is(err, hub.ErrStateForeign) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestRestoreRefusals: what cannot be restored is said, and nothing is left of it.
func TestRestoreRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 100 * time.Millisecond })
	b := w.backup()
	stateless := func() []byte {
		var out bytes.Buffer
		a, err := archive.NewWriter(&out, archive.Header{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = archive.Read(bytes.NewReader(b), func(name string, content []byte) error {
			if strings.HasPrefix(name, "bus/") {
				return nil
			}
			return a.Add(name, content)
		})
		if err := errors.Join(err, a.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	climbing := func() []byte { // a good archive of a hostile state
		var out bytes.Buffer
		a, err := archive.NewWriter(&out, archive.Header{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = archive.Read(bytes.NewReader(b), func(name string, content []byte) error {
			if name == "state/state.json" {
				content = bytes.Replace(content, []byte(`"complete": true`), []byte(`"complete": true, "busDir": "../../elsewhere", "remove": ["../victim"]`), 1)
			}
			return a.Add(name, content)
		})
		if err := errors.Join(err, a.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	flipped := bytes.Clone(b)
	flipped[len(flipped)/2] ^= 1
	for name, tt := range map[string]struct {
		content []byte
		want    error
	}{
		"cut off":          {b[:len(b)/2], archive.ErrTruncated},
		"changed":          {flipped, archive.ErrCorrupt},
		"foreign":          {[]byte(strings.Repeat("x", 4096)), archive.ErrForeign},
		"without the bus":  {stateless(), archive.ErrCorrupt},
		"paths that climb": {climbing(), hub.ErrStateCorrupt},
	} {
		parent := t.TempDir()
		dir, victim := filepath.Join(parent, "hub"), filepath.Join(parent, "victim")
		if err := os.WriteFile(victim, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := restore(t, dir, tt.content, hub.RestoreOptions{Log: w.log}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v; want %v", name, err, tt.want)
		}
		if entries, err := os.ReadDir(dir); !os.IsNotExist(err) && len(entries) > 0 {
			t.Errorf("%s: it left %v, %v", name, entries, err)
		}
		if _, err := os.Stat(victim); err != nil {
			t.Errorf("%s: a file outside the directory: %v", name, err)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "letters.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := restore(t, full, b, hub.RestoreOptions{}); !errors.Is(err, hub.ErrStateTaken) || !strings.Contains(err.Error(), "letters.txt") {
		t.Errorf("a directory with files: %v", err)
	}
	if err := restore(t, w.config.Data, b, hub.RestoreOptions{}); !errors.Is(err, hub.ErrStateLocked) {
		t.Errorf("the directory of a hub that runs: %v", err)
	}
	guest := &api.Client{BaseURL: w.admin.BaseURL, HTTP: w.admin.HTTP, Token: tokenOf(t, w.token)}
	var p *api.Problem
	if err := guest.Backup(t.Context(), io.Discard); !errors.As(err, &p) || p.Status != 403 {
		t.Errorf("a robot gets a backup: %v", err)
	}
}

// TestRestoreThatWasCutOff: no hub takes a directory that is not complete, and the
// restore can be done again.
func TestRestoreThatWasCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 100 * time.Millisecond })
	b := w.backup()
	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	for name, cut := range map[string]func(dir, stage string) error{
		"while it was put together": func(_, stage string) error { return os.Remove(filepath.Join(stage, "state.json")) },
		"while it was moved": func(dir, stage string) error {
			return errors.Join(os.Rename(filepath.Join(stage, "bus"), filepath.Join(dir, "bus")), os.Rename(filepath.Join(stage, "ca.key"), filepath.Join(dir, "ca.key")))
		},
	} {
		dir := t.TempDir()
		stage := filepath.Join(dir, ".postern-restore")
		if err := restore(t, stage, b, hub.RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := cut(dir, stage); err != nil {
			t.Fatal(err)
		}
		settings := config.DefaultHub()
		settings.Data, settings.Listen = dir, "127.0.0.1:0"
		err := hub.New(settings, hub.Options{Version: "test", Health: observe.NewHealth(), Log: w.log}).Run(t.Context())
		if !errors.Is(err, hub.ErrStateForeign) {
			t.Errorf("%s: a hub on it: %v", name, err)
		}
		if err := restore(t, dir, b, hub.RestoreOptions{}); err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
		w.config.Data = dir
		w.startHub()
		if _, err := w.admin.Robots(t.Context(), config.DefaultOrganization); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.hub.stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestRotateBusKey encrypts a stopped hub's state anew, with the key kept in the
// directory and elsewhere, also when it was cut off before and after it took effect.
func TestRotateBusKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 100 * time.Millisecond })
	outside := filepath.Join(t.TempDir(), "bus.key")
	if err := os.WriteFile(outside, []byte(rand.Text()+rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hub.RotateBusKey(t.Context(), w.config.Data, hub.RotateKeyOptions{Log: w.log}); !errors.Is(err, hub.ErrStateLocked) {
		t.Errorf("while the hub runs: %v", err)
	}
	for i, step := range []struct {
		o      hub.RotateKeyOptions
		before func(dir string) error
	}{
		{hub.RotateKeyOptions{}, func(dir string) error { // what a copy leaves that was cut off
			return errors.Join(os.MkdirAll(filepath.Join(dir, "bus-0123456789abcdef", "jetstream"), 0o700),
				os.WriteFile(filepath.Join(dir, "keys", "bus-key-0123456789abcdef"), []byte("x"), 0o600))
		}},
		{hub.RotateKeyOptions{}, nil},
		{hub.RotateKeyOptions{NewBusKeyFile: outside}, nil},
		{hub.RotateKeyOptions{BusKeyFile: outside}, nil},
	} {
		if err := w.hub.stop(); err != nil {
			t.Fatal(err)
		}
		if step.before != nil {
			if err := step.before(w.config.Data); err != nil {
				t.Fatal(err)
			}
		}
		step.o.Log = w.log
		if err := hub.RotateBusKey(t.Context(), w.config.Data, step.o); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		stores, err := filepath.Glob(filepath.Join(w.config.Data, "bus*"))
		if err != nil || len(stores) != 1 {
			t.Errorf("step %d: stores %v, %v", i, stores, err)
		}
		keys, err := filepath.Glob(filepath.Join(w.config.Data, "keys", "bus-key-*"))
		if kept := step.o.NewBusKeyFile == ""; err != nil || kept != (len(keys) == 1) {
			t.Errorf("step %d: keys %v, %v", i, keys, err)
		}
		w.config.BusKeyFile = step.o.NewBusKeyFile
		w.startHub()
		robots, err := w.admin.Robots(t.Context(), config.DefaultOrganization)
		if err != nil || len(robots) != 1 {
			t.Errorf("step %d: robots %v, %v", i, robots, err)
		}
	}
	w.agent("a", nil)
	w.awaitState("a", api.StateReady, patience)
}

func tokenOf(t *testing.T, file string) string {
	t.Helper()
	secret, _, err := (&enroll.RobotToken{File: file}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return secret
}
