package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// steady is a stream over which lines go to an echo and back until it is stopped.
type steady struct {
	conn net.Conn
	stop chan struct{}
	done chan error
}

func startSteady(t *testing.T, addr string) *steady {
	t.Helper()
	s := &steady{conn: harness.Dial(t, addr), stop: make(chan struct{}), done: make(chan error, 1)}
	if err := s.line(); err != nil { // a forward accepts before there is a stream
		t.Fatal(err)
	}
	go func() {
		for {
			if err := s.line(); err != nil {
				s.done <- err
				return
			}
			select {
			case <-s.stop:
				s.done <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return s
}

// line sends a line and waits for it to come back.
func (s *steady) line() error {
	line := []byte("still here\n")
	if _, err := s.conn.Write(line); err != nil {
		return err
	}
	_, err := io.ReadFull(s.conn, line)
	return err
}

// end stops the stream and returns why it broke, if it did.
func (s *steady) end() error {
	close(s.stop)
	err := <-s.done
	_ = s.conn.Close()
	return err
}

// readiness asks an agent of several organizations.
func readiness(t *testing.T, m harness.Metrics, query string) int {
	t.Helper()
	res, err := http.Get("http://" + string(m) + "/readyz" + query)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// TestSeveralOrganizations runs one agent for two organizations of a hub, one with a key
// and one with a token, and one of another hub with the same name. The key of the first is
// taken away and replaced, and the token of the second renewed, while the streams of the
// others go on. In the end all are revoked, and the agent ends and says why.
func TestSeveralOrganizations(t *testing.T) {
	t.Parallel()
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	one, two := harness.StartHub(t, programs, harness.HubSpec{}), harness.StartHub(t, programs, harness.HubSpec{})
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	keygen := func(name string) {
		t.Helper()
		harness.Output(t, 20*time.Second, programs.Agent, "keygen", "-f", path(name))
	}
	one.Token(t, "acme")
	one.Token(t, "globex")
	keygen("acme.key")
	one.Admin(t, "agent", "register", "edge", "-a", "acme", "--public-key", path("acme.key.pub"))
	metrics := harness.Metrics(harness.FreeAddr(t))
	config := fmt.Sprintf(`
connectUrl: %s
caFile: %s
agentId: edge
metrics: %s
drainTimeout: 1s
organizations:
  - organization: acme
    privateKeyFile: %s
    allow: ["tcp:%[5]s"]
  - organization: globex
    tokenFile: %[6]s
    allow: ["tcp:%[5]s"]
  - organization: default
    alias: elsewhere
    connectUrl: %[7]s
    caFile: %[8]s
    tokenEnv: ELSEWHERE_TOKEN
    allow: ["tcp:%[5]s"]
`, one.URL(), one.CA(), metrics, path("acme.key"), echo, one.Token(t, "globex"), two.URL(), two.CA())
	if err := os.WriteFile(path("agent.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := harness.Start(t, harness.Spec{
		Name: "agent", Path: programs.Agent, Args: []string{"--config", path("agent.yaml")},
		Env: []string{"ELSEWHERE_TOKEN=" + harness.ReadToken(t, two.Token(t, "default")).Token},
	})
	t.Cleanup(func() { checkLogs(t, one, agent); checkLogs(t, two, agent) })

	forward := func(hub *harness.Hub, organization string) string {
		t.Helper()
		token := filepath.Join(dir, organization+"-proxy.json")
		if organization != "default" {
			hub.Admin(t, "robot", "create", "near", "-a", organization)
			hub.Admin(t, "robot", "token", "create", "near", "test", "-f", token, "-a", organization)
		} else {
			token = ""
		}
		args, forwards := forwardArgs(t, "edge", []string{echo})
		hub.StartProxy(t, harness.PartySpec{Organization: organization, Token: token, Args: args})
		return forwards[0]
	}
	ping := func(addr, what string) time.Duration {
		t.Helper()
		return harness.Eventually(t, 30*time.Second, what, func() error { return harness.PingEcho(addr, 10*time.Second) })
	}
	acme, globex, elsewhere := forward(one, "acme"), forward(one, "globex"), forward(two, "default")
	ping(acme, "acme is served")
	ping(globex, "globex is served")
	ping(elsewhere, "the other hub is served")
	if status := readiness(t, metrics, "?all"); status != http.StatusOK {
		t.Errorf("/readyz?all: %d", status)
	}

	// The key of one organization goes and comes back; the others do not notice.
	streams := map[string]*steady{"globex": startSteady(t, globex), "the other hub": startSteady(t, elsewhere)}
	theirs := startSteady(t, acme)
	one.Admin(t, "agent", "unregister", "edge", "-a", "acme")
	select {
	case err := <-theirs.done:
		if err == nil {
			t.Error("the stream of the organization whose key was removed has ended in order")
		}
	case <-time.After(7 * time.Second):
		t.Error("the stream of the organization whose key was removed goes on")
	}
	agent.WaitLog(t, "cannot be served until somebody mends this.*acme", 20*time.Second)
	harness.Eventually(t, 10*time.Second, "the health tells of it", func() error {
		plain, own, all := readiness(t, metrics, ""), readiness(t, metrics, "?organization=acme"), readiness(t, metrics, "?all")
		if plain != 200 || own != 503 || all != 503 {
			return fmt.Errorf("/readyz: %d, of acme: %d, of all: %d", plain, own, all)
		}
		return nil
	})
	keygen("new.key")
	if err := os.Rename(path("new.key"), path("acme.key")); err != nil {
		t.Fatal(err)
	}
	one.Admin(t, "agent", "register", "edge", "-a", "acme", "--public-key", path("new.key.pub"))
	t.Logf("served again %s after it was registered with a new key", ping(acme, "acme is served again").Round(time.Millisecond))

	// The token of another one is replaced, and the old one deleted.
	if err := streams["globex"].end(); err != nil {
		t.Errorf("a stream of globex: %v", err)
	}
	delete(streams, "globex")
	streams["acme"] = startSteady(t, acme)
	one.Admin(t, "robot", "token", "create", "e2e", "second", "-f", path("second.json"), "-a", "globex")
	if err := os.Rename(path("second.json"), one.Token(t, "globex")); err != nil {
		t.Fatal(err)
	}
	one.Admin(t, "robot", "token", "delete", "e2e", "test", "-a", "globex")
	ping(globex, "globex is served with its new token")
	if value, err := metrics.Value("postern_organization_failed"); err != nil || value != 0 {
		t.Errorf("%v organizations count as failed (%v)", value, err)
	}
	for name, s := range streams {
		if err := s.end(); err != nil {
			t.Errorf("a stream of %s: %v", name, err)
		}
	}

	one.Admin(t, "agent", "unregister", "edge", "-a", "acme")
	one.Admin(t, "robot", "token", "delete", "e2e", "second", "-a", "globex")
	two.Admin(t, "robot", "token", "delete", "e2e", "test")
	if err := agent.Wait(30 * time.Second); err == nil || agent.Running() {
		t.Fatalf("nobody is served, and the agent ended with: %v", err)
	}
	for _, name := range []string{"acme", "globex", "elsewhere"} {
		if !strings.Contains(agent.Log(), "organization "+name+": ") {
			t.Errorf("its last words do not name %s", name)
		}
	}
}

// TestSeveralOrganizationsDrain stops an agent of two organizations with a stream of
// each open: both finish.
func TestSeveralOrganizationsDrain(t *testing.T) {
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	metrics := harness.Metrics(harness.FreeAddr(t))
	config := fmt.Sprintf("connectUrl: %s\ncaFile: %s\nagentId: edge\nmetrics: %s\norganizations:\n", hub.URL(), hub.CA(), metrics)
	var addrs []string
	for _, organization := range []string{"default", "acme"} {
		config += fmt.Sprintf("- {organization: %s, tokenFile: %s, allow: ['tcp:%s']}\n", organization, hub.Token(t, organization), echo)
		args, forwards := forwardArgs(t, "edge", []string{echo})
		hub.StartProxy(t, harness.PartySpec{Organization: organization, Args: args, NoWait: true})
		addrs = append(addrs, forwards[0])
	}
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := harness.Start(t, harness.Spec{Name: "agent", Path: programs.Postern, Args: []string{"agent", "--config", file}})
	var streams []*steady
	for _, addr := range addrs {
		harness.Eventually(t, 30*time.Second, "the organization is served", func() error { return harness.PingEcho(addr, 10*time.Second) })
		streams = append(streams, startSteady(t, addr))
	}
	if err := agent.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "it counts as not ready", func() error {
		if status := readiness(t, metrics, ""); status != http.StatusServiceUnavailable {
			return fmt.Errorf("/readyz: %d", status)
		}
		return nil
	})
	if err := streams[0].end(); err != nil {
		t.Errorf("a stream while the agent drains: %v", err)
	}
	if !agent.Running() {
		t.Fatal("it ended with a stream of the second organization open")
	}
	if err := streams[1].end(); err != nil {
		t.Errorf("a stream of the second organization while the agent drains: %v", err)
	}
	if err := agent.Wait(10 * time.Second); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("it ended with %v", err)
	}
	checkLogs(t, hub, agent)
}
