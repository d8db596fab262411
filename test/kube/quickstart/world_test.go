//go:build linux

package quickstart_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/image"
	"postern.dev/postern/test/kube/proc"
)

const (
	// version is that of the images and the programs under test.
	version       = "v0.0.0-test"
	nextVersion   = "v0.0.1-test" // the same images by another tag
	hubPort       = "4222"
	consumerImage = "postern.test/consumer:1"
)

// world is what there is before anybody follows a guide: two clusters whose nodes have the
// images, and a hub on the host, which issues identity tokens too. Its parts run one after the other.
type world struct {
	pair    *cluster.Pair
	root    string // of the repository
	dir     string
	postern string // the program
	hubHost string
	hub     *proc.Process

	followed    map[string]bool // the texts of steps that stand in both guides, and were followed
	quickStart  *reader         // who followed the quick start; nil before
	works       bool            // the quick start did
	identitySet bool            // the guide to identity tokens was followed
	identified  *identified     // a provider with an identity token; nil before
}

// newWorld builds images and programs while the clusters start.
func newWorld(t *testing.T) *world {
	t.Helper()
	began := time.Now()
	w := &world{root: root(t), dir: t.TempDir(), hubHost: cluster.HostIP, followed: map[string]bool{}}
	w.postern = filepath.Join(w.dir, "postern")
	w.trust(t, nobody)
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() (err error) {
		w.pair, err = cluster.StartPair(ctx, cluster.Options{Logf: t.Logf},
			cluster.Options{Logf: t.Logf, APIServer: []string{"--authentication-config", w.authentication()}})
		return err
	})
	group.Go(func() error { return w.build(ctx) })
	err := group.Wait()
	if w.pair != nil {
		t.Cleanup(w.pair.Close)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("clusters and images after %s", time.Since(began).Round(100*time.Millisecond))
	group, ctx = errgroup.WithContext(t.Context())
	for c, names := range map[*cluster.Cluster][]string{w.pair.A: {"postern", "postern-operator"}, w.pair.B: {"postern-agent", "postern"}} {
		group.Go(func() error { return w.load(ctx, c, names) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	w.startHub(t)
	t.Logf("images on the nodes and hub after %s", time.Since(began).Round(100*time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of A:\n%s\nlogs of B:\n%s\nhub:\n%s", w.pair.A.Logs(5), w.pair.B.Logs(5), w.hub.Tail(20))
		}
	})
	return w
}

// build makes the images as a release does, and the programs of the test.
func (w *world) build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "tools/release.sh", "--images", version, w.dir, "linux/"+runtime.GOARCH)
	cmd.Dir = w.root
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "SOURCE_REVISION=test")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the images: %w\n%s", err, out)
	}
	if err := unpackProgram(w.archive("postern"), "usr/local/bin/postern", w.postern); err != nil {
		return err
	}
	return cluster.GoBuild(ctx, "", filepath.Join(w.dir, "consumer"), "postern.dev/postern/test/kube/consumer")
}

// archive is where the image of a program is.
func (w *world) archive(name string) string {
	return filepath.Join(w.dir, "images", fmt.Sprintf("%s_%s_linux_%s.tar", name, version, runtime.GOARCH))
}

// load puts images onto a node, which can pull from nowhere.
func (w *world) load(ctx context.Context, c *cluster.Cluster, names []string) error {
	for _, name := range names {
		if err := c.ImportArchive(ctx, w.archive(name)); err != nil {
			return err
		}
		if err := c.Tag(ctx, "ghcr.io/postern-dev/"+name+":"+version, "ghcr.io/postern-dev/"+name+":"+nextVersion); err != nil {
			return err
		}
	}
	return c.Import(ctx, image.Image{
		Ref: consumerImage, Files: map[string]string{"/bin/consumer": filepath.Join(w.dir, "consumer")},
		Entrypoint: []string{"/bin/consumer"}, User: "65532",
	})
}

func (w *world) hubAddr() string    { return net.JoinHostPort(w.hubHost, hubPort) }
func (w *world) caFile() string     { return filepath.Join(w.dir, "hub", "ca.crt") }
func (w *world) adminToken() string { return filepath.Join(w.dir, "hub", "admin.token") }

// chart is what a reader of the test writes where the guide names a published chart.
func (w *world) chart(name string) string {
	return fmt.Sprintf("%s --set image.tag=%s --set image.pullPolicy=Never", filepath.Join(w.root, "charts", name), version)
}

// helm runs Helm on a cluster.
func (w *world) helm(ctx context.Context, c *cluster.Cluster, args ...string) (string, error) {
	kubeconfig, err := c.InsideKubeconfig()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, c.Helm(), append([]string{"--kubeconfig", kubeconfig}, args...)...)
	cmd.Env = append(cleanEnvironment(), "HOME="+w.dir)
	out, err := c.Run(cmd)
	if err != nil {
		err = fmt.Errorf("helm %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return out, err
}

// upgradeChart changes values of a release, and of no value more.
func (w *world) upgradeChart(ctx context.Context, c *cluster.Cluster, name, namespace string, values ...string) error {
	args := []string{"upgrade", name, filepath.Join(w.root, "charts", name), "-n", namespace, "--reuse-values", "--wait", "--timeout", "90s"}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	_, err := w.helm(ctx, c, args...)
	return err
}

// admin runs the postern program as the hub's administrator.
func (w *world) admin(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(limit(t, time.Minute), w.postern, args...)
	cmd.Env = append(cleanEnvironment(), "HOME="+w.dir, "POSTERN_HUB=https://"+w.hubAddr(), "POSTERN_TOKEN_FILE="+w.adminToken(), "POSTERN_CA_FILE="+w.caFile())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("postern %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startHub starts the hub on the host, as First minutes says.
func (w *world) startHub(t *testing.T) {
	t.Helper()
	cmd := exec.Command(w.postern, "hub", "--data", filepath.Join(w.dir, "hub"), "--listen", w.hubAddr(), "--issuer-url", w.issuerURL())
	cmd.Env = cleanEnvironment()
	hub, err := proc.Start("hub", filepath.Join(w.dir, "hub.log"), cmd, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	w.hub = hub
	t.Cleanup(hub.Kill) // the clusters still use it
	err = proc.Wait(limit(t, time.Minute), "the hub listens", func(ctx context.Context) error {
		for _, file := range []string{w.adminToken(), w.caFile()} {
			if _, err := os.Stat(file); err != nil {
				return err
			}
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.hubAddr())
		if err != nil {
			return err
		}
		return conn.Close()
	}, hub)
	if err != nil {
		t.Fatal(err)
	}
}

// writeKubeconfig writes a kubeconfig with a context for each cluster.
func (w *world) writeKubeconfig(t *testing.T, name string) {
	t.Helper()
	var clusters, users, contexts string
	for context, c := range map[string]*cluster.Cluster{"control-plane": w.pair.A, "private-cluster": w.pair.B} {
		admin := c.AdminKubeconfig(c.Direct(), "")
		clusters += fmt.Sprintf("- {name: %s, cluster: {server: %q, certificate-authority-data: %s}}\n", context, admin.Server, base64.StdEncoding.EncodeToString(admin.CA))
		users += fmt.Sprintf("- {name: %s, user: {client-certificate: %q, client-key: %q}}\n", context, admin.Client.CertFile, admin.Client.KeyFile)
		contexts += fmt.Sprintf("- {name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}\n", context)
	}
	text := "apiVersion: v1\nkind: Config\nclusters:\n" + clusters + "users:\n" + users + "contexts:\n" + contexts
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// root is the repository's folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// limit is a context for one part of a test, which fails rather than hangs.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
