//go:build linux

// Package cluster runs a real Kubernetes cluster of one node in a private network: etcd, API
// server, controller manager, scheduler, containerd, kubelet, kube-proxy and CoreDNS, all in one
// sandbox that nothing outside can reach and that reaches nothing outside but HostIP.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/test/kube/bins"
	"postern.dev/postern/test/kube/debian"
	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
	"postern.dev/postern/test/kube/sandbox"
)

// base holds everything of the clusters that a machine can run at a time: one, or one pair. The path
// is short, because sockets are in it, and no one but root can have put anything there.
const base = "/var/lib/postern-kube"

// startTimeout bounds the start of the cluster, once its programs are built.
const startTimeout = 4 * time.Minute

// Options say how to start a cluster. The zero value is useful.
type Options struct {
	// Logf reports progress, one line a call; nil for none.
	Logf func(format string, args ...any)
	// APIServer are further flags of the API server.
	APIServer []string
}

// Cluster is a running cluster.
type Cluster struct {
	logf func(format string, args ...any)
	opts Options
	site site
	dir  string
	lock *machine
	bins *bins.Set
	tool string
	pki  *pki.Authority
	box  *sandbox.Sandbox

	admin   pki.Pair
	api     *proc.Process
	apiArgs []string

	mu        sync.Mutex
	processes []*proc.Process
	closed    bool
}

// Start builds what is missing and starts a cluster, or waits for another run to end its own. It
// is ready when its node is, its DNS answers and pods can be made. The caller must Close it.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	lock, set, err := prepare(ctx, opts)
	if err != nil {
		return nil, err
	}
	return start(ctx, opts, firstSite(), lock, set)
}

// start starts one cluster on a machine that is reserved, and gives up its share of the
// reservation if it cannot.
func start(ctx context.Context, opts Options, s site, lock *machine, set *bins.Set) (*Cluster, error) {
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	c := &Cluster{logf: opts.Logf, opts: opts, site: s, dir: filepath.Join(base, s.dir), lock: lock, bins: set}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("the cluster did not start in time"))
	defer cancel()
	began := time.Now()
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("start cluster %s: %w", s.name, err)
	}
	c.logf("cluster %s: ready in %s, files in %s", s.name, time.Since(began).Round(100*time.Millisecond), c.dir)
	return c, nil
}

func packages() []debian.Package {
	return []debian.Package{
		{Name: "containerd", File: "/usr/bin/containerd"},
		{Name: "runc", File: "/usr/sbin/runc"},
		{Name: "containernetworking-plugins", File: "/usr/lib/cni/bridge"},
		{Name: "iptables", File: "/usr/sbin/iptables"},
		{Name: "conntrack", File: "/usr/sbin/conntrack"},
		{Name: "iproute2", File: "/usr/sbin/ip"},
		{Name: "ethtool", File: "/usr/sbin/ethtool"},
		{Name: "socat", File: "/usr/bin/socat"},
	}
}

// start starts the parts in the order in which they need each other.
func (c *Cluster) start(ctx context.Context) error {
	if err := c.clean(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("log"), 0o700); err != nil {
		return fmt.Errorf("make the folder of logs: %w", err)
	}
	if err := c.buildTool(ctx); err != nil {
		return err
	}
	box, err := sandbox.New(sandbox.Config{
		Dir:      c.dir,
		Init:     []string{c.tool, "init"},
		Hostname: nodeName,
		Files:    c.site.sandboxFiles(),
	})
	if err != nil {
		return err
	}
	c.box = box
	if err := c.network(ctx); err != nil {
		return fmt.Errorf("make the private network: %w", err)
	}
	if c.pki, err = pki.New(c.path("pki"), "postern-kube"); err != nil {
		return err
	}
	if err := c.makeCgroups(); err != nil {
		return err
	}

	// The node's runtime needs no API server, so it starts beside it.
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.startRuntime(groupCtx) })
	group.Go(func() error { return c.startControlPlane(groupCtx) })
	if err := group.Wait(); err != nil {
		return err
	}
	group, groupCtx = errgroup.WithContext(ctx)
	group.Go(func() error { return c.startNode(groupCtx) })
	group.Go(func() error { return c.startDNS(groupCtx) })
	group.Go(func() error { return c.waitForAccount(groupCtx) })
	return group.Wait()
}

// path is a path in the cluster's folder.
func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// Dir is a folder that is removed before the next cluster starts; tests may keep logs in it.
func (c *Cluster) Dir() string { return c.dir }

// Tool is the path of the program that the test images hold.
func (c *Cluster) Tool() string { return c.tool }

// Kubectl is the path of kubectl, and Helm of Helm.
func (c *Cluster) Kubectl() string { return c.bins.Path("kubectl") }

// Helm is the path of helm.
func (c *Cluster) Helm() string { return c.bins.Path("helm") }

// Pid is a process inside the private network, for reading its /proc/PID/net.
func (c *Cluster) Pid() int { return c.box.Pid() }

// NodeIP is the node's address on the link to the host.
func (c *Cluster) NodeIP() string { return c.site.nodeIP }

// Close ends every process of the cluster and removes its network, mounts and control groups. The
// logs stay until the next start.
func (c *Cluster) Close() {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return
	}
	if c.box != nil {
		c.box.Close() // ends the processes, each of which has a goroutine that waits for it
	}
	if err := c.removeHostState(); err != nil {
		c.logf("cluster %s: %v", c.site.name, err)
	}
	c.lock.release()
}
