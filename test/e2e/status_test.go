package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestStatus watches agents come, stop and die.
func TestStatus(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	if out := hub.Admin(t, "agents"); strings.Contains(out, "edge") {
		t.Errorf("an agent is there before it started:\n%s", out)
	}
	one := hub.StartAgent(t, harness.PartySpec{Replica: "one"})
	two := hub.StartAgent(t, harness.PartySpec{Replica: "two"})

	is := func(replica, state string) func() error {
		return func() error {
			out := hub.Admin(t, "status", "edge")
			for line := range strings.Lines(out) {
				if strings.Contains(line, replica) && strings.Contains(strings.ToLower(line), state) {
					return nil
				}
			}
			return fmt.Errorf("no line with %s and %s in\n%s", replica, state, out)
		}
	}
	harness.Eventually(t, 3*time.Second, "both are shown", func() error {
		if err := is("one", "ready")(); err != nil {
			return err
		}
		return is("two", "ready")()
	})
	if out := hub.Admin(t, "agents"); !strings.Contains(out, "edge") {
		t.Errorf("agents does not show it:\n%s", out)
	}
	if err := one.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
	gone := func(replica string) func() error {
		return func() error {
			if is(replica, "ready")() == nil {
				return fmt.Errorf("%s is still shown as ready", replica)
			}
			return nil
		}
	}
	harness.Eventually(t, 2*time.Second, "a clean stop shows", gone("one"))
	// Frozen, it closes no connection: only its silence tells.
	if err := two.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = two.Signal(syscall.SIGCONT) })
	took := harness.Eventually(t, 10*time.Second, "a silent death shows", gone("two"))
	t.Logf("a silent death showed after %v", took.Round(100*time.Millisecond))
	if err := two.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "it is back", is("two", "ready"))
	two.Kill()
	harness.Eventually(t, 10*time.Second, "a kill shows", gone("two"))
	two.Restart(t)
	harness.Eventually(t, 5*time.Second, "its successor shows", is("two", "ready"))
}

// TestEdgeAgent looks at the agent for the edge: its size, its memory, and that
// it listens nowhere.
func TestEdgeAgent(t *testing.T) {
	deadline(t)
	info, err := os.Stat(programs.Agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("postern-agent has %.1f MB", float64(info.Size())/1e6)
	if info.Size() > 20e6 {
		t.Errorf("postern-agent has %d bytes, at most 20 MB", info.Size())
	}
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	agent := hub.StartAgent(t, harness.PartySpec{Edge: true, Allow: rules([]string{echo})})
	args, forwards := forwardArgs(t, "edge", []string{echo})
	hub.StartProxy(t, harness.PartySpec{Args: args})
	for range 20 {
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := agent.Listeners(); err != nil || n != 1 {
		t.Errorf("it listens on %d sockets (%v), want only that of --metrics", n, err)
	}
	resident := rss(t, agent.Process)
	t.Logf("postern-agent holds %.1f MiB", float64(resident)/(1<<20))
	if resident > 30<<20 {
		t.Errorf("postern-agent holds %d bytes, at most 30 MiB", resident)
	}
	if !strings.Contains(agent.Log(), echo) || !strings.Contains(agent.Log(), hub.Addr) {
		t.Errorf("its log does not say what it is connected to and what may be reached:\n%s", agent.Log())
	}
}

// TestAgentListensNowhere runs an agent as the documents do, without --metrics.
func TestAgentListensNowhere(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	agent := harness.Start(t, harness.Spec{Name: "agent", Path: programs.Postern, Args: []string{
		"agent", "--connect-url", hub.URL(), "--organization", "default", "--agent-id", "edge",
		"--token-file", hub.Token(t, "default"), "--ca-file", hub.CA(), "--allow", "tcp:127.0.0.1:80",
	}})
	harness.Eventually(t, 20*time.Second, "it is connected", func() error {
		if out := hub.Admin(t, "agents"); !strings.Contains(out, "edge") {
			return fmt.Errorf("agents:\n%s", out)
		}
		return nil
	})
	if n, err := agent.Listeners(); err != nil || n != 0 {
		t.Errorf("the agent listens on %d sockets, %v", n, err)
	}
}
