//go:build linux

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"postern.dev/postern/test/kube/proc"
)

// Spawn starts a long-running program inside the private network, with the cluster's DNS in its
// resolv.conf. Its log is NAME.log in the cluster's folder. It ends with the cluster at the latest.
func (c *Cluster) Spawn(name string, cmd *exec.Cmd) (*proc.Process, error) {
	p, err := proc.Start(name, c.path("log", name+".log"), cmd, c.box.Start)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes = append(c.processes, p)
	return p, nil
}

// Exec runs a program inside the private network to its end and returns what it printed.
func (c *Cluster) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return c.Run(exec.CommandContext(ctx, name, args...))
}

// Run is Exec for a command that is prepared.
func (c *Cluster) Run(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.box.Start(cmd); err != nil {
		return "", fmt.Errorf("%s inside: %w", filepath.Base(cmd.Path), err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s inside: %w\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	return out.String(), nil
}

// DialContext connects from inside the private network to an IP address and port.
func (c *Cluster) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return c.box.DialContext(ctx, network, address)
}

// daemon starts one of the cluster's own programs.
func (c *Cluster) daemon(path string, args ...string) (*proc.Process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Dir = c.dir
	return c.Spawn(filepath.Base(path), cmd)
}

// Logs is the end of every log of the cluster, for a failed test.
func (c *Cluster) Logs(lines int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, p := range c.processes {
		fmt.Fprintf(&b, "--- %s (%s)\n%s\n", p.Name(), p.Log(), p.Tail(lines))
	}
	return b.String()
}
