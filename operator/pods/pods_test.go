package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/evict"
	"postern.dev/postern/operator/inject"
	"postern.dev/postern/operator/selection"
)

var web = map[string]string{"app": "web"} //nolint:gochecknoglobals // a constant

// through is a pod that goes through a Proxy to an agent.
func through(route, agent string) func(corev1.Pod) bool {
	return func(pod corev1.Pod) bool {
		r, a := selection.Injected(&pod)
		return r == route && a == agent
	}
}

// TestPodsAtARealAPIServer follows a Proxy from its creation to its end, and counts evictions.
func TestPodsAtARealAPIServer(t *testing.T) {
	o := start(t)
	for i := range 3 {
		o.makePod("web", fmt.Sprintf("web-%d", i), web)
	}
	o.makePod("other", "other-0", map[string]string{"app": "other"})
	o.makePod("", "orphan", web)
	p := o.makeProxy("office", web)
	route := o.namespace + "/office"

	made := o.nodes(map[string]int{"web": 3}, web, func(pod corev1.Pod) bool {
		return pod.Labels["app"] == "other" || through(route, "agent-office")(pod)
	})
	if !maps.Equal(made, map[string]int{"web": 3}) {
		t.Errorf("made anew: %v, want the three of web", made)
	}
	o.condition("office", evict.ConditionPodsUpdated, evict.ReasonNoController, o.namespace+"/orphan")
	o.checkInjected(route)

	t.Run("another agent", func(t *testing.T) {
		o.t = t
		o.patch(p, `{"spec":{"agentID":"another"}}`)
		made := o.nodes(map[string]int{"web": 3}, web, func(pod corev1.Pod) bool {
			return pod.Labels["app"] == "other" || through(route, "another")(pod)
		})
		if !maps.Equal(made, map[string]int{"web": 3}) {
			t.Errorf("made anew: %v", made)
		}
	})
	t.Run("another selector", func(t *testing.T) {
		o.t = t
		o.patch(p, `{"spec":{"podSelector":{"matchLabels":{"app":"other"}}}}`)
		made := o.nodes(map[string]int{"web": 3}, web, func(pod corev1.Pod) bool {
			return pod.Labels["app"] == "other" || through("", "")(pod)
		})
		if !maps.Equal(made, map[string]int{"web": 3}) {
			t.Errorf("made anew: %v", made)
		}
		other := o.nodes(map[string]int{"other": 1}, map[string]string{"app": "other"}, func(pod corev1.Pod) bool {
			return pod.Labels["app"] == "web" || through(route, "another")(pod)
		})
		if other["web"] != 0 || other["other"] > 1 {
			t.Errorf("made anew: %v", other)
		}
		o.condition("office", evict.ConditionPodsUpdated, evict.ReasonUpToDate, "1 pod goes")
		o.eventually("the selector is applied", func() string {
			now := &v1alpha1.Proxy{}
			o.must(o.client.Get(t.Context(), client.ObjectKeyFromObject(p), now))
			if s := now.Status.LastAppliedPodSelector; s == nil || s.MatchLabels["app"] != "other" || now.Status.ReadyProxies != 1 {
				return fmt.Sprintf("status %+v", now.Status)
			}
			return ""
		})
	})
	t.Run("deleted", func(t *testing.T) {
		o.t = t
		o.must(o.client.Delete(t.Context(), p))
		o.nodes(map[string]int{"other": 1}, map[string]string{"app": "other"}, through("", ""))
		now := &v1alpha1.Proxy{}
		o.must(o.client.Get(t.Context(), client.ObjectKeyFromObject(p), now))
		o.eventually("all is undone", func() string {
			done, err := o.pods.Undo(t.Context(), now)
			if err != nil || !done {
				return fmt.Sprint(done, err)
			}
			return ""
		})
		copied := &corev1.Secret{}
		if err := o.client.Get(t.Context(), client.ObjectKey{Namespace: o.namespace, Name: selection.SecretName(Summary(now).Key)}, copied); !apierrors.IsNotFound(err) {
			t.Errorf("the copy of the password is left: %v", err)
		}
	})
}

// checkInjected looks at a pod the way its node would.
func (o *operator) checkInjected(route string) {
	o.t.Helper()
	pod := o.list()[0]
	for _, one := range o.list() {
		if r, _ := selection.Injected(&one); r == route {
			pod = one
		}
	}
	vars := map[string]string{}
	for _, v := range pod.Spec.Containers[0].Env {
		vars[v.Name] = v.Value
		if v.ValueFrom != nil {
			s := &corev1.Secret{}
			o.must(o.client.Get(o.t.Context(), client.ObjectKey{Namespace: o.namespace, Name: v.ValueFrom.SecretKeyRef.Name}, s))
			if got := string(s.Data[v.ValueFrom.SecretKeyRef.Key]); got != "secret of office" {
				o.t.Errorf("the password is %q", got)
			}
		}
	}
	if want := "http://agent-office:$(POSTERN_PROXY_PASSWORD)@office-proxy." + o.namespace + ".svc:3128"; vars["HTTPS_PROXY"] != want || vars["http_proxy"] != want {
		o.t.Errorf("variables %v, want proxy %s", vars, want)
	}
	if !strings.HasPrefix(vars["NO_PROXY"], "10.96.0.1,") {
		o.t.Errorf("NO_PROXY is %s", vars["NO_PROXY"])
	}
}

// TestADryRunWritesNothing asks with kubectl's --dry-run=server: the pod is shown with its proxy,
// and no password is copied for it. A pod that is there gets one.
func TestADryRunWritesNothing(t *testing.T) {
	o := start(t)
	p := o.makeProxy("office", web)
	pod := o.bare("", web)
	pod.GenerateName = "web-"
	o.eventually("the Proxy is known", func() string {
		dry := pod.DeepCopy()
		o.must(o.client.Create(t.Context(), dry, client.DryRunAll))
		if route, _ := selection.Injected(dry); route == "" {
			return "not injected"
		}
		return ""
	})
	name := client.ObjectKey{Namespace: o.namespace, Name: selection.SecretName(selection.Key{Namespace: p.Namespace, Name: p.Name})}
	if err := o.client.Get(t.Context(), name, &corev1.Secret{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run copied the password: %v", err)
	}
	t.Run("nor does a stranger's review", func(t *testing.T) {
		o.t = t
		raw, err := json.Marshal(pod)
		o.must(err)
		review, err := json.Marshal(admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{
			UID: "1", Operation: admissionv1.Create, Namespace: o.namespace, Object: runtime.RawExtension{Raw: raw},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		}})
		o.must(err)
		answer, err := inject.NewWebhook(nil, slog.New(slog.DiscardHandler), inject.NamedStep{Name: "proxy", Step: o.pods.Step()}).Review(t.Context(), review)
		if err != nil || !bytes.Contains(answer, []byte(`"patch":`)) {
			t.Errorf("%v %s", err, answer)
		}
		if err := o.client.Get(t.Context(), name, &corev1.Secret{}); !apierrors.IsNotFound(err) {
			t.Errorf("a review copied the password: %v", err)
		}
	})
	o.t = t
	o.must(o.client.Create(t.Context(), pod))
	o.eventually("the pod has its password", func() string {
		if err := o.client.Get(t.Context(), name, &corev1.Secret{}); err != nil {
			return err.Error()
		}
		return ""
	})

	t.Run("a Secret of somebody else's", func(t *testing.T) {
		o.t = t
		o.makeProxy("taken", map[string]string{"app": "taken"})
		theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: selection.SecretName(selection.Key{Namespace: p.Namespace, Name: "taken"})}}
		o.must(o.client.Create(t.Context(), theirs))
		o.eventually("the Proxy is known", func() string { // in a dry run, nothing is written
			dry := o.bare("dry", map[string]string{"app": "taken"})
			o.must(o.client.Create(t.Context(), dry, client.DryRunAll))
			if route, _ := selection.Injected(dry); route == "" {
				return "not injected"
			}
			return ""
		})
		pod := o.bare("taken", map[string]string{"app": "taken"})
		o.must(o.client.Create(t.Context(), pod))
		if route, _ := selection.Injected(pod); route != "" {
			t.Errorf("the pod goes through %s, with a Secret that is not the operator's", route)
		}
	})
}

// TestABudgetBlocksAnEviction has the real Eviction API refuse.
func TestABudgetBlocksAnEviction(t *testing.T) {
	o := start(t)
	o.makePod("web", "web-0", web)
	o.makePod("web", "web-1", web)
	budget := o.budget("careful", web, 0)
	o.makeProxy("office", web)
	o.condition("office", evict.ConditionPodsUpdated, evict.ReasonEvictionBlocked, o.namespace+"/web-0", "The disruption budget careful needs 2 healthy pods")
	t.Run("of a Proxy that is deleted", func(t *testing.T) {
		o.t = t
		p := o.makeProxy("going", map[string]string{"app": "going"})
		o.budget("never", map[string]string{"app": "going"}, 0)
		o.eventually("the pod goes through the proxy", func() string {
			pod := o.bare("going", map[string]string{"app": "going"})
			o.must(o.client.Create(t.Context(), pod, client.DryRunAll))
			if route, _ := selection.Injected(pod); route == "" {
				return "not injected"
			}
			return ""
		})
		o.makePod("going", "going-0", map[string]string{"app": "going"})
		o.must(o.client.Delete(t.Context(), p))
		o.must(o.client.Get(t.Context(), client.ObjectKeyFromObject(p), p))
		o.eventually("an event says what it waits for", func() string {
			o.mu.Lock()
			defer o.mu.Unlock()
			for _, e := range o.events {
				if strings.HasPrefix(e, "going "+evict.EventBlocked) && strings.Contains(e, "The disruption budget never needs") {
					return ""
				}
			}
			return fmt.Sprint(o.events)
		})
		if done, err := o.pods.Undo(t.Context(), p); done || err != nil {
			t.Errorf("done %t, %v, and its pod may not be evicted", done, err)
		}
		long := metav1.NewTime(time.Now().Add(-undoTime - time.Second))
		p.DeletionTimestamp = &long
		if done, err := o.pods.Undo(t.Context(), p); !done || err != nil {
			t.Errorf("done %t, %v, after it waited for long", done, err)
		}
	})
	o.t = t
	o.allow(budget, 1)
	right := func(pod corev1.Pod) bool {
		return pod.Labels["app"] == "going" || through(o.namespace+"/office", "agent-office")(pod)
	}
	o.eventually("a pod is replaced", func() string {
		for _, pod := range o.list() {
			if pod.DeletionTimestamp != nil {
				return ""
			}
		}
		return "none is evicted"
	})
	o.allow(budget, 2)
	if made := o.nodes(map[string]int{"web": 2}, web, right); made["web"] != 2 {
		t.Errorf("made anew: %v", made)
	}
}

// TestTheWebhookIsDown takes the webhook away: pods are made, none is evicted in vain, and when it is
// back, those that slipped through are replaced, and only those.
func TestTheWebhookIsDown(t *testing.T) {
	o := start(t)
	o.makeProxy("office", web)
	o.makePod("web", "web-0", web)
	right := through(o.namespace+"/office", "agent-office")
	o.nodes(map[string]int{"web": 1}, web, right)
	kept := o.list()[0].UID

	o.hook.set(true)
	began := time.Now()
	o.makePod("web", "web-1", web)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a pod was made after %s", took)
	}
	o.condition("office", evict.ConditionPodsUpdated, evict.ReasonWebhookDown, "1 pod waits", "Service and NetworkPolicy")
	for _, pod := range o.list() {
		if pod.DeletionTimestamp != nil {
			t.Fatalf("%s is evicted in vain", pod.Name)
		}
	}
	o.hook.set(false)
	if made := o.nodes(map[string]int{"web": 2}, web, right); made["web"] != 1 {
		t.Errorf("made anew: %v, want one", made)
	}
	found := false
	for _, pod := range o.list() {
		found = found || pod.UID == kept
	}
	if !found {
		t.Error("the pod that was as it should be was replaced too")
	}
}

// TestTheCertificateChanges deletes the Secret, and lets years pass: the API server goes on asking.
func TestTheCertificateChanges(t *testing.T) {
	o := start(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: o.config.Secret}}
	o.must(o.client.Delete(t.Context(), secret))
	ask := func(when string) {
		t.Helper()
		before := o.hook.count()
		o.must(o.client.Create(t.Context(), o.bare("tried", nil), client.DryRunAll))
		if o.hook.count() == before {
			t.Errorf("the API server did not ask %s", when)
		}
	}
	ask("with the Secret gone")
	o.must(o.keeper.Step(t.Context(), time.Now()))
	ask("with a new Secret that is not loaded yet")
	o.certify()
	o.must(o.keeper.Step(t.Context(), time.Now().Add(300*24*time.Hour))) // a new authority
	ask("with a new authority")
	o.must(o.keeper.Step(t.Context(), time.Now().Add(300*24*time.Hour))) // its first certificate
	ask("with a new certificate that is not loaded yet")
}

// TestTwoGroupsAndTwoProxies has Proxies of both groups select one pod.
func TestTwoGroupsAndTwoProxies(t *testing.T) {
	o := start(t)
	o.makeProxy("older", web)
	younger := &upbound.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "younger"}}
	younger.Spec.SecretRef = v1alpha1.SecretKeyRef{Name: "robot-token", Key: "token"}
	younger.Spec.AgentId = "agent-younger"
	younger.Spec.PodSelector.MatchLabels = values(web)
	o.eventually("a second has passed", func() string { // creation times have no finer grain
		if time.Now().Nanosecond() > 900_000_000 {
			return ""
		}
		return "not yet"
	})
	o.eventually("the younger is younger", func() string {
		_ = o.client.Delete(t.Context(), younger.DeepCopy())
		younger.ResourceVersion, younger.UID = "", ""
		if err := o.client.Create(t.Context(), younger); err != nil {
			return err.Error()
		}
		older := &v1alpha1.Proxy{}
		o.must(o.client.Get(t.Context(), client.ObjectKey{Namespace: o.namespace, Name: "older"}, older))
		if !older.CreationTimestamp.Before(&younger.CreationTimestamp) {
			return "of the same second"
		}
		return ""
	})
	o.serving(younger, 1)
	o.makePod("web", "web-0", web)
	o.nodes(map[string]int{"web": 1}, web, through(o.namespace+"/older", "agent-older"))
	o.condition("older", evict.ConditionConflict, evict.ReasonPodsShared, "/older (postern.dev), which is older and wins", "/younger (spaces.upbound.io)")
	o.eventually("the younger says so too", func() string {
		now := &upbound.Proxy{}
		o.must(o.client.Get(t.Context(), client.ObjectKeyFromObject(younger), now))
		for _, c := range now.Status.Conditions {
			if c.Type == evict.ConditionConflict && c.Status == metav1.ConditionTrue {
				return ""
			}
		}
		return fmt.Sprintf("%+v", now.Status)
	})
}

// TestVariablesFromObjects has the webhook look at the ConfigMaps and Secrets of a container.
func TestVariablesFromObjects(t *testing.T) {
	o := start(t)
	o.makeProxy("office", web)
	o.must(o.client.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "own"}, Data: map[string]string{"HTTPS_PROXY": "http://own:1"}}))
	for kind, want := range map[string]int{inject.KindConfigMap: 1, inject.KindSecret: 1} {
		name := "own"
		if kind == inject.KindSecret {
			name = "office-proxy"
		}
		keys, err := o.pods.keys(t.Context(), kind, o.namespace, name)
		if err != nil || len(keys) != want {
			t.Errorf("keys of the %s: %v (%v)", kind, keys, err)
		}
		if _, err := o.pods.keys(t.Context(), kind, o.namespace, "absent"); !apierrors.IsNotFound(err) {
			t.Errorf("a %s that is not there: %v", kind, err)
		}
	}
	if _, err := o.pods.keys(context.Background(), "Pod", o.namespace, "x"); err == nil {
		t.Error("a Pod has keys")
	}
}
