package evict

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"postern.dev/postern/operator/selection"
)

func wantCondition(t *testing.T, r *Report, kind string, status metav1.ConditionStatus, reason string, texts ...string) {
	t.Helper()
	got := condition(t, r, kind)
	if got.Status != status || got.Reason != reason {
		t.Errorf("condition %s is %s %s, want %s %s: %s", kind, got.Status, got.Reason, status, reason, got.Message)
	}
	for _, text := range texts {
		if !strings.Contains(got.Message, text) {
			t.Errorf("condition %s says %q, want %q in it", kind, got.Message, text)
		}
	}
}

func TestOnlyAffectedPodsAreEvicted(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 3)
	c.owner("StatefulSet", "db", "app=db", 2)
	c.owner("ReplicaSet", "other", "app=other", 2)

	p := c.proxy("office", "app in (web,db)")
	c.run()
	if len(c.evicted) != 5 || len(c.wrong()) != 0 {
		t.Fatalf("evicted %v, want each of web and db once; wrong: %v", c.evicted, c.wrong())
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionTrue, ReasonUpToDate, "5 pods go through the proxy")
	if r := c.report("office"); !r.Settled() || r.Injected != 5 || !slices.Equal(r.Namespaces, []string{"apps"}) {
		t.Errorf("report %+v", r)
	}

	p.Selector = labels.SelectorFromSet(labels.Set{"app": "web"})
	c.evicted = nil
	c.run()
	if len(c.evicted) != 2 || !strings.HasPrefix(c.evicted[0], "db-") || !strings.HasPrefix(c.evicted[1], "db-") {
		t.Fatalf("evicted %v, want those of db", c.evicted)
	}

	p.Agent = "another"
	c.evicted = nil
	c.run()
	if len(c.evicted) != 3 || !strings.HasPrefix(c.evicted[0], "web-") {
		t.Fatalf("evicted %v, want those of web", c.evicted)
	}

	p.Deleting = true
	c.evicted = nil
	c.run()
	if len(c.evicted) != 3 || c.report("office").Injected != 0 {
		t.Fatalf("evicted %v, want those of web, report %+v", c.evicted, c.report("office"))
	}
}

func TestOneOfAnOwnerAtATime(t *testing.T) {
	c := newCluster(t)
	web := c.owner("ReplicaSet", "web", "app=web", 3)
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		c.owner("ReplicaSet", name, "app=web", 1)
	}
	c.proxy("office", "app=web")
	if n := c.step() + c.step(); n != 1 {
		t.Fatalf("%d evictions before it is known whether they help, want 1", n)
	}
	c.settle()
	if n := c.step(); n != maxAtOnce {
		t.Fatalf("%d evictions at once, want %d", n, maxAtOnce)
	}
	if n := c.step(); n != 0 {
		t.Fatalf("%d evictions while new pods are waited for", n)
	}
	web.lame = true
	for range 20 {
		c.settle()
		c.step()
	}
	// Six of the others, and one of web: its new pod is not ready.
	if len(c.evicted) != 7 {
		t.Fatalf("evicted %v", c.evicted)
	}
	for _, p := range c.pods {
		becomeReady(p)
	}
	web.lame = false
	c.run()
	if len(c.evicted) != 9 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v, wrong %v", c.evicted, c.wrong())
	}
}

func TestPodsThatAreNotReadyDoNotWait(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 3).lame = true
	for _, p := range c.pods {
		p.Status.Conditions = nil
	}
	c.proxy("office", "app=web")
	c.run()
	if len(c.evicted) != 3 {
		t.Errorf("evicted %v", c.evicted)
	}
}

func TestPodsThatNobodyMakesAgain(t *testing.T) {
	c := newCluster(t)
	c.owner("", "bare", "app=web,bare=bare", 1)
	c.owner("Job", "job", "app=web", 1)
	c.owner("Node", "static", "app=web", 1)
	c.proxy("office", "app=web")
	c.run()
	c.run()
	if len(c.evicted) != 0 {
		t.Errorf("evicted %v", c.evicted)
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonNoController, "apps/bare-001", "apps/job-002", "apps/static-003")
	if !c.report("office").Settled() {
		t.Error("there is nothing left to do, and it is not settled")
	}
	if len(c.events) != 3 {
		t.Errorf("events %v, want one for each pod", c.events)
	}
}

func TestPodsThatAreLeftAlone(t *testing.T) {
	c := newCluster(t)
	m := c.owner("ReplicaSet", "web", "app=web", 6)
	c.pods[0].Status.Phase = corev1.PodSucceeded
	c.pods[1].Status.Phase = corev1.PodFailed
	c.pods[2].Annotations[selection.AnnotationInject] = "false"
	c.pods[3].Annotations[selection.AnnotationInjected] = "elsewhere/unknown"
	c.pods[3].Labels = map[string]string{"app": "none"}
	c.pods[4].Namespace = "kube-system"
	c.pods[5].Labels = map[string]string{"app": "web", selection.LabelProxy: "default.office"}
	m.replicas = 0
	c.proxy("office", "app=web")
	c.proxy("unborn", "app=none").Agent = ""
	c.run()
	if len(c.evicted) != 0 || c.report("office").Pods != 0 {
		t.Errorf("evicted %v, report %+v", c.evicted, c.report("office"))
	}
}

func TestPodsStayUntilTheProxyRuns(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 2)
	p := c.proxy("office", "app=web")
	p.Serving = false
	c.run()
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonWaitingForProxy, "2 pods wait")
	p.Serving = true
	c.run()
	if len(c.evicted) != 2 {
		t.Errorf("evicted %v", c.evicted)
	}
}

func TestABudgetHolds(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 2)
	c.owner("ReplicaSet", "db", "app=web", 2)
	c.budgets["web"] = true
	c.proxy("office", "app=web")
	asked := 0
	c.onEvict = func(p *corev1.Pod) {
		if strings.HasPrefix(p.Name, "web") {
			asked++
		}
	}
	for range 600 { // ten minutes
		c.step()
		c.settle()
	}
	if len(c.evicted) != 2 || strings.HasPrefix(c.evicted[0], "web") {
		t.Fatalf("evicted %v, want those of db", c.evicted)
	}
	// After 5, 10, 20, 40, 80, 160, 300 seconds.
	if asked < 6 || asked > 8 {
		t.Errorf("asked %d times in ten minutes", asked)
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonEvictionBlocked, "apps/web-001", "The disruption budget web needs 2 healthy pods and has 2 currently")
	if c.next == 0 || c.next > lastBackoff {
		t.Errorf("the next step is in %s", c.next)
	}
	c.budgets["web"] = false
	c.run()
	if len(c.evicted) != 4 {
		t.Errorf("evicted %v once the budget allows it", c.evicted)
	}
}

func TestAnEvictionThatFails(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 1)
	c.proxy("office", "app=web")
	c.evictErr = errors.New("the pod has two budgets")
	c.step()
	c.step()
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonEvictionBlocked, "two budgets")
	c.evictErr = nil
	c.run()
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionTrue, ReasonUpToDate)
}

func TestNothingIsEvictedWhileTheWebhookIsDown(t *testing.T) {
	c := newCluster(t)
	c.webhook = false
	c.owner("ReplicaSet", "web", "app=web", 2)
	p := c.proxy("office", "app=web")
	for range 120 {
		c.step()
		c.settle()
	}
	if len(c.evicted) != 0 {
		t.Fatalf("evicted %v", c.evicted)
	}
	if c.probes < 10 || c.probes > 13 {
		t.Errorf("probed %d times in two minutes", c.probes)
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonWebhookDown, "2 pods wait", "no answer")
	if c.report("office").Settled() {
		t.Error("it is settled")
	}
	c.webhook = true
	c.run()
	if len(c.evicted) != 2 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v when it was back, wrong %v", c.evicted, c.wrong())
	}
	// Pods are freed without it.
	c.webhook, p.Deleting = false, true
	c.run()
	if len(c.evicted) != 4 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v, wrong %v", c.evicted, c.wrong())
	}
}

func TestTheWebhookGoesWhileAPodIsReplaced(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 3)
	c.proxy("office", "app=web")
	c.step()
	c.webhook = false
	for range 100 {
		c.settle()
		c.step()
	}
	if len(c.evicted) != 1 {
		t.Fatalf("evicted %v, want one", c.evicted)
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonWebhookDown, "3 pods wait")
	c.webhook = true
	c.run()
	if len(c.evicted) != 4 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v, wrong %v", c.evicted, c.wrong())
	}
}

func TestNoLoopIfTheWebhookDoesNotHelp(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 3)
	c.owner("ReplicaSet", "db", "app=web", 3)
	c.useless["apps"] = true
	p := c.proxy("office", "app=web")
	for range 3600 { // an hour
		c.step()
		c.settle()
	}
	if n := len(c.evicted); n > maxStrikes {
		t.Fatalf("%d evictions in vain: %v", n, c.evicted)
	}
	wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionFalse, ReasonNotInjected, "ReplicaSet apps/")
	if c.report("office").Settled() {
		t.Error("it is settled")
	}
	if !slices.ContainsFunc(c.events, func(e string) bool { return strings.HasPrefix(e, EventNotInjected) }) {
		t.Errorf("events %v", c.events)
	}

	t.Run("another aim is another chance", func(t *testing.T) {
		c.useless["apps"], p.Agent = false, "another"
		c.run()
		if len(c.wrong()) != 0 {
			t.Errorf("wrong: %v", c.wrong())
		}
		wantCondition(t, c.report("office"), ConditionPodsUpdated, metav1.ConditionTrue, ReasonUpToDate)
	})
}

func TestAnOwnerThatWantsNoNewPod(t *testing.T) {
	c := newCluster(t)
	m := c.owner("ReplicaSet", "web", "app=web", 3)
	m.replicas = 2 // it is being scaled down
	c.proxy("office", "app=web")
	c.step()
	c.settle()
	if n := c.step(); n != 0 {
		t.Errorf("%d evictions while a new pod is waited for", n)
	}
	c.now = c.now.Add(replaceTime)
	c.run()
	if len(c.evicted) != 3 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v, wrong %v", c.evicted, c.wrong())
	}
}

func TestTwoProxiesSelectOnePod(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 1)
	c.proxy("older", "app=web")
	c.run()
	c.proxy("younger", "app=web")
	c.run()
	if len(c.evicted) != 1 {
		t.Errorf("evicted %v, want the pod once, for the older", c.evicted)
	}
	for _, name := range []string{"older", "younger"} {
		wantCondition(t, c.report(name), ConditionConflict, metav1.ConditionTrue, ReasonPodsShared,
			"Pod apps/web-002 is selected by default/older (postern.dev), which is older and wins, and by default/younger (postern.dev).")
	}
	if r := c.report("younger"); r.Pods != 0 || !r.Settled() {
		t.Errorf("report of the younger: %+v", r)
	}
	c.proxies[0].Deleting = true
	c.run()
	if route, _ := selection.Injected(c.pods[0]); route != "default/younger" || len(c.evicted) != 2 {
		t.Errorf("the pod goes through %s after %v were evicted", route, c.evicted)
	}
	wantCondition(t, c.report("younger"), ConditionConflict, metav1.ConditionFalse, ReasonNoConflict)
}

func TestARestartChangesNothing(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 4)
	c.proxy("office", "app=web")
	for range 30 {
		c.restart()
		c.step()
		c.settle()
	}
	if len(c.evicted) != 4 || len(c.wrong()) != 0 {
		t.Errorf("evicted %v, wrong %v", c.evicted, c.wrong())
	}
}

func TestNothingIsRememberedForEver(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"a", "b", "c"} {
		c.owner("ReplicaSet", name, "app=web", 2)
	}
	c.budgets["c"] = true
	c.proxy("office", "app=web")
	for range 30 {
		c.step()
		c.settle()
	}
	c.owners, c.pods = nil, nil
	c.step()
	c.now = c.now.Add(time.Hour)
	c.step()
	if e := c.evictor; len(e.owners)+len(e.refused)+len(e.told) != 0 {
		t.Errorf("remembered: %v %v %v", e.owners, e.refused, e.told)
	}
}

func TestTrim(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 1)
	c.proxy("office", "app=web")
	pod := c.pods[0].DeepCopy()
	pod.Annotations[corev1.LastAppliedConfigAnnotation] = "x"
	pod.Annotations[selection.AnnotationInjected] = "default/none"
	pod.Spec.Containers = []corev1.Container{{Name: "big"}}
	object, err := Trim(pod)
	slim, ok := object.(*corev1.Pod)
	if err != nil || !ok || slim.Spec.Containers != nil || len(slim.Annotations) != 1 {
		t.Fatalf("trimmed %+v (%v)", object, err)
	}
	if !ready(slim) || remaker(slim) == nil || judge(c.rules, slim, c.proxies).affected != judge(c.rules, pod, c.proxies).affected {
		t.Errorf("the trimmed pod is judged in another way: %+v", slim)
	}
	if other, err := Trim(&corev1.Node{}); err != nil || other == nil {
		t.Errorf("another object: %v %v", other, err)
	}
}

// TestSame tells changes that matter from those that do not: nodes write of every pod now and then.
func TestSame(t *testing.T) {
	c := newCluster(t)
	c.owner("ReplicaSet", "web", "app=web", 1)
	trimmed := func(change func(*corev1.Pod)) *corev1.Pod {
		t.Helper()
		pod := c.pods[0].DeepCopy()
		change(pod)
		object, err := Trim(pod)
		if err != nil {
			t.Fatal(err)
		}
		return object.(*corev1.Pod)
	}
	before := trimmed(func(*corev1.Pod) {})
	for name, change := range map[string]func(*corev1.Pod){
		"version": func(p *corev1.Pod) { p.ResourceVersion = "2" },
		"started": func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 7}} },
		"probed":  func(p *corev1.Pod) { p.Status.Conditions[0].LastProbeTime = metav1.Now() },
	} {
		if !Same(before, trimmed(change)) {
			t.Errorf("%s: taken for a change", name)
		}
	}
	for name, change := range map[string]func(*corev1.Pod){
		"label":      func(p *corev1.Pod) { p.Labels = map[string]string{"app": "other"} },
		"annotation": func(p *corev1.Pod) { p.Annotations[selection.AnnotationInject] = "false" },
		"ready":      func(p *corev1.Pod) { p.Status.Conditions = nil },
		"phase":      func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"deleted":    func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now },
		"owner":      func(p *corev1.Pod) { p.OwnerReferences = nil },
		"another":    func(p *corev1.Pod) { p.UID = "another" },
	} {
		if Same(before, trimmed(change)) {
			t.Errorf("%s: not taken for a change", name)
		}
	}
	if Same(nil, before) || Same(before, &corev1.Node{}) {
		t.Error("what is no pod is the same")
	}
}

// BenchmarkStep looks at a large cluster of which nothing is to be done: what every change costs.
func BenchmarkStep(b *testing.B) {
	for _, pods := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(pods), func(b *testing.B) {
			c := newCluster(b)
			for i := range 20 {
				c.proxy(fmt.Sprint("office-", i), fmt.Sprint("app=web-", i))
			}
			for i := range pods / 10 {
				m := &maker{kind: "ReplicaSet", namespace: fmt.Sprint("apps-", i%50), name: fmt.Sprint("set-", i), labels: map[string]string{"app": fmt.Sprint("web-", i%100)}, replicas: 10}
				for range m.replicas {
					becomeReady(c.create(m))
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				c.step()
			}
			if len(c.evicted) > 0 || len(c.wrong()) > 0 {
				b.Fatal("there was something to do")
			}
		})
	}
}
