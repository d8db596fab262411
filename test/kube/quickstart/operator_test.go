//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestQuickStart follows the guide with the operator, whose Proxy makes the way.
func TestQuickStart(t *testing.T) {
	w := newWorld(t)
	r := newReader(t, w)
	began := time.Now()
	var remove []step
	for _, s := range steps(t, "quick-start-kubernetes.md") {
		if s.removes() {
			remove = append(remove, s)
			continue
		}
		r.follow(t, s)
		switch number, _, _ := strings.Cut(s.heading, "."); number {
		case "2":
			w.startConsumer(t)
			w.cannot(t)
		case "5":
			w.waits(t)
		case "7":
			w.can(t)
			w.restarted(t, "consumer", 1)
			w.restarted(t, "bystander", 0)
		}
	}
	t.Logf("the guide took %s", time.Since(began).Round(time.Second))
	t.Run("upgrade", func(t *testing.T) { w.upgrade(t, "default") })
	t.Run("selector", w.selector)
	t.Run("webhook down", w.webhookDown)
	t.Run("remove", func(t *testing.T) { w.remove(t, r, remove) })
}

// selector has the Proxy select the bystander in the consumer's place, and back again. Each time both
// are made again once, and nothing else is.
func (w *world) selector(t *testing.T) {
	for i, provider := range []string{"provider-other", "provider-kubernetes"} {
		kubectl(t, w.pair.A, "patch", "proxy", "private-cluster", "-n", "default", "--type=merge",
			"-p", `{"spec":{"podSelector":{"matchLabels":{"pkg.crossplane.io/provider":"`+provider+`"}}}}`)
		w.applied(t, provider)
		w.restarted(t, "consumer", 2+i)
		w.restarted(t, "bystander", 1+i)
	}
	w.changes(t, "selected again")
}

// applied waits until the status says that the pods are as a selector wants them.
func (w *world) applied(t *testing.T, provider string) {
	t.Helper()
	eventually(t, "the pods of "+provider+" go through the proxy", 2*time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxy", "private-cluster", "-n", "default", "-o",
			`jsonpath={.status.lastAppliedPodSelector.matchLabels.pkg\.crossplane\.io/provider} {.status.conditions[?(@.type=="PodsUpdated")].status}`)
		if err == nil && out != provider+" True" {
			err = fmt.Errorf("the status says %q", out)
		}
		return err
	})
}

// webhookDown takes the operators away: pods can be made all the same, without a proxy, and are
// made again when an operator is back.
func (w *world) webhookDown(t *testing.T) {
	kubectl(t, w.pair.A, "scale", "deployment/postern-operator", "-n", "postern-system", "--replicas=0")
	kubectl(t, w.pair.A, "wait", "--for=delete", "pods", "-n", "postern-system", "-l", "app.kubernetes.io/component=operator", "--timeout=60s")
	kubectl(t, w.pair.A, "delete", "pods", "-n", "crossplane-system", "-l", "app=consumer", "--wait")
	kubectl(t, w.pair.A, "rollout", "status", "deployment/consumer", "-n", "crossplane-system", "--timeout=50s")
	w.restarted(t, "consumer", 4)
	kubectl(t, w.pair.A, "scale", "deployment/postern-operator", "-n", "postern-system", "--replicas=2")
	w.changes(t, "seen after the webhook was down")
	w.restarted(t, "consumer", 5)
	w.restarted(t, "bystander", 2)
}

// restarted holds how many times the pod of a Deployment was made again.
func (w *world) restarted(t *testing.T, name string, want int) {
	t.Helper()
	out := kubectl(t, w.pair.A, "get", "events", "-n", "crossplane-system", "--field-selector", "reason=SuccessfulCreate,involvedObject.kind=ReplicaSet",
		"-o", `jsonpath={range .items[*]}{.count} {.message}{"\n"}{end}`)
	made := strings.Count(out, "Created pod: "+name+"-")
	if made != want+1 {
		t.Errorf("the pod of %s was made %d times; want %d:\n%s", name, made, want+1, out)
	}
}

// remove follows the last steps of the guide. The consumer is left without a way, the bystander is
// as it was, and nothing of the operator stays in the control plane but the definition of Proxy, which
// is kept on purpose.
func (w *world) remove(t *testing.T, r *reader, all []step) {
	for _, s := range all {
		r.follow(t, s)
	}
	kubectl(t, w.pair.A, "rollout", "status", "deployment/consumer", "-n", "crossplane-system", "--timeout=50s")
	eventually(t, "the consumer's pod has no proxy", time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "pods", "-n", "crossplane-system", "-l", "app=consumer", "-o", "jsonpath={.items[*].spec.containers[*].env[*].name}")
		if err == nil && strings.Contains(out, "PROXY") {
			err = fmt.Errorf("it has %s", out)
		}
		return err
	})
	w.restarted(t, "bystander", 2)
	for _, kind := range []string{
		"deployments", "services", "secrets", "serviceaccounts", "poddisruptionbudgets", "networkpolicies", "mutatingwebhookconfigurations",
		"roles", "rolebindings", "clusterroles", "clusterrolebindings", "jobs", "leases", "proxies",
	} {
		eventually(t, "no "+kind+" of the operator are left", time.Minute, func(ctx context.Context) error {
			left, err := w.pair.A.KubectlInside(ctx, "get", kind, "-A", "-o", "name")
			for name := range strings.FieldsSeq(left) {
				if strings.Contains(name, "postern") || strings.Contains(name, "private-cluster-proxy") {
					err = fmt.Errorf("%s is left", name)
				}
			}
			return err
		})
	}
}

// waits looks at a Proxy whose agent is not there yet.
func (w *world) waits(t *testing.T) {
	t.Helper()
	out := kubectl(t, w.pair.A, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.agentID}")
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(out) {
		t.Errorf("the agent's ID is %q, and no UUID", out)
	}
	eventually(t, "the Proxy says that it waits for the agent", time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.phase}")
		if err == nil && out != "WaitingForProxy" {
			err = fmt.Errorf("the phase is %q", out)
		}
		return err
	})
}
