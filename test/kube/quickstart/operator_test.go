//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const quickStartGuide = "quick-start-kubernetes.md"

// followQuickStart follows the guide with the operator, whose Proxy makes the way, but for the steps that
// remove it.
func (w *world) followQuickStart(t *testing.T, r *reader) {
	t.Helper()
	began := time.Now()
	var before map[string]int
	for _, s := range steps(t, quickStartGuide) {
		if s.removes() {
			continue
		}
		r.follow(t, s)
		switch number, _, _ := strings.Cut(s.Heading, "."); number {
		case "2":
			w.startConsumer(t)
			w.cannot(t)
			before = w.made(t)
		case "5":
			w.waits(t)
		case "7":
			w.can(t)
			w.remade(t, before, 1, 0)
		}
	}
	t.Logf("the guide took %s", time.Since(began).Round(time.Second))
}

// selector has the Proxy select the bystander in the consumer's place, and back again. Each time both
// are made again once, and nothing else is.
func (w *world) selector(t *testing.T) {
	before := w.made(t)
	for i, provider := range []string{"provider-other", "provider-kubernetes"} {
		kubectl(t, w.pair.A, "patch", "proxy", "private-cluster", "-n", "default", "--type=merge",
			"-p", `{"spec":{"podSelector":{"matchLabels":{"pkg.crossplane.io/provider":"`+provider+`"}}}}`)
		w.applied(t, provider)
		w.remade(t, before, 1+i, 1+i)
	}
	w.changes(t, "selected again")
}

// applied waits until the status says that the pods are as a selector wants them.
func (w *world) applied(t *testing.T, provider string) {
	t.Helper()
	eventually(t, "the pods of "+provider+" go through the proxy", 2*time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxies.postern.dev", "private-cluster", "-n", "default", "-o",
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
	before := w.made(t)
	kubectl(t, w.pair.A, "scale", "deployment/postern-operator", "-n", "postern-system", "--replicas=0")
	kubectl(t, w.pair.A, "wait", "--for=delete", "pods", "-n", "postern-system", "-l", "app.kubernetes.io/component=operator", "--timeout=60s")
	kubectl(t, w.pair.A, "delete", "pods", "-n", "crossplane-system", "-l", "app=consumer", "--wait")
	kubectl(t, w.pair.A, "rollout", "status", "deployment/consumer", "-n", "crossplane-system", "--timeout=50s")
	w.remade(t, before, 1, 0)
	kubectl(t, w.pair.A, "scale", "deployment/postern-operator", "-n", "postern-system", "--replicas=2")
	w.changes(t, "seen after the webhook was down")
	w.remade(t, before, 2, 0)
}

// made is how many times the pods of Deployments were made, by their names.
func (w *world) made(t *testing.T) map[string]int {
	t.Helper()
	out := kubectl(t, w.pair.A, "get", "events", "-n", "crossplane-system", "--field-selector", "reason=SuccessfulCreate,involvedObject.kind=ReplicaSet",
		"-o", `jsonpath={range .items[*]}{.count} {.message}{"\n"}{end}`)
	made := map[string]int{}
	for line := range strings.Lines(out) { // of many, later ones are one that says so, and is counted
		how, pod, _ := strings.Cut(line, "Created pod: ")
		name, _, _ := strings.Cut(pod, "-")
		count, _, _ := strings.Cut(how, " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			t.Fatalf("an event says %q", line)
		}
		made[name] += n
	}
	return made
}

// remade holds how many times the pods of consumer and bystander were made again since then.
func (w *world) remade(t *testing.T, before map[string]int, consumer, bystander int) {
	t.Helper()
	eventually(t, "the pods are made again", time.Minute, func(context.Context) error {
		now := w.made(t)
		for name, want := range map[string]int{"consumer": consumer, "bystander": bystander} {
			if n := now[name] - before[name]; n > want {
				t.Errorf("the pod of %s was made again %d times; want %d", name, n, want)
			} else if n < want {
				return fmt.Errorf("that of %s was %d times; want %d", name, n, want)
			}
		}
		return nil
	})
}

// remove follows the last steps of the guide. The consumer is left without a way, the bystander is
// as it was, and nothing of the operator stays in the control plane but the definition of Proxy, which
// is kept on purpose.
func (w *world) remove(t *testing.T) {
	before := w.made(t)
	w.works = false
	for _, s := range steps(t, quickStartGuide) {
		if s.removes() {
			w.quickStart.follow(t, s)
		}
	}
	kubectl(t, w.pair.A, "rollout", "status", "deployment/consumer", "-n", "crossplane-system", "--timeout=50s")
	w.bare(t)
	w.remade(t, before, 1, 0)
	for _, kind := range []string{
		"deployments", "services", "secrets", "serviceaccounts", "poddisruptionbudgets", "networkpolicies", "mutatingwebhookconfigurations",
		"roles", "rolebindings", "clusterroles", "clusterrolebindings", "jobs", "leases", "proxies.postern.dev",
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

// bare waits until the consumer's pod was made again without a proxy.
func (w *world) bare(t *testing.T) {
	t.Helper()
	eventually(t, "the consumer's pod has no proxy", time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "pods", "-n", "crossplane-system", "-l", "app=consumer", "-o", "jsonpath={.items[*].spec.containers[*].env[*].name}")
		if err == nil && strings.Contains(out, "PROXY") {
			err = fmt.Errorf("it has %s", out)
		}
		return err
	})
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
