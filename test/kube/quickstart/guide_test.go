//go:build linux

package quickstart_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/fenced"
)

// step is a block of commands of the guide, and where they are to be run.
type step struct {
	fenced.Block
	where string // hub, control-plane or private
}

func guidePath(t *testing.T, guide string) string {
	t.Helper()
	return filepath.Join(root(t), "docs", "guide", guide)
}

// steps returns the blocks "```sh kube WHERE" of a guide, in their order.
func steps(t *testing.T, guide string) []step {
	t.Helper()
	blocks, err := fenced.Blocks(guidePath(t, guide))
	if err != nil {
		t.Fatal(err)
	}
	var all []step
	for _, b := range blocks {
		if len(b.Words) > 2 && b.Words[1] == "kube" {
			all = append(all, step{b, b.Words[2]})
		}
	}
	return all
}

// removes says whether the step takes away what others made.
func (s step) removes() bool { return s.Is("remove") }

// reader is somebody who follows a guide: one shell, whose variables stay from step to step, and from
// one reader to the next.
type reader struct {
	world  *world
	dir    string
	values map[string]string // what the reader has in place of the guide's examples
}

func newReader(t *testing.T, w *world) *reader {
	t.Helper()
	r := &reader{world: w, dir: filepath.Join(w.dir, "reader"), values: map[string]string{
		"hub.example.org": w.hubHost,
		"oci://ghcr.io/postern-dev/charts/private-network-agent": w.chart("private-network-agent"),
		"oci://ghcr.io/postern-dev/charts/postern-operator":      w.chart("postern-operator") + " --set proxy.image.pullPolicy=Never --set proxy.image.tag=" + version,
		"ghcr.io/postern-dev/postern:v0.1.0":                     "ghcr.io/postern-dev/postern:" + version,
		"deployment/my-controller":                               "deployment/consumer",
	}}
	bin := filepath.Join(r.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"kubectl": w.pair.A.Kubectl(), "helm": w.pair.A.Helm(), "postern": w.postern} {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	w.writeKubeconfig(t, filepath.Join(r.dir, "kubeconfig"))
	if err := os.WriteFile(filepath.Join(r.dir, "hub-ca.crt"), []byte(readFile(t, w.caFile())), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// follow runs one step as it stands in the guide. What two guides begin with in the same words is there
// already for the second.
func (r *reader) follow(t *testing.T, s step) {
	t.Helper()
	if r.world.followed[s.Text] {
		t.Logf("%s (%s): followed before", s.Heading, s.where)
		s.Text = linesWith(s.Text, "kubectl config use-context")
	} else if number, _, _ := strings.Cut(s.Heading, "."); number <= "3" {
		r.world.followed[s.Text] = true
	}
	text := s.Text
	for example, value := range r.values {
		text = strings.ReplaceAll(text, example, value)
	}
	began := time.Now()
	out, err := r.shell(t, s.where, text)
	t.Logf("%s (%s): %s", s.Heading, s.where, time.Since(began).Round(100*time.Millisecond))
	if err != nil {
		t.Fatalf("%s: %v\n%s", s.Heading, err, out)
	}
}

// shell runs commands where they belong. Variables that they set are there for the next.
func (r *reader) shell(t *testing.T, where, text string) (string, error) {
	t.Helper()
	vars := filepath.Join(r.dir, "variables")
	script := fmt.Sprintf("set -euo pipefail\ncd %[1]q\nif [ -e %[2]q ]; then source %[2]q; fi\nset -a\n%[3]s\nset +a\nexport -p >%[2]q\n", r.dir, vars, text)
	cmd := exec.CommandContext(limit(t, 4*time.Minute), "bash", "-c", script)
	cmd.Env = append(cleanEnvironment(), "HOME="+r.dir, "PATH="+filepath.Join(r.dir, "bin")+":"+os.Getenv("PATH"),
		"KUBECONFIG="+filepath.Join(r.dir, "kubeconfig"), "POSTERN_HUB=https://"+r.world.hubAddr(),
		"POSTERN_TOKEN_FILE="+r.world.adminToken(), "POSTERN_CA_FILE="+r.world.caFile())
	switch where {
	case "control-plane":
		return r.world.pair.A.Run(cmd)
	case "private":
		return r.world.pair.B.Run(cmd)
	case "hub":
		out, err := cmd.CombinedOutput()
		return string(out), err
	default:
		t.Fatalf("nobody runs commands of %q", where)
		return "", nil
	}
}

// cleanEnvironment is without what this machine says about proxies and clusters.
func cleanEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		return strings.HasSuffix(name, "_PROXY") || strings.HasPrefix(name, "POSTERN_") || strings.HasPrefix(name, "HELM_") ||
			slices.Contains([]string{"KUBECONFIG", "HOME", "PATH"}, name)
	})
}
