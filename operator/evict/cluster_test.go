package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"postern.dev/postern/operator/selection"
)

// cluster is a model of one: owners that keep a number of pods, a webhook, budgets.
type cluster struct {
	t interface {
		Helper()
		Fatalf(format string, args ...any)
	}
	now      time.Time
	rules    selection.Rules
	pods     []*corev1.Pod
	owners   []*maker
	proxies  []selection.Proxy
	webhook  bool            // the API server asks it
	useless  map[string]bool // namespaces whose pods the webhook is not asked about, though it works
	budgets  map[string]bool // owners of which nothing may be evicted
	evictor  *Evictor
	reports  map[selection.Key]*Report
	next     time.Duration
	evicted  []string
	events   []string
	made     int
	probes   int
	onEvict  func(pod *corev1.Pod)
	evictErr error
}

// maker is an owner of pods.
type maker struct {
	kind, namespace, name string
	labels                map[string]string
	replicas              int
	lame                  bool // its new pods do not become ready
}

func newCluster(t interface {
	Helper()
	Fatalf(format string, args ...any)
},
) *cluster {
	c := &cluster{
		t: t, now: time.Unix(1_000_000, 0), webhook: true, rules: selection.Rules{Excluded: []string{"kube-system"}},
		useless: map[string]bool{}, budgets: map[string]bool{},
	}
	c.restart()
	return c
}

// restart is a new operator, which remembers nothing.
func (c *cluster) restart() {
	c.evictor = New(Config{
		Rules: c.rules, Log: slog.New(slog.DiscardHandler), Evict: c.evict,
		Probe: func(context.Context) error {
			c.probes++
			if !c.webhook {
				return errors.New("no answer")
			}
			return nil
		},
		Event: func(_ selection.Key, pod *corev1.Pod, reason, _ string) {
			c.events = append(c.events, reason+" "+pod.Name)
		},
	})
}

func (c *cluster) owner(kind, name, labelText string, replicas int) *maker {
	set, err := labels.ConvertSelectorToLabelsMap(labelText)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	m := &maker{kind: kind, namespace: "apps", name: name, labels: set, replicas: replicas}
	c.owners = append(c.owners, m)
	c.settle()
	return m
}

func (c *cluster) proxy(name, selector string) *selection.Proxy {
	parsed, err := labels.Parse(selector)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	c.now = c.now.Add(time.Second)
	c.proxies = append(c.proxies, selection.Proxy{
		Key:     selection.Key{Group: "postern.dev", Namespace: "default", Name: name},
		Created: c.now, Agent: "agent-" + name, Selector: parsed, Serving: true,
	})
	return &c.proxies[len(c.proxies)-1]
}

// create makes a pod the way the API server does.
func (c *cluster) create(m *maker) *corev1.Pod {
	c.made++
	yes := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("%s-%03d", m.name, c.made), Namespace: m.namespace, UID: types.UID(fmt.Sprint(c.made)),
		Labels: m.labels, CreationTimestamp: metav1.NewTime(c.now.Truncate(time.Second)), Annotations: map[string]string{},
	}}
	if m.kind != "" {
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: m.kind, Name: m.name, UID: types.UID("of " + m.name), Controller: &yes}}
	}
	if c.webhook && !c.useless[m.namespace] {
		if s := c.rules.Selecting(m.namespace, pod, c.proxies); len(s) > 0 && s[0].Agent != "" {
			pod.Annotations[selection.AnnotationInjected] = s[0].Route()
			pod.Annotations[selection.AnnotationAgent] = s[0].Agent
		}
	}
	c.pods = append(c.pods, pod)
	return pod
}

// settle lets the owners make their pods, and these become ready.
func (c *cluster) settle() {
	c.pods = slices.DeleteFunc(c.pods, func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	for _, m := range c.owners {
		have := 0
		for _, p := range c.pods {
			if o := metav1.GetControllerOf(p); o != nil && o.Name == m.name || m.kind == "" && p.Labels["bare"] == m.name {
				have++
			}
		}
		for ; have < m.replicas; have++ {
			pod := c.create(m)
			if !m.lame {
				becomeReady(pod)
			}
		}
	}
}

func becomeReady(pod *corev1.Pod) {
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
}

// evict is the Eviction API.
func (c *cluster) evict(_ context.Context, pod *corev1.Pod) error {
	if c.onEvict != nil {
		c.onEvict(pod)
	}
	i := slices.IndexFunc(c.pods, func(p *corev1.Pod) bool { return p.UID == pod.UID && p.DeletionTimestamp == nil })
	owner := metav1.GetControllerOf(pod)
	switch {
	case c.evictErr != nil:
		return c.evictErr
	case i < 0:
		return apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
	case owner == nil:
		c.t.Fatalf("%s has no owner and was evicted", pod.Name)
	case c.budgets[owner.Name]:
		return tooMany("The disruption budget " + owner.Name + " needs 2 healthy pods and has 2 currently")
	}
	deleted := c.pods[i].DeepCopy()
	now := metav1.NewTime(c.now)
	deleted.DeletionTimestamp = &now
	c.pods[i] = deleted
	c.evicted = append(c.evicted, pod.Name)
	return nil
}

func tooMany(cause string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests,
		Message: "Cannot evict pod as it would violate the pod's disruption budget.",
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "DisruptionBudget", Message: cause}}},
	}}
}

// step takes one step of the evictor, in which the cluster stands still.
func (c *cluster) step() int {
	c.now = c.now.Add(time.Second)
	before := len(c.evicted)
	c.reports, c.next = c.evictor.Step(context.Background(), c.now, slices.Clone(c.pods), slices.Clone(c.proxies))
	return len(c.evicted) - before
}

// run steps until nothing more is to be done, and fails if that does not end.
func (c *cluster) run() {
	c.t.Helper()
	for range 200 {
		c.step()
		c.settle()
		if c.next == 0 {
			c.step()
			return
		}
		if c.next > stepTime {
			c.now = c.now.Add(c.next)
		}
	}
	c.t.Fatalf("the evictor does not come to rest: %+v", c.reports)
}

// wrong are the pods that are not as they should be.
func (c *cluster) wrong() (list []string) {
	for _, p := range c.pods {
		if judge(c.rules, p, c.proxies).affected {
			list = append(list, p.Name)
		}
	}
	return list
}

func (c *cluster) report(name string) *Report {
	for key, r := range c.reports {
		if key.Name == name {
			return r
		}
	}
	c.t.Fatalf("no report of %s", name)
	return nil
}

func condition(t *testing.T, r *Report, kind string) metav1.Condition {
	t.Helper()
	for _, c := range r.Conditions(7) {
		if c.Type == kind {
			if c.ObservedGeneration != 7 || c.Message == "" {
				t.Errorf("condition %+v", c)
			}
			return c
		}
	}
	t.Fatalf("no condition %s", kind)
	return metav1.Condition{}
}
