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
	owner     *testing.T // whose end is the end of every process, whichever part started it
	cluster   *cluster.Cluster
	binary    string
	dir       string // logs, tokens; kept until the next run
	data      string // the hub's
	hub       *proc.Process
	agent     *proc.Process
	proxy     *proc.Process
	httpAddr  string
	socksAddr string
}

// startTunnel builds the program and starts hub, agent and proxy with the documented commands.
func startTunnel(t *testing.T, c *cluster.Cluster) *tunnel {
	t.Helper()
	m := &tunnel{owner: t, cluster: c, dir: filepath.Join(c.Dir(), "postern"), httpAddr: freeAddr(t), socksAddr: freeAddr(t)}
	m.data = filepath.Join(m.dir, "hub")
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.binary = buildPostern(t, m.dir)
	t.Cleanup(func() {
		for _, p := range []*proc.Process{m.hub, m.agent, m.proxy} {
			if t.Failed() && p != nil {
				t.Logf("--- %s\n%s", p.Name(), p.Tail(30))
			}
		}
	})

	m.hub = m.startHub(t)
	m.control(t, "robot", "create", "r1", "-a", "default")
	m.control(t, "robot", "token", "create", "r1", "t1", "-f", m.robotToken(), "-a", "default")

	m.agent = m.startAgent(t, "r1")
	m.proxy = m.startProxy(t, "proxy", agentID, m.httpAddr, m.socksAddr)
	m.waitUntilUseful(t, m.viaProxyURL(t, "probe", "http://"+m.httpAddr))
	return m
}

// buildPostern builds the program under test; POSTERN_BINARY names one that is built already.
func buildPostern(t *testing.T, dir string) string {
	t.Helper()
	if binary := os.Getenv("POSTERN_BINARY"); binary != "" {
		t.Logf("testing %s", binary)
		return binary
	}
	binary := filepath.Join(dir, "postern")
	if err := cluster.GoBuild(t.Context(), filepath.Join("..", "..", ".."), binary, "./cmd/postern"); err != nil {
		t.Fatal(err)
	}
	return binary
}

func (m *tunnel) caFile() string     { return filepath.Join(m.data, "ca.crt") }
func (m *tunnel) adminToken() string { return filepath.Join(m.data, "admin.token") }
func (m *tunnel) robotToken() string { return filepath.Join(m.dir, "robot.json") }

// environment is that of the programs outside: no proxy of this machine's, and the hub.
func (m *tunnel) environment() []string {
	return append(slices.DeleteFunc(os.Environ(), proxyVariables),
		"POSTERN_HUB=https://"+hubAddr, "POSTERN_TOKEN_FILE="+m.adminToken(), "POSTERN_CA_FILE="+m.caFile())
}

// control runs a command against the hub as its administrator.
func (m *tunnel) control(t *testing.T, args ...string) string {
	t.Helper()
	ctx := limit(t, quick)
	cmd := exec.CommandContext(ctx, m.binary, args...)
	cmd.Env = m.environment()
	r := finish(ctx, cmd)
	if r.err != nil || r.code != 0 {
		t.Fatalf("postern %v: exit code %d, %v\n%s%s", args, r.code, r.err, r.stdout, r.stderr)
	}
	return r.stdout
}

// outside starts a long-running part of Postern on the host, until the end of the owner.
func (m *tunnel) outside(t *testing.T, name string, args ...string) *proc.Process {
	t.Helper()
	cmd := exec.Command(m.binary, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), proxyVariables)
	p, err := proc.Start(name, filepath.Join(m.dir, name+".log"), cmd, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	m.owner.Cleanup(func() { m.stop(p) })
	return p
}

// startHub starts the hub, on the data that it may have from before, and waits until it listens.
func (m *tunnel) startHub(t *testing.T) *proc.Process {
	t.Helper()
	hub := m.outside(t, "hub", "hub", "--data", m.data, "--listen", hubAddr)
	m.waitFor(t, "the hub makes its administrator's token and listens", func(ctx context.Context) error {
		if _, err := os.Stat(m.adminToken()); err != nil {
			return err
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", hubAddr)
		if err != nil {
			return err
		}
		return conn.Close()
	}, hub)
	return hub
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

// stop asks a process to end, if no part of the test has killed it, and sees that it does so well.
func (m *tunnel) stop(p *proc.Process) {
	if p.Ended() != nil {
		return
	}
	if !p.Stop(15 * time.Second) {
		m.owner.Errorf("%s did not stop within 15 s of SIGTERM (log: %s)", p.Name(), p.Log())
	} else if p.Err() != nil {
		m.owner.Errorf("after SIGTERM, %v", p.Ended())
	}
}

func (m *tunnel) startProxy(t *testing.T, name, agent, httpAddr, socksAddr string) *proc.Process {
	t.Helper()
	return m.outside(t, name, "proxy", "--connect-url", "tls://"+hubAddr, "--organization", "default",
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

func (m *tunnel) waitFor(t *testing.T, what string, check func(context.Context) error, processes ...*proc.Process) {
	t.Helper()
	if err := proc.Wait(limit(t, 2*quick), what, check, processes...); err != nil {
		t.Fatal(err)
	}
}

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
