//go:build linux

package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/pki"
)

const (
	// gatewayAgent is an agent that is a cluster at the hub's gateway, and nothing else.
	gatewayAgent = "kube-gateway"

	// gatewayUser is whom the cluster sees when the robot comes through the gateway.
	gatewayUser = "postern:robot:r1"
)

// gatewayAccount makes the service account of the gateway's guide and returns files with
// its token and the cluster's CA.
func gatewayAccount(t *testing.T, c *cluster.Cluster, dir string) (token, ca string) {
	t.Helper()
	const namespace, account = "gateway", "agent"
	inside := func(args ...string) string {
		t.Helper()
		out, err := c.KubectlInside(limit(t, quick), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	role := filepath.Join(dir, "role.yaml")
	text := blockOf(t, "docs/guide/gateway.md", "kind: ClusterRole", map[string]string{"name: postern-agent, namespace: postern": "name: " + account + ", namespace: " + namespace})
	if err := os.WriteFile(role, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inside("create", "namespace", namespace)
	inside("create", "serviceaccount", account, "-n", namespace)
	inside("apply", "-f", role)
	token, ca = filepath.Join(dir, "gateway.token"), filepath.Join(dir, "gateway-ca.crt")
	for file, text := range map[string]string{
		token: inside("create", "token", account, "-n", namespace, "--duration=1h"),
		ca:    inside("get", "configmap", "kube-root-ca.crt", "-o", `jsonpath={.data.ca\.crt}`),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return token, ca
}

// testGateway reaches the cluster by the hub's URL: kubectl knows no proxy and no
// credential of the cluster, and the cluster's RBAC decides by the robot's name.
func testGateway(t *testing.T, c *cluster.Cluster, m *tunnel) {
	token, ca := gatewayAccount(t, c, m.dir)
	cmd := exec.Command(m.binary, "agent", "--connect-url", "tls://"+hubAddr, "--organization", "default", "--agent-id", gatewayAgent,
		"--token-file", m.robotToken(), "--ca-file", m.caFile(), "--name", "r1", "--gateway",
		"--kubernetes-api", "https://kubernetes.default.svc.cluster.local", "--kubernetes-token-file", token, "--kubernetes-ca-file", ca)
	cmd.Env = slices.DeleteFunc(os.Environ(), proxyVariables)
	agent, err := c.Spawn("agent-gateway", cmd)
	if err != nil {
		t.Fatal(err)
	}
	m.owner.Cleanup(func() { m.stop(agent) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- the gateway's agent\n%s\n--- hub\n%s", agent.Tail(40), m.hub.Tail(20))
		}
	})

	var robot struct{ Token string }
	if err := json.Unmarshal([]byte(readFile(t, m.robotToken())), &robot); err != nil {
		t.Fatal(err)
	}
	kubectl := newClient(t, c.Kubectl(), "gateway", pki.Kubeconfig{
		Server: "https://" + hubAddr + "/" + gatewayAgent, CA: []byte(readFile(t, m.caFile())), Token: robot.Token,
	})
	m.waitUntilUseful(t, kubectl)
	if out := kubectl.must(t, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); !strings.Contains(out, gatewayUser) ||
		!strings.Contains(out, "postern:robots") || strings.Contains(out, "serviceaccount") {
		t.Errorf("the cluster sees %s", out)
	}
	t.Run("RBAC", func(t *testing.T) { testGatewayRBAC(t, c, kubectl) })
	if _, err := c.KubectlInside(limit(t, quick), "create", "clusterrolebinding", "robot", "--clusterrole=cluster-admin", "--user="+gatewayUser); err != nil {
		t.Fatal(err)
	}
	kubectl.must(t, "run", "quiet", "-n", "default", "--image", cluster.ToolImage, "--restart=Never", "--command", "--", "tick", "1h")
	kubectl.must(t, "wait", "-n", "default", "--for=condition=Ready", "pod/quiet", "--timeout=30s")
	quiet := startQuiet(t, m, kubectl, "quiet")
	t.Run("kubectl", func(t *testing.T) { testClient(t, c, kubectl) })
	t.Run("wait", func(t *testing.T) { testWait(t, kubectl) })
	for name, websockets := range map[string]string{"websocket": "true", "spdy": "false"} {
		t.Run("attach "+name, func(t *testing.T) { testAttach(t, kubectl, websockets) })
	}
	for _, s := range quiet {
		t.Run("quiet "+s.name, func(t *testing.T) { s.end(t) })
	}
	t.Run("as", func(t *testing.T) { testGatewayAs(t, kubectl) })
	t.Run("kubeconfig", func(t *testing.T) { testKubeconfig(t, m, kubectl) })
}

// refused wants kubectl to fail with a text.
func refused(t *testing.T, kubectl client, text string, args ...string) {
	t.Helper()
	if r := kubectl.run(limit(t, quick), nil, args...); r.err != nil || r.code == 0 || !strings.Contains(r.stdout+r.stderr, text) {
		t.Errorf("kubectl %v: exit code %d, %v\n%s%s\nwant a refusal with %q", args, r.code, r.err, r.stdout, r.stderr, text)
	}
}

// testGatewayRBAC: what a caller may do is what the cluster says.
func testGatewayRBAC(t *testing.T, c *cluster.Cluster, kubectl client) {
	refused(t, kubectl, `User "`+gatewayUser+`" cannot list resource "pods"`, "get", "pods", "-n", "kube-system")
	refused(t, kubectl, "no", "auth", "can-i", "list", "pods", "-n", "kube-system")
	refused(t, kubectl, `User "`+gatewayUser+`" cannot impersonate resource "users"`, "get", "pods", "-n", "kube-system", "--as", "system:admin", "--as-group", "system:masters")
	if _, err := c.KubectlInside(limit(t, quick), "create", "rolebinding", "robot", "-n", "kube-system", "--clusterrole=view", "--group=postern:robots"); err != nil {
		t.Fatal(err)
	}
	kubectl.must(t, "get", "pods", "-n", "kube-system")
	if out := kubectl.must(t, "auth", "can-i", "list", "pods", "-n", "kube-system"); strings.TrimSpace(out) != "yes" {
		t.Errorf("can-i says %q", out)
	}
	refused(t, kubectl, "cannot list resource", "get", "secrets", "-n", "kube-system")
}

// testGatewayAs: the robot, which may do all now, may be somebody who may do little.
func testGatewayAs(t *testing.T, kubectl client) {
	if out := kubectl.must(t, "auth", "whoami", "--as", "bob", "--as-group", "dev", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); !strings.HasPrefix(out, "bob ") ||
		!strings.Contains(out, "dev") || strings.Contains(out, "robot") {
		t.Errorf("the cluster sees %s", out)
	}
	refused(t, kubectl, `User "bob" cannot list resource "pods"`, "get", "pods", "--as", "bob")
}
