package evict

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
)

// TestChaos lets Proxies, labels, webhook, budgets, owners and the operator itself change in any
// order. Whatever happens: a pod is only evicted while it is affected and has an owner that makes
// it again, no owner is short of more than one ready pod by our doing, and once things are quiet
// all pods are as they should be, after exactly as many evictions as there were wrong ones.
func TestChaos(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t)
		for i := range rapid.IntRange(1, 4).Draw(t, "owners") {
			label := rapid.SampledFrom([]string{"app=web", "app=db", "app=web,tier=x", ""}).Draw(t, "labels")
			kind := rapid.SampledFrom([]string{"ReplicaSet", "StatefulSet", "Job"}).Draw(t, "kind")
			c.owner(kind, fmt.Sprintf("m%d", i), label, rapid.IntRange(0, 4).Draw(t, "replicas"))
		}
		c.onEvict = func(pod *corev1.Pod) { c.inspect(t, pod) }
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			c.event(t)
		}
		c.quiet(t)
	})
}

// inspect checks an eviction that is asked for.
func (c *cluster) inspect(t *rapid.T, pod *corev1.Pod) {
	j := judge(c.rules, pod, c.proxies)
	if !j.affected || remaker(pod) == nil {
		t.Fatalf("%s is evicted, and is not affected, or nobody makes it again", pod.Name)
	}
	if j.want != nil && !j.want.Serving {
		t.Fatalf("%s is evicted for a Proxy that does not run", pod.Name)
	}
	if !ready(pod) {
		return
	}
	for _, p := range c.pods {
		if o := metav1.GetControllerOf(p); o == nil || o.UID != metav1.GetControllerOf(pod).UID || p.UID == pod.UID {
			continue
		}
		if p.DeletionTimestamp != nil || !ready(p) && !judge(c.rules, p, c.proxies).affected {
			t.Fatalf("%s is evicted while %s of the same owner is not ready", pod.Name, p.Name)
		}
	}
}

// event lets one thing happen.
func (c *cluster) event(t *rapid.T) {
	pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "which") }
	switch rapid.SampledFrom([]string{"step", "step", "step", "settle", "settle", "webhook", "proxy", "agent", "serving", "delete", "gone", "budget", "scale", "restart", "lame", "label"}).Draw(t, "event") {
	case "step":
		c.step()
	case "settle":
		c.settle()
	case "webhook":
		c.webhook = !c.webhook
	case "proxy":
		if len(c.proxies) < 3 {
			p := c.proxy(fmt.Sprintf("p%d-%d", len(c.proxies), c.made), rapid.SampledFrom([]string{"app=web", "app=db", "app", "tier=x"}).Draw(t, "selector"))
			p.Serving = rapid.Bool().Draw(t, "serving")
		}
	case "agent":
		if n := len(c.proxies); n > 0 {
			c.proxies[pick(n)].Agent = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "agent")
		}
	case "serving":
		if n := len(c.proxies); n > 0 {
			i := pick(n)
			c.proxies[i].Serving = !c.proxies[i].Serving
		}
	case "delete":
		if n := len(c.proxies); n > 0 {
			c.proxies[pick(n)].Deleting = true
		}
	case "gone": // the finalizer lets it go once no pod is left
		for i, p := range c.proxies {
			if r := c.reports[p.Key]; p.Deleting && r != nil && r.Injected == 0 {
				c.proxies = append(c.proxies[:i:i], c.proxies[i+1:]...)
				return
			}
		}
	case "budget":
		name := c.owners[pick(len(c.owners))].name
		c.budgets[name] = !c.budgets[name]
	case "scale":
		c.owners[pick(len(c.owners))].replicas = rapid.IntRange(0, 4).Draw(t, "replicas")
	case "restart":
		c.restart()
	case "lame":
		m := c.owners[pick(len(c.owners))]
		m.lame = !m.lame
	case "label":
		if n := len(c.pods); n > 0 {
			i := pick(n)
			pod := c.pods[i].DeepCopy()
			pod.Labels = labels.Merge(pod.Labels, map[string]string{"app": rapid.SampledFrom([]string{"web", "db", "none"}).Draw(t, "app")})
			c.pods[i] = pod
		}
	}
}

// quiet lets everything work again, and checks what comes of it.
func (c *cluster) quiet(t *rapid.T) {
	c.webhook = true
	clear(c.budgets)
	for _, m := range c.owners {
		m.lame = false
	}
	c.settle()
	for _, p := range c.pods {
		becomeReady(p)
	}
	for i := range c.proxies {
		c.proxies[i].Serving = true
		if c.proxies[i].Agent == "" {
			c.proxies[i].Agent = "late"
		}
	}
	c.now = c.now.Add(2 * lastBackoff)
	c.restart() // what was learned of a webhook that did not work is out of date
	c.evicted = nil
	wrong := map[string]bool{}
	for _, p := range c.pods {
		if judge(c.rules, p, c.proxies).affected && remaker(p) != nil {
			wrong[p.Name] = true
		}
	}
	c.run()
	for _, name := range c.evicted {
		if !wrong[name] {
			t.Fatalf("evicted %s, which was not wrong (%v)", name, wrong)
		}
	}
	if len(c.evicted) != len(wrong) {
		t.Fatalf("evicted %v; wrong were %v", c.evicted, wrong)
	}
	for _, p := range c.pods {
		if judge(c.rules, p, c.proxies).affected && remaker(p) != nil {
			t.Fatalf("%s is still not as it should be", p.Name)
		}
	}
	for _, r := range c.reports {
		if !r.Settled() || len(r.Blocked)+len(r.Stuck) > 0 {
			t.Fatalf("report %+v", r)
		}
	}
}
