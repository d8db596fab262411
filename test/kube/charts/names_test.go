//go:build linux

package charts_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/documents"
)

// TestNamesOfProxies installs the definitions as the chart has them with compat.upbound.enabled, and
// asks for a Proxy by the names that the documents use. Our own group is there beside it.
func TestNamesOfProxies(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(folder, "testdata", "postern-operator", "documents.golden.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var definitions []string
	for _, part := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		if strings.Contains(part, "\nkind: CustomResourceDefinition\n") {
			definitions = append(definitions, part)
		}
	}
	if len(definitions) != 2 {
		t.Fatalf("the chart has %d definitions", len(definitions))
	}
	s := apiserver.StartT(t)
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		out, err := s.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	kubectl(strings.Join(definitions, "\n---\n"), "apply", "-f", "-")
	kubectl("", "wait", "--for=condition=Established", "--timeout=30s", "crd/proxies.spaces.upbound.io", "crd/proxies.postern.dev")
	kubectl(documents.Proxy, "apply", "-f", "-")
	kubectl(strings.NewReplacer("spaces.upbound.io", "postern.dev", "private-cluster", "ours").Replace(documents.Proxy), "apply", "-f", "-")
	kubectl("", "patch", "proxy", "private-cluster", "--subresource=status", "--type=merge", "-p", `{"status":{"agentID":"an-id","phase":"Connected"}}`)
	if id := kubectl("", "get", "proxy", "private-cluster", "-o", "jsonpath={.status.agentID}"); id != "an-id" {
		t.Errorf("the agent's ID is %q", id)
	}
	for name, want := range map[string]string{
		"proxy": "private-cluster", "px": "private-cluster", "spaces": "private-cluster",
		"proxies.postern.dev": "ours", "postern": "ours",
	} {
		if out := kubectl("", "get", name, "--no-headers"); !strings.HasPrefix(out, want) && !strings.Contains(out, "/"+want) || strings.Count(out, "\n") != 1 {
			t.Errorf("kubectl get %s:\n%s", name, out)
		}
	}
}
