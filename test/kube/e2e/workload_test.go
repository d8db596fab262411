//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/cluster"
)

const (
	// workloadGuide is the document whose commands and manifest the test takes.
	workloadGuide = "docs/guide/workload-tokens.md"

	// workloadAgent is an agent in Pods that hold no secret: they enrol with the token
	// that the cluster gives their service account.
	workloadAgent = "kube-workload"
)

// testWorkload has an agent enrol by nothing but its service account's token. The hub
// cannot reach the cluster, so it is given the cluster's keys. Without the trust, the
// agent is refused and cut off.
func testWorkload(t *testing.T, c *cluster.Cluster, tunnel *tunnel) {
	ctx := limit(t, 4*quick)
	keys, err := c.KubectlInside(ctx, "get", "--raw", "/openid/v1/jwks")
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(keyFile, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	tunnel.control(t, "trust", "add", cluster.Server, "--jwks-file", keyFile,
		"--audience", "postern", "--claim", "sub=system:serviceaccount:postern-agent:postern-agent", "--agent", workloadAgent)

	pin := regexp.MustCompile("sha256:[0-9a-f]{64}").FindString(tunnel.control(t, "ca", "list"))
	manifest := filepath.Join(t.TempDir(), "agent.yaml")
	objects := blockOf(t, workloadGuide, "kind: Deployment", map[string]string{
		"tls://hub.example.org:4222":              "tls://" + hubAddr,
		"sha256:…":                                pin,
		"value: cluster-7":                        "value: " + workloadAgent,
		"image: postern-agent # of your registry": "image: " + agentImage,
	})
	if err := os.WriteFile(manifest, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "create", "namespace", "postern-agent"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "apply", "-n", "postern-agent", "-f", manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KubectlInside(ctx, "rollout", "status", "-n", "postern-agent", "deployment/postern-agent", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), quick)
			defer cancel()
			out, err := c.KubectlInside(ctx, "logs", "-n", "postern-agent", "-l", "app=postern-agent", "--tail=30")
			t.Logf("log of the agent's pods: %v\n%s", err, out)
		}
	})
	if secrets, err := c.KubectlInside(ctx, "get", "secrets", "-n", "postern-agent", "-o", "name"); err != nil || strings.TrimSpace(secrets) != "" {
		t.Errorf("secrets in the agent's namespace: %q, %v", secrets, err)
	}

	httpAddr := freeAddr(t)
	tunnel.startProxy(t, "proxy-workload", workloadAgent, httpAddr, freeAddr(t))
	kubectl := tunnel.viaProxyURL(t, "workload", "http://"+httpAddr)
	tunnel.waitUntilUseful(t, kubectl)
	kubectl.must(t, "get", "namespaces")

	tunnel.control(t, "trust", "remove", workloadAgent)
	tunnel.waitFor(t, "no replica of the agent is connected", func(context.Context) error {
		for line := range strings.Lines(tunnel.control(t, "agents")) {
			if strings.HasPrefix(line, workloadAgent+" ") && strings.Contains(line, " ready ") {
				return fmt.Errorf("still there: %s", line)
			}
		}
		return nil
	})
}
