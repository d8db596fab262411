package tools

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Prometheus returns the program of Debian's package, which is taken out of it rather than
// installed, since installing would start a service. Those of its versions that find targets by the
// API of Kubernetes need modules that the module proxy may lack.
func Prometheus(ctx context.Context, logf Logf) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache directory: %w", err)
	}
	root := filepath.Join(cache, "postern", "guides")
	dir := filepath.Join(root, "debian-prometheus")
	program := filepath.Join(dir, "usr", "bin", "prometheus")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("make the folder of programs: %w", err)
	}
	work, err := os.MkdirTemp(root, "debian-")
	if err != nil {
		return "", fmt.Errorf("make a folder to download to: %w", err)
	}
	defer os.RemoveAll(work)
	logf("tools: downloading Debian's prometheus")
	// The lists may be missing or old.
	script := `apt-get download prometheus || { apt-get update && apt-get download prometheus; }; dpkg-deb -x prometheus_*.deb out`
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download Debian's prometheus: %w\n%s", err, out)
	}
	if err := os.Rename(filepath.Join(work, "out"), dir); err != nil {
		return "", fmt.Errorf("put prometheus into place: %w", err)
	}
	return program, nil
}
