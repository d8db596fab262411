//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/proc"
)

// testCrash kills the agent in the middle of something, as a power cut would. The client must get
// an error, soon and never the semblance of an end; and once an agent is back, kubectl must work
// again with nothing else restarted.
func testCrash(t *testing.T, tunnel *tunnel, kubectl client) {
	lasting := []*proc.Process{tunnel.hub, tunnel.proxy}
	before := descriptors(t, lasting)
	t.Run("cp", func(t *testing.T) {
		large := filepath.Join(t.TempDir(), "large")
		// Sparse, so that it costs no disk; it takes far longer to send than to kill.
		if err := os.WriteFile(large, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(large, 4<<30); err != nil {
			t.Fatal(err)
		}
		before := bytesIn(t, tunnel.cluster)
		cp := kubectl.follow(t, "cp", large, "clock:/tmp/large")
		tunnel.waitFor(t, "the file is on its way in", func(context.Context) error {
			if n := bytesIn(t, tunnel.cluster) - before; n < 16<<20 {
				return fmt.Errorf("%d bytes have come in", n)
			}
			return nil
		}, tunnel.agent)
		kill(t, tunnel, kubectl, cp)
		kubectl.must(t, "exec", "clock", "--", "gen", "0", "/tmp/large")
	})
	t.Run("logs", func(t *testing.T) {
		logs := kubectl.follow(t, "logs", "-f", "clock", "--tail=1")
		for range 5 {
			logs.next(t)
		}
		kill(t, tunnel, kubectl, logs)
	})
	t.Run("exec", func(t *testing.T) {
		tick := kubectl.follow(t, "exec", "clock", "--", "tick", "50ms")
		for range 5 {
			tick.next(t)
		}
		kill(t, tunnel, kubectl, tick)
	})
	t.Run("silent link", func(t *testing.T) { testSilentLink(t, tunnel, kubectl) })
	t.Run("one of two replicas", func(t *testing.T) { testReplica(t, tunnel, kubectl) })

	// Each crash cut streams, pipes and a bus connection; what they held must be given back.
	tunnel.waitFor(t, "hub and proxy have given back what the crashes cut", func(context.Context) error {
		for i, now := range descriptors(t, lasting) {
			if now > before[i]+poolSlack {
				return fmt.Errorf("%s has %d descriptors, and had %d", lasting[i].Name(), now, before[i])
			}
		}
		return nil
	}, lasting...)
	t.Run("hub", func(t *testing.T) { testHubCrash(t, tunnel, kubectl) })
}

// poolSlack is by how many descriptors an idle pool may differ from itself.
const poolSlack = 24

// testReplica kills one of two agents with the same ID while kubectl asks again and again.
func testReplica(t *testing.T, tunnel *tunnel, kubectl client) {
	second := tunnel.startAgent(t, "r2")
	tunnel.waitFor(t, "the hub knows the second replica", func(context.Context) error {
		if out := tunnel.control(t, "status", agentID); !strings.Contains(out, "r2") {
			return errors.New(out)
		}
		return nil
	}, second)
	tunnel.agent.Kill()
	tunnel.agent = second
	killed, failures := time.Now(), 0
	for good := 0; good < 20; {
		r := kubectl.run(limit(t, quick), nil, "get", "--raw", "/readyz", "--request-timeout=10s")
		if r.err == nil && r.code == 0 {
			good++
			continue
		}
		failures++
		good = 0
		if time.Since(killed) > quick {
			t.Fatalf("kubectl still fails %s after the death of one of two replicas: %s", quick, r.stderr)
		}
	}
	t.Logf("one of two replicas died: %d requests failed, 20 in a row succeeded after %s", failures, time.Since(killed).Round(time.Millisecond))
}

// testSilentLink lets the packets between agent and hub vanish. No one is told, so pings must find
// out; after that, what holds for a dead agent holds here too, with the same agent.
func testSilentLink(t *testing.T, tunnel *tunnel, kubectl client) {
	logs := kubectl.follow(t, "logs", "-f", "clock", "--tail=1")
	for range 5 {
		logs.next(t)
	}
	mend, err := tunnel.cluster.Cut(limit(t, quick))
	if err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	stderr, err := logs.wait(t, 20*time.Second) // pings promise 10
	t.Logf("kubectl ended %s after the link fell silent: %v: %s", time.Since(cut).Round(time.Millisecond), err, strings.TrimSpace(stderr))
	if err == nil {
		t.Error("kubectl took a silent link for an ordinary end")
	}
	r := kubectl.run(limit(t, 2*quick), nil, "get", "--raw", "/readyz", "--request-timeout=50s")
	t.Logf("on a silent link, after %s: %s", r.took.Round(time.Millisecond), strings.TrimSpace(r.stderr))
	if r.code == 0 || r.err != nil {
		t.Errorf("kubectl on a silent link: exit code %d, %v", r.code, r.err)
	}
	if err := mend(limit(t, quick)); err != nil {
		t.Fatal(err)
	}
	mended := time.Now()
	tunnel.waitUntilUseful(t, kubectl)
	t.Logf("kubectl works again %s after the link was mended", time.Since(mended).Round(time.Millisecond))
}

// testHubCrash kills the hub, and with it its relay and its bus. Agent and proxy must find the
// next one on the same address by themselves.
func testHubCrash(t *testing.T, tunnel *tunnel, kubectl client) {
	logs := kubectl.follow(t, "logs", "-f", "clock", "--tail=1")
	for range 5 {
		logs.next(t)
	}
	killed := time.Now()
	tunnel.hub.Kill()
	stderr, err := logs.wait(t, quick)
	t.Logf("kubectl ended %s after the hub's death: %v: %s", time.Since(killed).Round(time.Millisecond), err, strings.TrimSpace(stderr))
	if err == nil {
		t.Error("kubectl took the hub's death for an ordinary end")
	}
	started := time.Now()
	tunnel.hub = tunnel.startHub(t)
	tunnel.waitUntilUseful(t, kubectl)
	t.Logf("kubectl works again %s after the hub's return", time.Since(started).Round(time.Millisecond))
}

// descriptors counts the open files of each process.
func descriptors(t *testing.T, processes []*proc.Process) []int {
	t.Helper()
	var counts []int
	for _, p := range processes {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.Pid()), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		counts = append(counts, len(entries))
	}
	return counts
}

// kill ends the agent, sees the client fail, starts an agent again and sees kubectl work.
func kill(t *testing.T, tunnel *tunnel, kubectl client, busy *stream) {
	t.Helper()
	select {
	case <-busy.done:
		t.Fatalf("kubectl ended before the agent was killed: %v\n%s", busy.err, busy.stderr.String())
	default:
	}
	start := time.Now()
	tunnel.agent.Kill()
	stderr, err := busy.wait(t, quick)
	t.Logf("kubectl ended %s after the agent's death: %v: %s", time.Since(start).Round(time.Millisecond), err, strings.TrimSpace(stderr))
	if err == nil {
		t.Error("kubectl took the agent's death for an ordinary end")
	}
	if strings.TrimSpace(stderr) == "" {
		t.Error("kubectl says nothing about the agent's death")
	}

	// Without an agent, the error is quick and says so.
	r := kubectl.run(limit(t, quick), nil, "get", "--raw", "/readyz", "--request-timeout=20s")
	t.Logf("without an agent, after %s: %s", r.took.Round(time.Millisecond), strings.TrimSpace(r.stderr))
	if r.code == 0 || r.err != nil {
		t.Errorf("kubectl without an agent: exit code %d, %v", r.code, r.err)
	}

	start = time.Now()
	tunnel.agent = tunnel.startAgent(t, "r1")
	tunnel.waitUntilUseful(t, kubectl)
	t.Logf("kubectl works again %s after the agent's return", time.Since(start).Round(time.Millisecond))
	for _, p := range []*proc.Process{tunnel.hub, tunnel.proxy} {
		if ended := p.Ended(); ended != nil {
			t.Error(ended)
		}
	}
}

// bytesIn is how much has come into the private network, on its one link.
func bytesIn(t *testing.T, c *cluster.Cluster) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Pid()), "net", "dev"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != cluster.NodeLink+":" {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("no %s in /proc/PID/net/dev", cluster.NodeLink)
	return 0
}
