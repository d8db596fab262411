//go:build linux

// Package e2e_test runs the postern program against a real Kubernetes cluster that nothing
// outside can reach: kubectl and Helm outside, through a proxy, the hub and an agent that only
// dials out.
package e2e_test

import (
	"context"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// TestKube starts one cluster and one tunnel, and then looks at them from many sides. The parts
// share them, in this order: the crashes come last.
func TestKube(t *testing.T) {
	t.Parallel()
	started := time.Now()
	c := cluster.StartT(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of the cluster:\n%s", c.Logs(8))
		}
	})
	tunnel := startTunnel(t, c)
	t.Logf("cluster and tunnel ready after %s", time.Since(started).Round(time.Second))

	t.Run("private", func(t *testing.T) { testPrivate(t, c) })
	routes := []client{
		tunnel.viaProxyURL(t, "proxy-url", "http://"+tunnel.httpAddr),
		tunnel.viaEnvironment(t),
		tunnel.viaProxyURL(t, "socks5", "socks5://"+tunnel.socksAddr),
	}
	importAgent(t, c, tunnel)
	t.Run("clients", func(t *testing.T) { // at once, as they mostly wait; each has a namespace of its own
		for _, kubectl := range routes {
			t.Run(kubectl.name, func(t *testing.T) { t.Parallel(); testClient(t, c, kubectl) })
		}
		t.Run("gateway", func(t *testing.T) { t.Parallel(); testGateway(t, c, tunnel) })
		t.Run("agent in a pod", func(t *testing.T) { t.Parallel(); testPodAgent(t, c, tunnel) })
		t.Run("agent by its service account", func(t *testing.T) { t.Parallel(); testWorkload(t, c, tunnel) })
	})
	t.Run("sockets of the agent", func(t *testing.T) { testSockets(t, tunnel, routes[0]) })
	t.Run("crash", func(t *testing.T) { testCrash(t, tunnel, routes[0]) })
}

// testClient is what a user of Kubernetes does in a day, through one kind of route.
func testClient(t *testing.T, c *cluster.Cluster, kubectl client) {
	kubectl.must(t, "create", "namespace", kubectl.namespace)
	if !t.Run("apply", func(t *testing.T) { testApply(t, kubectl) }) {
		t.Fatal("nothing to work with")
	}
	if kubectl.name == "socks5" {
		t.Run("exec", func(t *testing.T) { testExec(t, kubectl, "true") })
		return
	}
	t.Run("diff", func(t *testing.T) { testDiff(t, kubectl) })
	t.Run("rollout", func(t *testing.T) { testRollout(t, kubectl) })
	t.Run("watch", func(t *testing.T) { testWatch(t, kubectl) })
	t.Run("logs", func(t *testing.T) { testLogs(t, kubectl) })
	for name, websockets := range map[string]string{"websocket": "true", "spdy": "false"} {
		t.Run("exec "+name, func(t *testing.T) { testExec(t, kubectl, websockets) })
		t.Run("terminal "+name, func(t *testing.T) { testTerminal(t, kubectl, websockets) })
		t.Run("port-forward "+name, func(t *testing.T) { testPortForward(t, kubectl, websockets) })
		t.Run("cp "+name, func(t *testing.T) { testCopy(t, kubectl, websockets) })
	}
	t.Run("parallel", func(t *testing.T) { testParallel(t, kubectl) })
	t.Run("helm", func(t *testing.T) { testHelm(t, c, kubectl) })
}

// limit is a context for one part of a test, which fails rather than hangs.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
