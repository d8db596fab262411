//go:build linux

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asRobot is the environment of somebody outside who has the robot's token, and nothing of
// the cluster.
func (m *tunnel) asRobot(t *testing.T) []string {
	t.Helper()
	return append(slices.DeleteFunc(os.Environ(), proxyVariables),
		"POSTERN_HUB=https://"+hubAddr, "POSTERN_TOKEN_FILE="+m.robotToken(), "POSTERN_CA_FILE="+m.caFile(), "HOME="+t.TempDir(),
		"PATH="+filepath.Dir(m.cluster.Kubectl())+":"+os.Getenv("PATH"))
}

// testKubeconfig uses the cluster at the gateway with what the program makes for kubectl: a
// kubeconfig whose plugin gives the token, and no kubeconfig at all. The objects of gateway
// are there already.
func testKubeconfig(t *testing.T, m *tunnel, gateway client) {
	dir := t.TempDir()
	kubectl := gateway
	kubectl.name, kubectl.kubeconfig = "kubeconfig", filepath.Join(dir, "kubeconfig")
	cmd := exec.CommandContext(limit(t, quick), m.binary, "kubeconfig", gatewayAgent, "--use")
	cmd.Env = append(m.asRobot(t), "KUBECONFIG="+kubectl.kubeconfig)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("postern kubeconfig: %v\n%s", err, out)
	}
	if text := readFile(t, kubectl.kubeconfig); strings.Contains(text, "eyJ") {
		t.Errorf("there is a token in the kubeconfig:\n%s", text)
	}
	kubectl.must(t, "config", "set-context", "--current", "--namespace", kubectl.namespace)
	if who := kubectl.must(t, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); who != gatewayUser {
		t.Errorf("the cluster sees %q", who)
	}
	for name, websockets := range map[string]string{"websocket": "true", "spdy": "false"} {
		t.Run("exec "+name, func(t *testing.T) { testExec(t, kubectl, websockets) })
		t.Run("port-forward "+name, func(t *testing.T) { testPortForward(t, kubectl, websockets) })
	}
	t.Run("without", func(t *testing.T) { testPosternKubectl(t, m, kubectl) })
}

// testPosternKubectl runs kubectl without any kubeconfig: its output, input and exit code
// come through, and nothing is left behind.
func testPosternKubectl(t *testing.T, m *tunnel, kubectl client) {
	tmp := t.TempDir()
	run := func(stdin string, args ...string) result {
		ctx := limit(t, quick)
		cmd := exec.CommandContext(ctx, m.binary, append([]string{"kubectl", gatewayAgent, "--"}, args...)...)
		cmd.Env = append(m.asRobot(t), "TMPDIR="+tmp)
		cmd.Stdin = strings.NewReader(stdin)
		return finish(ctx, cmd)
	}
	if r := run("", "get", "namespaces", "-o", "name"); r.code != 0 || r.err != nil || !strings.Contains(r.stdout, "namespace/"+kubectl.namespace+"\n") {
		t.Errorf("get: %d, %v\n%s%s", r.code, r.err, r.stdout, r.stderr)
	}
	const settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: by-hand}\ndata: {a: b}\n"
	if r := run(settings, "apply", "-n", kubectl.namespace, "-f", "-"); r.code != 0 || r.stdout != "configmap/by-hand created\n" {
		t.Errorf("apply: %d, %v\n%s%s", r.code, r.err, r.stdout, r.stderr)
	}
	if r := run("", "get", "configmap", "nothing", "-n", kubectl.namespace); r.code != 1 || !strings.Contains(r.stderr, "NotFound") {
		t.Errorf("not found: %d, %v\n%s%s", r.code, r.err, r.stdout, r.stderr)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
