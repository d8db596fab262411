//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/fenced"
	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/image"
)

// podAgent is a second agent, which is a Pod and has no --allow: it may reach its own cluster's
// API server and nothing else.
const podAgent = "kube-pod"

// guide is the document whose manifest and kubeconfig the test applies.
const guide = "docs/guide/kubernetes.md"

// guideBlock returns the YAML of the guide that holds marker, with the reader's own values in the
// place of the example's. Each has to be there, so that the two do not grow apart.
func guideBlock(t *testing.T, marker string, values map[string]string) string {
	t.Helper()
	return blockOf(t, guide, marker, values)
}

// blockOf is guideBlock for any guide.
func blockOf(t *testing.T, guide, marker string, values map[string]string) string {
	t.Helper()
	block, err := fenced.Find(filepath.Join("..", "..", "..", filepath.FromSlash(guide)), "yaml", marker)
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for old, value := range values {
		pairs = append(pairs, old, value)
	}
	text, err := block.Replace(pairs...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// indent puts text where a literal block of YAML stands.
func indent(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// agentImage is the image of the guides' manifests.
const agentImage = "postern.test/postern:1"

// importAgent makes the image known to the cluster.
func importAgent(t *testing.T, c *cluster.Cluster, tunnel *tunnel) {
	t.Helper()
	err := c.Import(limit(t, quick), image.Image{
		Ref:        agentImage,
		Files:      map[string]string{"/bin/postern": tunnel.binary},
		Entrypoint: []string{"/bin/postern", "agent"},
		Env:        []string{"PATH=/bin"},
		User:       "65532",
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testPodAgent(t *testing.T, c *cluster.Cluster, tunnel *tunnel) {
	manifest := filepath.Join(t.TempDir(), "agent.yaml")
	objects := guideBlock(t, "kind: Deployment", map[string]string{
		`{"accessId": "…", "token": "…"}`:                                   indent(readFile(t, tunnel.robotToken())),
		"-----BEGIN CERTIFICATE-----\n    …\n    -----END CERTIFICATE-----": indent(readFile(t, tunnel.caFile())),
		"tls://hub.example.org:4222":                                        "tls://" + hubAddr,
		"value: production":                                                 "value: " + podAgent,
		"image: postern-agent # of your registry":                           "image: " + agentImage,
	})
	if err := os.WriteFile(manifest, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := limit(t, 3*quick)
	if _, err := c.KubectlInside(ctx, "create", "namespace", "postern"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "apply", "-n", "postern", "-f", manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "rollout", "status", "-n", "postern", "deployment/postern-agent", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), quick)
		defer cancel()
		out, err := c.KubectlInside(ctx, "logs", "-n", "postern", "deployment/postern-agent", "--tail=30")
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

	testGuideKubeconfig(ctx, t, c, kubectl, httpAddr)

	// Everything else is refused, by the agent's default.
	for _, target := range []string{net.JoinHostPort(cluster.NodeIP, "10250"), "web.via-proxy-url.svc.cluster.local:80"} {
		checkForbidden(t, httpAddr, target)
	}
}

// testGuideKubeconfig reaches the cluster with the kubeconfig of the guide, whose CA and token come
// from where it says.
func testGuideKubeconfig(ctx context.Context, t *testing.T, c *cluster.Cluster, kubectl client, httpAddr string) {
	ca, err := c.KubectlInside(ctx, "get", "configmap", "kube-root-ca.crt", "-o", `jsonpath={.data.ca\.crt}`)
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.ServiceAccountToken(ctx, "postern", "reader", "view")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"ca.crt": ca, "token": token,
		"kubeconfig": guideBlock(t, "kind: Config", map[string]string{
			"production-ca.crt": "ca.crt", "tokenFile: production-token": "tokenFile: token",
			"proxy-url: http://127.0.0.1:3128": "proxy-url: http://" + httpAddr,
		}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubectl.kubeconfig = filepath.Join(dir, "kubeconfig")
	if out := kubectl.must(t, "get", "deployments", "-n", "postern"); !strings.Contains(out, "postern-agent") {
		t.Errorf("the guide's kubeconfig shows\n%s", out)
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

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
