package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestHubKeepsItsState restarts a hub and looks that everything is still there.
func TestHubKeepsItsState(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	s.hub.Admin(t, "organization", "create", "acme")
	s.hub.Admin(t, "robot", "create", "ci", "-a", "acme")
	ca, err := os.ReadFile(s.hub.CA())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.hub.Stop(30 * time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	s.hub.Start(t)
	harness.Eventually(t, 30*time.Second, "streams open again", func() error {
		return harness.PingEcho(forwards[0], 5*time.Second)
	})
	if again, err := os.ReadFile(s.hub.CA()); err != nil || string(again) != string(ca) {
		t.Errorf("the CA changed: %v", err)
	}
	if out := s.hub.Admin(t, "robot", "list", "-a", "acme"); !strings.Contains(out, "ci") {
		t.Errorf("the robot is gone:\n%s", out)
	}
	if out := s.hub.Admin(t, "organization", "list"); !strings.Contains(out, "acme") || !strings.Contains(out, "default") {
		t.Errorf("an organization is gone:\n%s", out)
	}
	private := []string{"admin.token"}
	_ = filepath.WalkDir(s.hub.Data, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && (strings.HasSuffix(path, ".key") || slices.Contains(private, entry.Name())) {
			if info, err := entry.Info(); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, want 0600", path, info.Mode())
			}
		}
		return nil
	})
}

// TestHubRefusesToStart gives a hub what it must not touch.
func TestHubRefusesToStart(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.tex"), []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	stopped := harness.StartHub(t, programs, harness.HubSpec{})
	if err := stopped.Stop(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	corrupt := stopped.Data
	if err := os.WriteFile(filepath.Join(corrupt, "state.json"), []byte("{\"version\": 1, nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ data, listen, want string }{
		"port in use":        {filepath.Join(t.TempDir(), "hub"), hub.Addr, "in use"},
		"directory in use":   {hub.Data, harness.FreeAddr(t), hub.Data},
		"foreign directory":  {foreign, harness.FreeAddr(t), foreign},
		"corrupt directory":  {corrupt, harness.FreeAddr(t), "state.json"},
		"no such parent":     {"/proc/no/such/place", harness.FreeAddr(t), "/proc/no"},
		"address of no kind": {filepath.Join(t.TempDir(), "hub"), "nonsense", "nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t, tt.data)
			p := harness.Start(t, harness.Spec{
				Name: "second hub", Path: programs.Postern,
				Args: []string{"hub", "--data", tt.data, "--listen", tt.listen},
			})
			if err := p.Wait(20 * time.Second); err == nil || p.Running() {
				t.Fatalf("it did not refuse: %v", err)
			}
			if !strings.Contains(p.Log(), tt.want) {
				t.Errorf("the message does not name %q:\n%s", tt.want, p.Log())
			}
			if name == "directory in use" {
				return // the first hub goes on writing there
			}
			if after := snapshot(t, tt.data); name != "port in use" && after != before {
				t.Errorf("it changed the directory:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	if err := hub.Metrics.Ready(); err != nil {
		t.Errorf("the first hub after that: %v", err)
	}
}

// snapshot lists the files below a directory with their sizes and times.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var list strings.Builder
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil //nolint:nilerr // what cannot be read cannot be listed
		}
		if info, err := entry.Info(); err == nil {
			list.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return nil
	})
	return list.String()
}

// TestCredentialsAreRenewed runs with credentials of a minute, past their life:
// a stream that is open all the time does not notice.
func TestCredentialsAreRenewed(t *testing.T) {
	t.Parallel()
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{"--credential-ttl", "15s"}})
	agent := hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{echo})})
	args, forwards := forwardArgs(t, "edge", []string{echo})
	proxy := hub.StartProxy(t, harness.PartySpec{Args: args})
	conn := harness.Dial(t, forwards[0])
	message := make([]byte, 32)
	for begin := time.Now(); time.Since(begin) < 25*time.Second; time.Sleep(time.Second) { // a certificate's life has to pass
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write(message); err != nil {
			t.Fatalf("the open stream after %v: %v", time.Since(begin).Round(time.Second), err)
		}
		if n, err := conn.Read(message); n == 0 || err != nil {
			t.Fatalf("the open stream after %v: %v", time.Since(begin).Round(time.Second), err)
		}
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatalf("a new stream after %v: %v", time.Since(begin).Round(time.Second), err)
		}
	}
	checkLogs(t, hub, hub.Process, agent.Process, proxy.Process)
}
