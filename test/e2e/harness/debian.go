package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var apt sync.Mutex

// Need makes sure that a program of a Debian package is there, and returns its
// path. As root it installs the package; otherwise it says what to install.
func Need(t testing.TB, pkg string, program string) string {
	t.Helper()
	return need(t, pkg, program, lookup)
}

// NeedFile does the same for a file that matches a pattern, such as a program's module.
func NeedFile(t testing.TB, pkg string, pattern string) string {
	t.Helper()
	return need(t, pkg, pattern, func(pattern string) string {
		if files, err := filepath.Glob(pattern); err == nil && len(files) > 0 {
			return files[0]
		}
		return ""
	})
}

func need(t testing.TB, pkg, what string, lookup func(string) string) string {
	t.Helper()
	apt.Lock()
	defer apt.Unlock()
	if path := lookup(what); path != "" {
		return path
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s is missing: run apt-get install %s as root", what, pkg)
	}
	fmt.Printf("installing Debian's %s\n", pkg)
	if err := aptGet("install", "-y", "-q", "--no-install-recommends", pkg); err != nil {
		// A new machine knows no packages before its first update.
		if err := aptGet("update", "-q"); err != nil {
			t.Fatalf("apt-get update: %v", err)
		}
		if err := aptGet("install", "-y", "-q", "--no-install-recommends", pkg); err != nil {
			t.Fatalf("apt-get install %s: %v", pkg, err)
		}
	}
	path := lookup(what)
	if path == "" {
		t.Fatalf("%s is still missing after apt-get install %s", what, pkg)
	}
	return path
}

func lookup(program string) string {
	for _, name := range []string{program, "/usr/sbin/" + program, "/usr/lib/postgresql/15/bin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func aptGet(args ...string) error {
	cmd := exec.Command("apt-get", args...)
	// Packages of servers start them when they are installed, and policy-rc.d
	// may not be there to forbid it; the tests start their own.
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, out)
	}
	return nil
}
