// Package debian installs the system packages of the node under test, if they are missing.
package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// ErrNotRoot is returned by a caller who may not install packages, nor run a node.
var ErrNotRoot = errors.New("these tests run a real Kubernetes node, which needs root on Linux")

// Logf reports progress, one line a call.
type Logf func(format string, args ...any)

// Package is a Debian package and a file by which to know that it is there.
type Package struct {
	// Name is the package's name.
	Name string
	// File is an absolute path that the package brings.
	File string
}

// Ensure installs those of the packages whose file is missing, with apt-get.
func Ensure(ctx context.Context, logf Logf, packages ...Package) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	var names []string
	for _, p := range packages {
		if _, err := os.Stat(p.File); errors.Is(err, fs.ErrNotExist) {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install %s by hand: this system has no apt-get", strings.Join(names, ", "))
	}
	logf("debian: installing %s", strings.Join(names, " "))
	install := append([]string{"install", "-y", "--no-install-recommends"}, names...)
	if err := aptGet(ctx, install...); err == nil {
		return nil
	}
	// The lists may be missing or old.
	if err := aptGet(ctx, "update"); err != nil {
		return err
	}
	return aptGet(ctx, install...)
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=120"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
	}
	return nil
}
