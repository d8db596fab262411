package bins

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// build is one module of which some main packages are wanted. Its go.mod and go.sum are embedded
// as modules/<module>.mod and .sum; a .main file, if there is one, is the module's own program.
type build struct {
	module   string
	version  string
	packages []string
	ldflags  string
	own      bool
}

// builds lists what the tests need. Kubernetes comes first: CoreDNS then finds client-go compiled.
func builds() []build {
	const (
		kubernetes = "v1.36.3"
		version    = "k8s.io/component-base/version"
	)
	return []build{{
		module:  "kubernetes",
		version: kubernetes,
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kube-proxy",
			"k8s.io/kubernetes/cmd/kubectl",
		},
		ldflags: "-s -w -X " + version + ".gitVersion=" + kubernetes + " -X " + version + ".gitMajor=1 -X " +
			version + ".gitMinor=36 -X " + version + ".gitTreeState=clean",
	}, {
		module:   "etcd",
		version:  "v3.6.16",
		packages: []string{"go.etcd.io/etcd/server/v3"},
		ldflags:  "-s -w",
	}, {
		module:   "helm",
		version:  "v4.3.1",
		packages: []string{"helm.sh/helm/v4/cmd/helm"},
		ldflags:  "-s -w",
	}, {
		module:   "coredns",
		version:  "v1.14.7",
		packages: []string{"coredns"},
		ldflags:  "-s -w",
		own:      true,
	}}
}

func (b build) title() string { return b.module + " " + b.version }

// templates are the embedded files of the module.
func (b build) templates() []string {
	names := []string{"modules/" + b.module + ".mod", "modules/" + b.module + ".sum"}
	if b.own {
		names = append(names, "modules/"+b.module+".main")
	}
	return names
}

// program is the file name of a package's binary. etcd's main package is the root of a module
// whose path ends in "server/v3", so the go command would name it "server".
func program(pkg string) string {
	if pkg == "go.etcd.io/etcd/server/v3" {
		return "etcd"
	}
	return path.Base(pkg)
}

func (b build) programs() []string {
	names := make([]string, len(b.packages))
	for i, pkg := range b.packages {
		names[i] = program(pkg)
	}
	return names
}

// args are the go command's. One fixed set of flags keeps the go command's own cache warm.
func (b build) args(out string) []string {
	args := []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", b.ldflags, "-v", "-o", out}
	if b.own {
		return append(args, ".")
	}
	return append(args, b.packages...)
}

// run builds into a folder beside bin and then moves each program into place, so that bin never
// holds half a file.
func (b build) run(ctx context.Context, root, bin string, logf Logf) error {
	work, err := os.MkdirTemp(root, b.module+"-")
	if err != nil {
		return fmt.Errorf("make a folder to build %s: %w", b.module, err)
	}
	defer os.RemoveAll(work)
	names := map[string]string{".mod": "go.mod", ".sum": "go.sum", ".main": "main.go"}
	for _, name := range b.templates() {
		text, err := modules.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read the embedded module file %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(work, names[path.Ext(name)]), text, 0o644); err != nil {
			return fmt.Errorf("write the module of %s: %w", b.module, err)
		}
	}
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return fmt.Errorf("make the output folder of %s: %w", b.module, err)
	}
	target := out + string(filepath.Separator)
	if len(b.packages) == 1 {
		target = filepath.Join(out, program(b.packages[0]))
	}
	logPath := filepath.Join(root, b.module+".log")
	if err := goBuild(ctx, work, logPath, b.module, b.args(target), logf); err != nil {
		return err
	}
	for _, name := range b.programs() {
		if err := os.Rename(filepath.Join(out, name), filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("put %s into place: %w", name, err)
		}
	}
	return nil
}

// goBuild runs the go command at low priority, keeps its output in logPath and reports every
// half minute how many packages it has compiled.
func goBuild(ctx context.Context, dir, logPath, name string, args []string, logf Logf) error {
	log, err := os.Create(logPath)
	if err != nil {
		return fmt.Errorf("make the build log of %s: %w", name, err)
	}
	defer log.Close()

	command, args := withNice("go", args)
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GOFLAGS=")
	}), "CGO_ENABLED=0", "GOWORK=off", "GOTOOLCHAIN=local", "GOFLAGS=")
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer

	done := make(chan struct{})
	go func() { // ends when writer is closed below
		defer close(done)
		count(io.TeeReader(reader, log), name, logf)
	}()
	start := time.Now()
	err = cmd.Run()
	writer.Close()
	<-done
	if err != nil {
		return fmt.Errorf("build %s: %w (output: %s)%s", name, err, logPath, tail(logPath, 10))
	}
	logf("bins: %s built in %s", name, time.Since(start).Round(time.Second))
	return nil
}

// count reports how many lines, which are packages with -v, have passed.
func count(r io.Reader, name string, logf Logf) {
	lines := bufio.NewScanner(r)
	last, n := time.Now(), 0
	for lines.Scan() {
		n++
		if time.Since(last) > 30*time.Second {
			last = time.Now()
			logf("bins: %s: %d packages, now %s", name, n, lines.Text())
		}
	}
	// A line too long for the scanner must not stop the build.
	_, _ = io.Copy(io.Discard, r)
}

// withNice lets the machine's other work go first, where nice exists.
func withNice(name string, args []string) (string, []string) {
	if _, err := exec.LookPath("nice"); err != nil {
		return name, args
	}
	return "nice", append([]string{"-n", "10", name}, args...)
}

// tail returns the last lines of a file, for an error's text.
func tail(name string, lines int) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "\n" + strings.Join(all, "\n")
}
