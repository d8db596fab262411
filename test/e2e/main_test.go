// Package e2e_test runs Postern's programs end to end, as their users do:
// separate processes on loopback, and real servers and clients around them.
package e2e_test

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// programs are built once for all tests.
var programs *harness.Programs

func TestMain(m *testing.M) {
	if urls := os.Getenv(getVariable); urls != "" {
		os.Exit(getAll(urls))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// A write to a connection that a killed process left must not end the tests.
	signal.Ignore(syscall.SIGPIPE)
	var err error
	programs, err = harness.Build()
	if programs != nil {
		defer os.RemoveAll(programs.Dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// setup is a hub, an agent and a proxy, as separate processes.
type setup struct {
	hub   *harness.Hub
	agent *harness.Party
	proxy *harness.Party
}

// newSetup starts a hub, an agent that allows the given targets, and a proxy
// with a forward to each; the addresses of the forwards come in the same order.
func newSetup(t *testing.T, targets ...string) (*setup, []string) {
	t.Helper()
	deadline(t)
	s := &setup{hub: harness.StartHub(t, programs, harness.HubSpec{})}
	s.agent = s.hub.StartAgent(t, harness.PartySpec{Allow: rules(targets)})
	args, forwards := forwardArgs(t, "edge", targets)
	s.proxy = s.hub.StartProxy(t, harness.PartySpec{Args: args})
	t.Cleanup(func() { checkLogs(t, s.hub, s.hub.Process, s.agent.Process, s.proxy.Process) })
	return s, forwards
}

// watched returns the processes of the setup for a leak check.
func (s *setup) watched() (hub, agent, proxy harness.Watched) {
	return harness.Watched{Process: s.hub.Process, Metrics: s.hub.Metrics},
		harness.Watched{Process: s.agent.Process, Metrics: s.agent.Metrics},
		harness.Watched{Process: s.proxy.Process, Metrics: s.proxy.Metrics}
}

// rules returns a rule for each address.
func rules(targets []string) []string {
	var rules []string
	for _, target := range targets {
		rules = append(rules, "tcp:"+target)
	}
	return rules
}

// forwardArgs returns arguments that forward free addresses to targets of an
// agent, and the addresses.
func forwardArgs(t *testing.T, agent string, targets []string) (args, forwards []string) {
	t.Helper()
	for _, target := range targets {
		addr := harness.FreeAddr(t)
		forwards = append(forwards, addr)
		args = append(args, "--forward", addr+"="+agent+"/tcp:"+target)
	}
	return args, forwards
}

// checkLogs looks for what no log may hold: secrets, panics, data races.
func checkLogs(t *testing.T, hub *harness.Hub, processes ...*harness.Process) {
	t.Helper()
	secrets := hub.Secrets(t)
	for _, p := range processes {
		log := p.Log()
		for _, bad := range []string{"panic: ", "WARNING: DATA RACE", "fatal error: "} {
			if strings.Contains(log, bad) {
				t.Errorf("the log of %s has %q", p.Name, bad)
			}
		}
		for _, secret := range secrets {
			if strings.Contains(log, secret) {
				t.Errorf("the log of %s has a secret", p.Name)
			}
		}
	}
}

// deadline ends a test that hangs with a message and the logs, long before the
// time-out of go test ends all of them.
func deadline(t *testing.T) {
	t.Helper()
	const limit = 4 * time.Minute
	timer := time.AfterFunc(limit, func() {
		panic(fmt.Sprintf("%s is still running after %v", t.Name(), limit))
	})
	t.Cleanup(func() { timer.Stop() })
}
