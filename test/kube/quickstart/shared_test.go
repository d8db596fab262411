//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sharedAgent has another team's Proxy, in its namespace and with its own robot, name the same agent.
// Both work at once. When the other one selects the consumer's pod too, both say so, and the older
// keeps it. When it is gone, with its robot, the first goes on; so it does when one of the agent's pods
// is deleted.
func (w *world) sharedAgent(t *testing.T) {
	const namespace = "team-b"
	before := w.made(t)
	agentID := kubectl(t, w.pair.A, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.agentID}")
	token := filepath.Join(w.dir, "team-b.json")
	w.admin(t, "robot", "create", namespace)
	w.admin(t, "robot", "token", "create", namespace, "one", "-f", token)
	kubectl(t, w.pair.A, "create", "namespace", namespace)
	kubectl(t, w.pair.A, "create", "secret", "generic", "robot-token", "-n", namespace, "--from-file=token="+token)
	w.apply(t, fmt.Sprintf(`{apiVersion: postern.dev/v1alpha1, kind: Proxy, metadata: {name: other, namespace: %s}, spec: {agentID: %s,
  secretRef: {name: robot-token, key: token}, podSelector: {matchLabels: {pkg.crossplane.io/provider: provider-b}}}}`, namespace, agentID))
	w.copyKubeconfig(t, namespace)
	w.apply(t, strings.NewReplacer("crossplane-system", namespace, "provider-kubernetes", "provider-b", "test-configmap", "of-team-b").Replace(consumerObjects))
	eventually(t, "the other team's ConfigMap is in the private cluster", 2*time.Minute, func(ctx context.Context) error {
		_, err := w.pair.B.KubectlInside(ctx, "get", "configmap", "of-team-b", "-n", "default")
		return err
	})
	w.changes(t, "beside another team")

	kubectl(t, w.pair.A, "patch", "proxy", "other", "-n", namespace, "--type=merge",
		"-p", `{"spec":{"podSelector":{"matchLabels":null,"matchExpressions":[{"key":"pkg.crossplane.io/provider","operator":"In","values":["provider-b","provider-kubernetes"]}]}}}`)
	w.conflict(t, "default", "private-cluster", "True")
	w.conflict(t, namespace, "other", "True")

	w.undisturbed(t, func() {
		kubectl(t, w.pair.A, "delete", "proxy", "other", "-n", namespace, "--timeout=50s")
		w.admin(t, "robot", "delete", namespace)
		pod := strings.Fields(kubectl(t, w.pair.B, "get", "pods", "-n", "default", "-o", "name"))[0]
		kubectl(t, w.pair.B, "delete", pod, "-n", "default", "--grace-period=2")
		kubectl(t, w.pair.B, "rollout", "status", "deployment/private-network-agent", "-n", "default", "--timeout=50s")
	})
	w.conflict(t, "default", "private-cluster", "False")
	w.remade(t, before, 0, 0)
	kubectl(t, w.pair.A, "delete", "namespace", namespace, "--wait=false")
	kubectl(t, w.pair.B, "delete", "configmap", "of-team-b", "-n", "default")
}

// conflict waits until a Proxy says whether another one selects its pods, and which.
func (w *world) conflict(t *testing.T, namespace, name, want string) {
	t.Helper()
	eventually(t, "the condition Conflict of "+name+" is "+want, time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxy", name, "-n", namespace, "-o",
			`jsonpath={.status.conditions[?(@.type=="Conflict")].status} {.status.conditions[?(@.type=="Conflict")].message}`)
		named := strings.Contains(out, "default/private-cluster") && strings.Contains(out, "team-b/other")
		if err == nil && (!strings.HasPrefix(out, want+" ") || named != (want == "True")) {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
}

// copyKubeconfig gives another namespace the private cluster's kubeconfig.
func (w *world) copyKubeconfig(t *testing.T, namespace string) {
	t.Helper()
	file := filepath.Join(w.dir, "private.kubeconfig")
	out := kubectl(t, w.pair.A, "get", "secret", "private-cluster-kubeconfig", "-n", "crossplane-system", "-o", `go-template={{.data.kubeconfig | base64decode}}`)
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "create", "secret", "generic", "private-cluster-kubeconfig", "-n", namespace, "--from-file=kubeconfig="+file)
}
