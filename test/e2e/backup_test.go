package e2e_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestHubIsLost kills a hub and deletes its directory. Restored from its backup, it
// serves the same agents, proxies and tokens again, and none that was revoked.
func TestHubIsLost(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	s.hub.Admin(t, "robot", "create", "former")
	former := filepath.Join(t.TempDir(), "former.json")
	s.hub.Admin(t, "robot", "token", "create", "former", "first", "-f", former)
	s.hub.Admin(t, "robot", "token", "delete", "former", "first")
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "hub.backup")
	s.hub.Admin(t, "hub", "backup", "-f", file)

	s.hub.Kill()
	if err := os.RemoveAll(s.hub.Data); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	half := file + ".half"
	if err := os.WriteFile(half, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := s.hub.TryAdmin(t, "hub", "restore", "-f", half, "--data", s.hub.Data); err == nil || !strings.Contains(stderr, "cut off") {
		t.Errorf("half a backup: %v %s", err, stderr)
	}
	if _, err := os.Stat(s.hub.Data); !os.IsNotExist(err) {
		t.Errorf("half a backup left a directory: %v", err)
	}
	s.hub.Admin(t, "hub", "restore", "-f", file, "--data", s.hub.Data)
	s.hub.Start(t)
	took := harness.Eventually(t, 30*time.Second, "streams open again", func() error { return harness.PingEcho(forwards[0], 5*time.Second) })
	t.Logf("a stream opened %v after the restored hub was ready", took.Round(time.Millisecond))
	if !s.agent.Running() || !s.proxy.Running() {
		t.Error("the agent or the proxy has ended")
	}
	guest := s.hub.StartAgent(t, harness.PartySpec{AgentID: "guest", Token: former, NoWait: true})
	if err := guest.Wait(20 * time.Second); err == nil || !strings.Contains(guest.Log(), "revoked") {
		t.Errorf("a token that was revoked before the backup: %v\n%s", err, guest.Log())
	}
	s.hub.StartAgent(t, harness.PartySpec{AgentID: "other"}) // with a token of before
}

// TestKeyRotationIsKilled kills `postern hub rotate-key` again and again: the hub
// starts on what is left each time, and has lost nothing.
func TestKeyRotationIsKilled(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	hub.Admin(t, "robot", "create", "machines")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 5 {
		if err := hub.Stop(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			p := harness.Start(t, harness.Spec{Name: "rotate-key", Path: programs.Postern, Args: []string{"hub", "rotate-key", "--data", hub.Data}})
			select {
			case <-p.Done():
			case <-time.After(time.Duration(random.IntN(1000)) * time.Millisecond):
				p.Kill()
			}
		}
		hub.Start(t)
		if list := hub.Admin(t, "robot", "list"); !strings.Contains(list, "machines") {
			t.Fatalf("round %d: the robots are %s", round, list)
		}
	}
	if err := hub.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	hub.Admin(t, "hub", "rotate-key", "--data", hub.Data)
	if stores, err := filepath.Glob(filepath.Join(hub.Data, "bus*")); err != nil || len(stores) != 1 {
		t.Errorf("stores of the bus: %v, %v; want one", stores, err)
	}
	hub.Start(t)
	if list := hub.Admin(t, "robot", "list"); !strings.Contains(list, "machines") {
		t.Errorf("the robots are %s", list)
	}
}

// TestAuthorityRotates replaces the hub's certificate authority while an agent and a
// proxy of their own processes carry a stream, and the hub is killed in between.
func TestAuthorityRotates(t *testing.T) {
	t.Parallel()
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{"--credential-ttl", "12s"}})
	old := filepath.Join(t.TempDir(), "old.crt")
	crt, err := os.ReadFile(hub.CA())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old, crt, 0o600); err != nil {
		t.Fatal(err)
	}
	agent := hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{echo}), Args: []string{"--ca-file", old}})
	args, forwards := forwardArgs(t, "edge", []string{echo})
	proxy := hub.StartProxy(t, harness.PartySpec{Args: append(args, "--ca-file", old)})
	pin := strings.TrimSpace(hub.Admin(t, "ca", "rotate"))
	hub.Kill()
	hub.Start(t)
	harness.Eventually(t, 30*time.Second, "streams open again", func() error { return harness.PingEcho(forwards[0], 5*time.Second) })

	// From here on, nothing may fail.
	stream := harness.Dial(t, forwards[0])
	talk := func() {
		t.Helper()
		b := make([]byte, 4)
		_ = stream.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := stream.Write([]byte("ping")); err != nil {
			t.Fatalf("the stream that runs: %v", err)
		}
		if _, err := stream.Read(b); err != nil {
			t.Fatalf("the stream that runs: %v", err)
		}
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatalf("a new stream: %v", err)
		}
	}
	for begin := time.Now(); ; time.Sleep(300 * time.Millisecond) {
		talk()
		list := hub.Admin(t, "ca", "list")
		if strings.Contains(list, "retired") {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("after a minute:\n%s", list)
		}
	}
	talk()
	hub.StartAgent(t, harness.PartySpec{AgentID: "old", Args: []string{"--ca-file", old}})
	hub.StartAgent(t, harness.PartySpec{AgentID: "new", Args: []string{"--ca-pin", pin}})
	checkLogs(t, hub, agent.Process, proxy.Process)
}
