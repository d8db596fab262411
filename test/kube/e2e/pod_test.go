//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/image"
)

// podAgent is a second agent, which is a Pod and has no --allow: it may reach its own cluster's
// API server and nothing else.
const podAgent = "kube-pod"

func podAgentObjects(token, ca string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: postern}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: postern}
---
apiVersion: v1
kind: Secret
metadata: {name: agent, namespace: postern}
data: {token.json: %[1]s, ca.crt: %[2]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: agent, namespace: postern}
spec:
  replicas: 1
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      serviceAccountName: agent
      securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532}
      containers:
      - name: agent
        image: postern.test/postern:1
        args: [agent, --connect-url, "tls://%[3]s", --organization, default, --agent-id, %[4]s,
          --token-file, /etc/postern/token.json, --ca-file, /etc/postern/ca.crt]
        securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: identity, mountPath: /etc/postern, readOnly: true}]
      volumes:
      - {name: identity, secret: {secretName: agent, defaultMode: 0440}}
`, token, ca, hubAddr, podAgent)
}

func testPodAgent(t *testing.T, c *cluster.Cluster, tunnel *tunnel) {
	err := c.Import(limit(t, quick), image.Image{
		Ref:        "postern.test/postern:1",
		Files:      map[string]string{"/bin/postern": tunnel.binary},
		Entrypoint: []string{"/bin/postern"},
		Env:        []string{"PATH=/bin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), "agent.yaml")
	objects := podAgentObjects(encodeFile(t, tunnel.robotToken()), encodeFile(t, tunnel.caFile()))
	if err := os.WriteFile(manifest, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := limit(t, 3*quick)
	if _, err := c.KubectlInside(ctx, "apply", "-f", manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "rollout", "status", "-n", "postern", "deployment/agent", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), quick)
		defer cancel()
		out, err := c.KubectlInside(ctx, "logs", "-n", "postern", "deployment/agent", "--tail=30")
		t.Logf("log of the agent's pod: %v\n%s", err, out)
	})

	httpAddr := freeAddr(t)
	tunnel.startProxy(t, "proxy-pod", podAgent, httpAddr, freeAddr(t))
	kubectl := tunnel.viaProxyURL(t, "pod", "http://"+httpAddr)
	tunnel.waitUntilUseful(t, kubectl)
	kubectl.must(t, "create", "namespace", kubectl.namespace)
	kubectl.must(t, "run", "clock", "--image", cluster.ToolImage, "--restart=Never", "--command", "--", "tick", "50ms")
	kubectl.must(t, "wait", "--for=condition=Ready", "pod/clock", "--timeout=30s")
	testExec(t, kubectl, "true")

	// Everything else is refused, by the agent's default.
	for _, target := range []string{net.JoinHostPort(cluster.NodeIP, "10250"), "web.via-proxy-url.svc.cluster.local:80"} {
		checkForbidden(t, httpAddr, target)
	}
}

// checkForbidden asks a proxy for a target that policy does not allow.
func checkForbidden(t *testing.T, proxyAddr, target string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", proxyAddr, quick)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if err := request.Write(conn); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(quick)); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		t.Fatalf("CONNECT %s: %v", target, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusForbidden || !strings.Contains(response.Header.Get("Proxy-Status"), "error=") {
		t.Errorf("CONNECT %s: %s, Proxy-Status %q; want 403 with an error", target, response.Status, response.Header.Get("Proxy-Status"))
	}
}

func encodeFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(text)
}
