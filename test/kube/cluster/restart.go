//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// RestartAPIServer kills the API server, starts it again and waits until it is ready. It has the
// further flags from then on.
func (c *Cluster) RestartAPIServer(ctx context.Context, flags ...string) error {
	c.api.Kill()
	c.apiArgs = append(c.apiArgs, flags...)
	api, err := c.daemon(c.bins.Path("kube-apiserver"), c.apiArgs...)
	if err != nil {
		return err
	}
	c.api = api
	return c.waitForAPIServer(ctx)
}

// controlPlane are the programs that a restart of the node spares. The DNS is one of them, as it
// is not a pod here.
var controlPlane = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns"}

// RestartNode is a node that loses power: kubelet, the container runtime and every container end
// at once, without a word, and programs of Spawn too. It starts the node again and waits until it
// is Ready; its pods then start by themselves.
func (c *Cluster) RestartNode(ctx context.Context) error {
	kill := []string{"-9"}
	err := c.eachInside(func(pid, dir string) error {
		program, err := os.Readlink(filepath.Join(dir, "exe"))
		if err == nil && pid != "1" && !slices.Contains(controlPlane, filepath.Base(program)) {
			kill = append(kill, pid)
		}
		return nil // one that cannot be read has ended
	})
	if err != nil {
		return err
	}
	// Some may have ended meanwhile, or with others of these.
	_, _ = c.Exec(ctx, "/bin/kill", kill...)
	if err := c.startRuntime(ctx); err != nil {
		return err
	}
	return c.startNode(ctx)
}

// Memory is what the cluster's processes have in memory, in bytes, the containers' too. Pages that
// several of them share count once for each.
func (c *Cluster) Memory() (int64, error) {
	var pages int64
	err := c.eachInside(func(_, dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, "statm"))
		if err != nil {
			return nil //nolint:nilerr // it has ended
		}
		var all, resident int64
		if _, err := fmt.Sscan(string(text), &all, &resident); err != nil {
			return fmt.Errorf("read %s/statm: %w", dir, err)
		}
		pages += resident
		return nil
	})
	return pages * int64(os.Getpagesize()), err
}

// eachInside calls f for each process of the cluster, with its number and its folder in /proc as
// they are inside.
func (c *Cluster) eachInside(f func(pid, dir string) error) error {
	return c.box.Do(func() error {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("list the processes: %w", err)
		}
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err != nil {
				continue
			}
			if err := f(e.Name(), filepath.Join("/proc", e.Name())); err != nil {
				return err
			}
		}
		return nil
	})
}
