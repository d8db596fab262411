//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// privateCluster follows the guide without the operator. The consumer stands for the guide's
// controllers, and runs from the moment when its kubeconfig is there, long before there is a way.
// Streams get less time to end than the guide gives them, because watches use all of it.
func (w *world) privateCluster(t *testing.T) {
	r := newReader(t, w)
	r.values[`args: [proxy, --http, ":3128"]`] = `args: [proxy, --http, ":3128", --drain-timeout, 5s]`
	r.values["oci://ghcr.io/postern-dev/charts/private-network-agent"] += " --set agent.drainTimeout=5s"
	began := time.Now()
	for _, s := range steps(t, "private-cluster.md") {
		r.follow(t, s)
		switch number, _, _ := strings.Cut(s.Heading, "."); number {
		case "2":
			w.startConsumer(t)
			w.cannot(t)
		case "6":
			w.can(t)
		}
	}
	t.Logf("the guide took %s", time.Since(began).Round(time.Second))
	t.Run("restart", func(t *testing.T) { w.restart(t, "postern") })
	t.Run("uninstall", func(t *testing.T) { w.uninstall(t, r) })
}

// uninstall removes the agent, and looks that nothing of it stays. The consumer goes first: the
// agent would wait for its streams. What the guide made in the control plane goes too.
func (w *world) uninstall(t *testing.T, r *reader) {
	kubectl(t, w.pair.A, "delete", "deployment", "consumer", "bystander", "-n", "crossplane-system", "--wait")
	kubectl(t, w.pair.A, "delete", "secret/private-cluster-proxy", "configmap/test-configmap", "-n", "crossplane-system")
	kubectl(t, w.pair.A, "delete", "namespace", "postern", "--wait=false")
	out, err := r.shell(t, "private", "kubectl config use-context private-cluster\nhelm uninstall private-network-agent -n default --wait\n"+
		"kubectl delete secret/robot-token configmap/test-configmap -n default")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	kinds := slices.DeleteFunc(strings.Fields(kubectl(t, w.pair.B, "api-resources", "--verbs=list", "-o", "name")), func(kind string) bool {
		return kind == "componentstatuses" || kind == "endpoints" // deprecated, with a warning in the way
	})
	eventually(t, "nothing of the agent is left", time.Minute, func(ctx context.Context) error {
		left, err := w.pair.B.KubectlInside(ctx, "get", strings.Join(kinds, ","), "-A", "--ignore-not-found",
			"-l", "app.kubernetes.io/instance=private-network-agent", "-o", "name")
		if err == nil && strings.TrimSpace(left) != "" {
			err = fmt.Errorf("there are %s", left)
		}
		return err
	})
}
