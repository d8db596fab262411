//go:build linux

package cluster_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// TestPair starts two clusters at once, one of them without a node, runs a pod, and looks that they
// are apart: each reaches the host's one address, and neither the other. Then it pulls the plug.
func TestPair(t *testing.T) {
	began := time.Now()
	p, err := cluster.StartPair(t.Context(), cluster.Options{Logf: t.Logf},
		cluster.Options{Logf: t.Logf, WithoutNode: true, APIServer: []string{"--max-requests-inflight=200"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	t.Logf("both ready after %s", time.Since(began).Round(100*time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	kubectl(ctx, t, p.A, "created", "run", "hello", "--image", cluster.ToolImage, "--restart=Never", "--command", "--", "echo", "hello")
	kubectl(ctx, t, p.A, "condition met", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/hello", "--timeout=30s")
	kubectl(ctx, t, p.A, "hello", "logs", "hello")
	for name, c := range map[string]*cluster.Cluster{"A": p.A, "B": p.B} {
		kubectl(ctx, t, c, "created", "create", "configmap", "mine", "--from-literal=cluster="+name)
		memory, err := c.Memory()
		if err != nil || memory < 100<<20 {
			t.Errorf("%s takes %d bytes, %v", name, memory, err)
		}
		t.Logf("%s takes %d MiB", name, memory>>20)
	}
	checkApart(ctx, t, p)
	checkRestart(ctx, t, p)
}

// checkApart looks at both directions, and at the way out.
func checkApart(ctx context.Context, t *testing.T, p *cluster.Pair) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(cluster.HostIP, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, c := range []*cluster.Cluster{p.A, p.B} {
		conn, err := c.DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			t.Errorf("the host cannot be reached: %v", err)
			continue
		}
		conn.Close()
	}
	api := strconv.Itoa(cluster.APIPort)
	for from, to := range map[*cluster.Cluster]*cluster.Cluster{p.A: p.B, p.B: p.A} {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		if conn, err := from.DialContext(ctx, "tcp", net.JoinHostPort(to.NodeIP(), api)); err == nil {
			conn.Close()
			t.Errorf("%s can be reached from the other cluster", to.NodeIP())
		}
		if conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(to.NodeIP(), api)); err == nil {
			conn.Close()
			t.Errorf("%s can be reached from the host", to.NodeIP())
		}
		cancel()
	}
}

// checkRestart restarts a node and an API server. A pod that runs is there again, in a new container.
func checkRestart(ctx context.Context, t *testing.T, p *cluster.Pair) {
	t.Helper()
	kubectl(ctx, t, p.A, "created", "run", "stays", "--image", cluster.ToolImage, "--command", "--", "sleep", "1h")
	kubectl(ctx, t, p.A, "condition met", "wait", "--for=condition=Ready", "pod/stays", "--timeout=30s")
	began := time.Now()
	if err := p.A.RestartNode(ctx); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, p.A, "condition met", "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/stays", "--timeout=60s")
	t.Logf("the node and its pod restarted in %s", time.Since(began).Round(100*time.Millisecond))
	began = time.Now()
	if err := p.B.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, p.B, "B", "get", "configmap", "mine", "-o", "yaml")
	t.Logf("the API server restarted in %s", time.Since(began).Round(100*time.Millisecond))
}

// kubectl runs kubectl as administrator and wants a text in what it says.
func kubectl(ctx context.Context, t *testing.T, c *cluster.Cluster, want string, args ...string) {
	t.Helper()
	out, err := c.KubectlInside(ctx, args...)
	if err != nil || !strings.Contains(out, want) {
		t.Fatalf("kubectl %s: %q, %v; want %q\n%s", strings.Join(args, " "), out, err, want, c.Logs(10))
	}
}
