//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// clean removes what a run that was killed left behind. Its processes, mounts and addresses went
// with its sandbox; files and control groups did not.
func (c *Cluster) clean() error {
	if err := c.removeHostState(); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove the files of an earlier run: %w", err)
	}
	return os.MkdirAll(c.dir, 0o700)
}

// removeHostState removes the host's end of the link and the control groups.
func (c *Cluster) removeHostState() error {
	if _, err := net.InterfaceByName(c.site.hostLink); err == nil {
		if out, err := exec.Command("ip", "link", "del", c.site.hostLink).CombinedOutput(); err != nil {
			// The kernel may have removed it meanwhile, with the sandbox.
			if _, still := net.InterfaceByName(c.site.hostLink); still == nil {
				return fmt.Errorf("remove the link of an earlier run: %w: %s", err, out)
			}
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := removeCgroups(c.site.cgroup)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // the kernel is still ending the processes in them
	}
}

// hierarchies are the roots of the control groups: one with version 2, several with version 1.
func hierarchies() ([]string, error) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list the control groups: %w", err)
	}
	var all []string
	for _, e := range entries {
		// Links such as cpu -> cpu,cpuacct lead to a hierarchy that is listed itself.
		if e.IsDir() {
			all = append(all, filepath.Join(root, e.Name()))
		}
	}
	return all, nil
}

func (c *Cluster) makeCgroups() error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.Mkdir(filepath.Join(root, c.site.cgroup), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a control group: %w", err)
		}
	}
	if len(roots) == 1 {
		return delegate(filepath.Join(roots[0], c.site.cgroup))
	}
	return nil
}

// delegate lets the groups below a group of version 2 use every controller that it has.
func delegate(group string) error {
	text, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read a control group: %w", err)
	}
	var enable []string
	for name := range strings.FieldsSeq(string(text)) {
		enable = append(enable, "+"+name)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0); err != nil {
		return fmt.Errorf("delegate a control group: %w", err)
	}
	return nil
}

// removeCgroups removes the node's control groups, the deepest first.
func removeCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		var groups []string
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil // what is gone meanwhile needs no removal
		})
		if err != nil {
			return fmt.Errorf("list the control groups of an earlier run: %w", err)
		}
		for _, group := range slices.Backward(groups) {
			if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove a control group: %w", err)
			}
		}
	}
	return nil
}
