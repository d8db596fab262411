//go:build linux

package e2e_test

import (
	"context"
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

// outside is the hub, and what stands on its side of the private network.
type outside struct {
	owner  *testing.T // whose end is the end of every process, whichever part started it
	binary string
	dir    string // logs, tokens; kept until the next run
	data   string // the hub's
	addr   string // the hub's, HOST:PORT
	hub    *proc.Process
}

// newOutside builds the program, and starts nothing yet.
func newOutside(t *testing.T, dir, addr string) outside {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return outside{owner: t, binary: buildPostern(t, dir), dir: dir, data: filepath.Join(dir, "hub"), addr: addr}
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

func (m *outside) caFile() string     { return filepath.Join(m.data, "ca.crt") }
func (m *outside) adminToken() string { return filepath.Join(m.data, "admin.token") }
func (m *outside) robotToken() string { return filepath.Join(m.dir, "robot.json") }

// makeRobot makes the robot that agents, proxies and clients are.
func (m *outside) makeRobot(t *testing.T) {
	t.Helper()
	m.control(t, "robot", "create", "r1", "-a", "default")
	m.control(t, "robot", "token", "create", "r1", "t1", "-f", m.robotToken(), "-a", "default")
}

// environment is that of the programs outside: no proxy of this machine's, and the hub.
func (m *outside) environment() []string {
	return append(slices.DeleteFunc(os.Environ(), proxyVariables),
		"POSTERN_HUB=https://"+m.addr, "POSTERN_TOKEN_FILE="+m.adminToken(), "POSTERN_CA_FILE="+m.caFile())
}

// control runs a command against the hub as its administrator.
func (m *outside) control(t *testing.T, args ...string) string {
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

// run starts a long-running part of Postern on the host, until the end of the owner.
func (m *outside) run(t *testing.T, name string, args ...string) *proc.Process {
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

// startHub starts the hub, on the data that it may have from before, with further arguments, and
// waits until it listens.
func (m *outside) startHub(t *testing.T, args ...string) *proc.Process {
	t.Helper()
	hub := m.run(t, "hub", append([]string{"hub", "--data", m.data, "--listen", m.addr}, args...)...)
	m.waitFor(t, "the hub makes its administrator's token and its CA and listens", func(ctx context.Context) error {
		for _, file := range []string{m.adminToken(), m.caFile()} {
			if _, err := os.Stat(file); err != nil {
				return err
			}
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", m.addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}, hub)
	return hub
}

// stop asks a process to end, if no part of the test has killed it, and sees that it does so well.
func (m *outside) stop(p *proc.Process) {
	if p.Ended() != nil {
		return
	}
	if !p.Stop(15 * time.Second) {
		m.owner.Errorf("%s did not stop within 15 s of SIGTERM (log: %s)", p.Name(), p.Log())
	} else if p.Err() != nil {
		m.owner.Errorf("after SIGTERM, %v", p.Ended())
	}
}

func (m *outside) waitFor(t *testing.T, what string, check func(context.Context) error, processes ...*proc.Process) {
	t.Helper()
	if err := proc.Wait(limit(t, 2*quick), what, check, processes...); err != nil {
		t.Fatal(err)
	}
}
