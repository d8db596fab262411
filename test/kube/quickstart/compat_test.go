//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/documents"
)

// documentsShared is the other Proxy of the Private Network Agent's own documents, with the agent's ID, and with another selector. It is written in both ways.
const documentsShared = `apiVersion: spaces.upbound.io/v1alpha1
kind: Proxy
metadata:
  name: %[1]s
  namespace: default
spec:
  # Human-readable description
  description: "Production EKS cluster in us-east-1"
  secretRef:
    name: robot-token
    key: token
  %[2]s: "550e8400-e29b-41d4-a716-446655440000"
  podSelector:
    matchLabels:
      pkg.crossplane.io/provider: nobody
`

// compatibility has the other documents' Proxy in the place of our own: the consumer goes through it,
// and its phase is that of the agent. Then what the operator did is taken back by hand.
func (w *world) compatibility(t *testing.T) {
	ctx := limit(t, 4*time.Minute)
	before := w.made(t)
	kubectl(t, w.pair.A, "delete", "proxy", "private-cluster", "-n", "default", "--timeout=50s")
	w.remade(t, before, 1, 0)
	if err := w.upgradeChart(ctx, w.pair.A, "postern-operator", "postern-system", "compat.upbound.enabled=true"); err != nil {
		t.Fatal(err)
	}
	w.apply(t, documents.Proxy)
	var agentID string
	eventually(t, "the Proxy has an agent's ID", time.Minute, func(ctx context.Context) (err error) {
		agentID, err = w.pair.A.KubectlInside(ctx, "get", "proxy", "private-cluster", "-o", "jsonpath={.status.agentID}")
		if err == nil && len(agentID) != 36 {
			err = fmt.Errorf("it is %q", agentID)
		}
		return err
	})
	w.phase(t, "WaitingForProxy")
	if err := w.upgradeChart(ctx, w.pair.B, "private-network-agent", "default", "agent.agentId="+agentID); err != nil {
		t.Fatal(err)
	}
	w.phase(t, "Connected")
	w.changes(t, "through the other documents' Proxy")
	w.remade(t, before, 2, 0)

	kubectl(t, w.pair.B, "scale", "deployment/private-network-agent", "-n", "default", "--replicas=0")
	kubectl(t, w.pair.B, "delete", "pods", "--all", "-n", "default", "--grace-period=1", "--wait=false")
	w.phase(t, "Disconnected")
	kubectl(t, w.pair.B, "scale", "deployment/private-network-agent", "-n", "default", "--replicas=2")
	w.phase(t, "Connected")
	w.changes(t, "when the agent was back")

	for name, spelling := range map[string]string{"prod-one": "agentID", "prod-two": "agentId"} {
		w.apply(t, fmt.Sprintf(documentsShared, name, spelling))
		eventually(t, "the ID by "+spelling, time.Minute, func(ctx context.Context) error {
			out, err := w.pair.A.KubectlInside(ctx, "get", "px", name, "-o", "jsonpath={.status.agentID}")
			if err == nil && out != "550e8400-e29b-41d4-a716-446655440000" {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		})
	}
	w.cleanup(t)
	w.remade(t, before, 3, 0)

	if err := w.upgradeChart(ctx, w.pair.A, "postern-operator", "postern-system", "compat.upbound.enabled=false"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "delete", "crd", "proxies.spaces.upbound.io", "--timeout=30s")
	w.apply(t, strings.Replace(strings.Replace(documents.Proxy, "spaces.upbound.io", "postern.dev", 1), "  podSelector:", "  agentID: "+agentID+"\n  podSelector:", 1))
	w.applied(t, "provider-kubernetes")
	w.changes(t, "through our own Proxy again")
}

// cleanup takes back by hand what the operator did, as those do who have no chart. No Proxy hangs then.
func (w *world) cleanup(t *testing.T) {
	t.Helper()
	program := filepath.Join(w.dir, "postern-operator")
	if err := unpackProgram(w.archive("postern-operator"), "usr/local/bin/postern-operator", program); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "scale", "deployment/postern-operator", "-n", "postern-system", "--replicas=0")
	kubectl(t, w.pair.A, "wait", "--for=delete", "pods", "-n", "postern-system", "-l", "app.kubernetes.io/component=operator", "--timeout=50s")
	kubeconfig, err := w.pair.A.InsideKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(limit(t, time.Minute), program, "cleanup", "--namespace", "postern-system", "--kubeconfig", kubeconfig)
	cmd.Env = cleanEnvironment()
	if out, err := w.pair.A.Run(cmd); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.bare(t)
	kubectl(t, w.pair.A, "delete", "proxies.spaces.upbound.io", "--all", "-n", "default", "--timeout=30s")
}

// phase waits until the Proxy private-cluster shows a phase, and Proxies of the API that `proxy` means.
func (w *world) phase(t *testing.T, want string) {
	t.Helper()
	eventually(t, "the phase is "+want, 90*time.Second, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxy", "private-cluster", "--no-headers")
		if err == nil && !strings.Contains(out, " "+want+" ") {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
}
