//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/proc"
)

const (
	hubAddr = cluster.HostIP + ":4222"
	// agentID is the agent that runs as a process of the private network.
	agentID = "kube"
	// allowed is the one target that it may reach.
	allowed = "tcp:kubernetes.default.svc.cluster.local:443"
)

// tunnel is the hub and a proxy outside, and an agent inside.
type tunnel struct {
	outside
	cluster   *cluster.Cluster
	agent     *proc.Process
	proxy     *proc.Process
	httpAddr  string
	socksAddr string
}

// startTunnel builds the program and starts hub, agent and proxy with the documented commands.
func startTunnel(t *testing.T, c *cluster.Cluster) *tunnel {
	t.Helper()
	m := &tunnel{outside: newOutside(t, filepath.Join(c.Dir(), "postern"), hubAddr), cluster: c, httpAddr: freeAddr(t), socksAddr: freeAddr(t)}
	t.Cleanup(func() {
		for _, p := range []*proc.Process{m.hub, m.agent, m.proxy} {
			if t.Failed() && p != nil {
				t.Logf("--- %s\n%s", p.Name(), p.Tail(30))
			}
		}
	})

	m.hub = m.startHub(t)
	m.makeRobot(t)
	m.agent = m.startAgent(t, "r1")
	m.proxy = m.startProxy(t, "proxy", agentID, m.httpAddr, m.socksAddr)
	m.waitUntilUseful(t, m.viaProxyURL(t, "probe", "http://"+m.httpAddr))
	return m
}

// startAgent starts a replica of the agent inside the private network, as its owner would on a
// machine there.
func (m *tunnel) startAgent(t *testing.T, replica string) *proc.Process {
	t.Helper()
	cmd := exec.Command(m.binary, "agent", "--connect-url", "tls://"+hubAddr, "--organization", "default",
		"--agent-id", agentID, "--token-file", m.robotToken(), "--ca-file", m.caFile(), "--allow", allowed, "--name", replica)
	cmd.Env = slices.DeleteFunc(os.Environ(), proxyVariables)
	p, err := m.cluster.Spawn("agent-"+replica, cmd)
	if err != nil {
		t.Fatal(err)
	}
	m.owner.Cleanup(func() { m.stop(p) })
	return p
}

func (m *tunnel) startProxy(t *testing.T, name, agent, httpAddr, socksAddr string) *proc.Process {
	t.Helper()
	return m.run(t, name, "proxy", "--connect-url", "tls://"+hubAddr, "--organization", "default",
		"--agent-id", agent, "--token-file", m.robotToken(), "--ca-file", m.caFile(), "--http", httpAddr, "--socks5", socksAddr)
}

// viaProxyURL is kubectl with a kubeconfig that names the proxy.
func (m *tunnel) viaProxyURL(t *testing.T, name, proxyURL string) client {
	t.Helper()
	return newClient(t, m.cluster.Kubectl(), name, m.cluster.AdminKubeconfig(cluster.Server, proxyURL))
}

// viaEnvironment is kubectl, as the bearer of a service account's token, with HTTPS_PROXY.
func (m *tunnel) viaEnvironment(t *testing.T) client {
	t.Helper()
	token, err := m.cluster.ServiceAccountToken(limit(t, quick), "default", "deployer", "cluster-admin")
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, m.cluster.Kubectl(), "environment", m.cluster.TokenKubeconfig(cluster.Server, "", token),
		"HTTPS_PROXY=http://"+m.httpAddr)
}

// waitUntilUseful waits until the API server answers through the tunnel.
func (m *tunnel) waitUntilUseful(t *testing.T, kubectl client) {
	t.Helper()
	m.waitFor(t, "the API server answers through the tunnel", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r := kubectl.run(ctx, nil, "get", "--raw", "/readyz", "--request-timeout=5s")
		if r.err == nil && r.stdout == "ok" {
			return nil
		}
		return &notUseful{r}
	}, m.hub, m.agent, m.proxy)
}

// notUseful says how kubectl failed.
type notUseful struct{ result }

func (e *notUseful) Error() string { return e.stdout + e.stderr }

// freeAddr is a loopback address that nothing listens on. Its port is below those that the kernel
// gives to connections, so that none of them takes it before it is used.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port between 20000 and 32000")
	return ""
}
