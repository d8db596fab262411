//go:build linux

package guides_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/test/guides/doc"
	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/proc"
)

const (
	root  = "../.."
	quick = 30 * time.Second
	// office is the agent of the guides' examples.
	office = "office"
	// apiName is by what name pods know their API server, and inside the address that is behind
	// this and other names for the agent alone.
	apiName = "kubernetes.default.svc.cluster.local"
	inside  = "127.77.0.1"
)

// world is a cluster whose agent is at a hub's gateway, and a proxy outside. The names of the
// cluster mean something to the agent only, so that nothing else gets there by them.
type world struct {
	api     *apiserver.Server
	dir     string // the reader's folder, with hub-ca.crt, token.json and token
	postern string // the program
	hub     *proc.Process
	agent   *proc.Process
	proxy   *proc.Process
	// hubAddr and proxyAddr are where hub and proxy listen, HOST:PORT.
	hubAddr, proxyAddr string
}

// need builds a program, and fails the test if it cannot.
func need(t *testing.T, tool tools.Tool) tools.Built {
	t.Helper()
	built, err := tool.Ensure(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return built
}

// newWorld starts an API server, a hub, an agent and a proxy, and follows the guides' beginning.
// The agent allows the targets, beside the API server.
func newWorld(t *testing.T, allow ...string) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the API server is to be found at port 443, and the agent has names of its own: this needs root")
	}
	w := &world{dir: t.TempDir(), hubAddr: freeAddr(t), proxyAddr: freeAddr(t)}
	w.postern = filepath.Join(w.dir, "bin", "postern")
	if err := cluster.GoBuild(t.Context(), root, w.postern, "./cmd/postern"); err != nil {
		t.Fatal(err)
	}
	w.api = apiserver.StartT(t)
	if err := os.Symlink(w.api.KubectlPath(), w.file("bin/kubectl")); err != nil {
		t.Fatal(err)
	}
	w.startHub(t)
	w.shell(t, example(t, "many-clusters.md", "postern robot create deployer"))
	w.startAgent(t, allow)
	kubectl(t, w.api, example(t, "many-clusters.md", "kind: ClusterRoleBinding"), "apply", "-f", "-")
	// What makes "edit" of these is a controller, of which there is none here.
	for _, role := range []string{"system:aggregate-to-edit", "system:aggregate-to-view"} {
		kubectl(t, w.api, "", "create", "clusterrolebinding", role+"-deployer", "--clusterrole="+role, "--user=postern:robot:deployer")
	}
	w.proxy = w.start(t, "proxy", exec.Command(w.postern, "proxy", "--connect-url", "tls://"+w.hubAddr, "--organization", "default",
		"--agent-id", office, "--token-file", w.file("token.json"), "--ca-file", w.file("hub-ca.crt"), "--http", w.proxyAddr))
	w.await(t, "the API server answers at the gateway", func(ctx context.Context) error {
		out, err := w.run(ctx, "curl -sS --fail-with-body --cacert hub-ca.crt -H \"Authorization: Bearer $(cat token)\" https://"+w.hubAddr+"/office/api/v1/namespaces/default/configmaps")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}, w.hub, w.agent, w.proxy)
	return w
}

// startHub starts the hub on the host, as First minutes says.
func (w *world) startHub(t *testing.T) {
	t.Helper()
	w.hub = w.start(t, "hub", exec.Command(w.postern, "hub", "--data", w.file("hub"), "--listen", w.hubAddr))
	w.await(t, "the hub listens", func(ctx context.Context) error {
		if _, err := os.Stat(w.file("hub/admin.token")); err != nil {
			return err
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", w.hubAddr)
		if err != nil {
			return err
		}
		return conn.Close()
	}, w.hub)
	if err := os.WriteFile(w.file("hub-ca.crt"), []byte(w.read(t, "hub/ca.crt")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startAgent starts the agent with the service account of the gateway's guide. It has a file
// /etc/hosts of its own.
func (w *world) startAgent(t *testing.T, allow []string) {
	t.Helper()
	w.forward(t, inside+":443", w.api.Addr())
	kubectl(t, w.api, "", "create", "namespace", "postern")
	kubectl(t, w.api, "", "create", "serviceaccount", "postern-agent", "-n", "postern")
	kubectl(t, w.api, example(t, "gateway.md", "postern-gateway"), "apply", "-f", "-")
	w.write(t, "agent.token", kubectl(t, w.api, "", "create", "token", "postern-agent", "-n", "postern", "--duration=1h"))
	names := []string{apiName}
	args := []string{"agent", "--connect-url", "tls://" + w.hubAddr, "--organization", "default", "--agent-id", office,
		"--token-file", "token.json", "--ca-file", "hub-ca.crt", "--gateway", "--kubernetes-api", "https://" + w.api.Addr(),
		"--kubernetes-token-file", "agent.token", "--kubernetes-ca-file", w.api.CAFile(), "--allow", "tcp:" + apiName + ":443", "--allow", "tcp:" + inside + ":443"}
	for _, target := range allow {
		_, hostPort, _ := strings.Cut(target, ":")
		host, port, err := net.SplitHostPort(hostPort)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, host)
		// A rule for a name allows no loopback address.
		args = append(args, "--allow", target, "--allow", "tcp:"+inside+":"+port)
	}
	hosts := w.write(t, "hosts", "127.0.0.1 localhost\n"+inside+" "+strings.Join(names, " ")+"\n")
	script := `mount --bind "$0" /etc/hosts && exec "$@"`
	w.agent = w.start(t, "agent", exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, hosts, w.postern}, args...)...))
}

// forward takes connections at one address to another, until the end of the test.
func (w *world) forward(t *testing.T, from, to string) {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				// The end of either direction is the end of both.
				running.Go(func() { defer in.Close(); defer out.Close(); _, _ = io.Copy(out, in) })
				_, _ = io.Copy(in, out)
			})
		}
	})
}

// file is a path in the reader's folder.
func (w *world) file(name string) string { return filepath.Join(w.dir, filepath.FromSlash(name)) }

// read is the text of a file in the reader's folder.
func (w *world) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(w.file(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// write writes a file into the reader's folder, and returns its path.
func (w *world) write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.file(name)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.file(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w.file(name)
}

// token is the robot's.
func (w *world) token(t *testing.T) string { t.Helper(); return strings.TrimSpace(w.read(t, "token")) }

// hubCA is the hub's certificate as kubeconfigs have it.
func (w *world) hubCA(t *testing.T) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString([]byte(w.read(t, "hub-ca.crt")))
}

// start starts a program on the host, in the reader's folder, until the end of the test. It has a
// clean environment and what its command adds.
func (w *world) start(t *testing.T, name string, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	cmd.Dir, cmd.Env = w.dir, append(environment(), append(cmd.Env, "HOME="+w.dir)...)
	p, err := proc.Start(name, w.file(name+".log"), cmd, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("--- %s\n%s", name, p.Tail(40))
		}
	})
	return p
}

// run runs commands in the reader's folder, with the settings of the hub's administrator.
func (w *world) run(ctx context.Context, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = w.dir
	cmd.Env = append(environment(), "HOME="+w.dir, "PATH="+w.file("bin")+":"+os.Getenv("PATH"),
		"POSTERN_HUB=https://"+w.hubAddr, "POSTERN_TOKEN_FILE="+w.file("hub/admin.token"), "POSTERN_CA_FILE="+w.file("hub/ca.crt"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// shell runs commands, which have to succeed.
func (w *world) shell(t *testing.T, script string) string {
	t.Helper()
	out, err := w.run(limit(t, 4*quick), script)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return out
}

// kubectl runs kubectl as administrator of a cluster, straight at its API server.
func kubectl(t *testing.T, s *apiserver.Server, stdin string, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(limit(t, 3*quick), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// define makes the definitions that are in a folder.
func define(t *testing.T, control *apiserver.Server, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the definitions in %s: %v, %v", dir, files, err)
	}
	for _, name := range files {
		kubectl(t, control, "", "create", "-f", name)
	}
}

// await waits for something, two minutes at most, and fails if a process ends before.
func (w *world) await(t *testing.T, what string, check func(context.Context) error, processes ...*proc.Process) {
	t.Helper()
	if err := proc.Wait(limit(t, 4*quick), what, check, processes...); err != nil {
		t.Fatal(err)
	}
}

// configMap waits until the private cluster has a ConfigMap of that name in its namespace default.
func (w *world) configMap(t *testing.T, name string, processes ...*proc.Process) {
	t.Helper()
	w.await(t, "the private cluster has the ConfigMap "+name, func(ctx context.Context) error {
		_, err := w.api.Kubectl(ctx, "", "get", "configmap", name, "-n", "default")
		return err
	}, processes...)
}

// recorded wants the hub's audit log to have what a program did, so that it went this way and no other.
func (w *world) recorded(t *testing.T, action, target string) {
	t.Helper()
	w.await(t, "the audit log has a "+action+" of "+target, func(ctx context.Context) error {
		out, err := w.run(ctx, "postern audit -o json --actor robot:deployer --action "+action+" --target '"+target+"'")
		if err == nil && !strings.Contains(out, target) {
			err = errors.New("it has none")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// example is the block of a guide that holds a text, with our values in the place of the guide's.
func example(t *testing.T, guide, text string, pairs ...string) string {
	t.Helper()
	found, err := doc.Find(root, guide, text)
	if err != nil {
		t.Fatal(err)
	}
	replaced, err := found.Replace(pairs...)
	if err != nil {
		t.Fatal(err)
	}
	return replaced
}

// environment is this machine's, without what it says about proxies and clusters.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		return strings.HasSuffix(name, "_PROXY") || strings.HasPrefix(name, "POSTERN_") || slices.Contains([]string{"KUBECONFIG", "HOME"}, name)
	})
}

// limit is a context for one part of a test, which fails rather than hangs.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// freeAddr is a loopback address that nothing listens on, with a port below those that the kernel
// gives to connections.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port between 20000 and 32000")
	return ""
}
