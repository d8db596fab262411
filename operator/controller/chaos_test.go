package controller

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
)

// TestChaos lets Proxies of both groups, Secrets, the hub, agents, Deployments, other managers, the
// API server, the cache and the operator itself change and fail in any order. Whatever happens, an
// agent that was told stays; and once things are quiet every Proxy tells how it is, exactly what it
// needs is there, nothing is written any more, and what was deleted is gone.
func TestChaos(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, upbound.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	known := newChaosTypes(scheme)
	rapid.Check(t, func(rt *rapid.T) {
		w := newChaosWorld(t.Context(), rt, known)
		for range rapid.IntRange(1, 40).Draw(rt, "events") {
			w.event(rt)
		}
		w.quiet()
	})
}

// Few names, so that they meet.
var (
	chaosNames   = []string{"a", "b"}
	chaosSecrets = []string{"s", "t"}
	chaosAgents  = []string{"", "x", "y"}
	chaosTokens  = []string{"good", "other", "bad", ""}
)

const chaosSpace = "ns"

// event lets one thing happen.
func (w *chaosWorld) event(t *rapid.T) {
	one := func(of []string) string { return rapid.SampledFrom(of).Draw(t, "which") }
	switch what := rapid.SampledFrom([]string{
		"look", "look", "look", "look", "sync", "sync", "sync", "collect", "create", "create", "spec", "delete", "secret", "secret", "no secret",
		"hub", "agent", "agent", "ready", "ready", "restart", "break", "foreign", "record", "occupy", "fail", "time", "undo",
	}).Draw(t, "event"); what {
	case "look":
		g := w.groups[rapid.IntRange(0, 1).Draw(t, "group")]
		w.reconcile(g, client.ObjectKey{Namespace: chaosSpace, Name: one(chaosNames)})
	case "sync":
		w.sync()
	case "collect":
		w.collect()
	case "create":
		w.create(t, one(chaosNames))
	case "spec", "delete", "record":
		for _, g := range w.groups {
			for _, p := range w.proxies(g) {
				if rapid.Bool().Draw(t, "this") {
					w.change(t, what, p)
				}
			}
		}
	case "secret":
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: chaosSpace, Name: one(chaosSecrets)}}
		_ = w.api.Delete(w.ctx, s)
		s.ResourceVersion, s.Data = "", map[string][]byte{"token": []byte(one(chaosTokens))}
		w.ok(w.api.Create(w.ctx, s))
	case "no secret":
		_ = w.api.Delete(w.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: chaosSpace, Name: one(chaosSecrets)}})
	case "hub":
		w.hub.gone = !w.hub.gone
	case "agent":
		agent := one(chaosAgents)
		if agent == "" {
			for _, one := range w.told {
				w.hub.up[one.agent] = true
			}
		}
		w.hub.up[agent] = !w.hub.up[agent]
	case "ready":
		n := int32(rapid.IntRange(0, 2).Draw(t, "pods"))
		for _, o := range w.all() {
			if d, ok := o.(*appsv1.Deployment); ok {
				d.Status.ReadyReplicas = n
				w.ok(w.api.Status().Update(w.ctx, d))
			}
		}
	case "restart":
		w.restart()
	case "break", "foreign":
		if all := w.all(); len(all) > 0 {
			w.meddle(t, what, all[rapid.IntRange(0, len(all)-1).Draw(t, "object")])
		}
	case "occupy":
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: chaosSpace, Name: ObjectName(one(chaosNames))}}
		if err := w.api.Create(w.ctx, s); apierrors.IsAlreadyExists(err) {
			w.ok(w.api.Get(w.ctx, client.ObjectKeyFromObject(s), s))
			if metav1.GetControllerOf(s) == nil {
				w.ok(w.api.Delete(w.ctx, s))
			}
		}
	case "fail":
		w.failures(t)
	case "time":
		w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Second, grace + time.Second, reapply}).Draw(t, "time"))
	case "undo":
		w.undone = !w.undone
	}
}

// create makes a Proxy, unless there is one.
func (w *chaosWorld) create(t *rapid.T, name string) {
	p := v1alpha1.Object(&v1alpha1.Proxy{})
	if rapid.Bool().Draw(t, "compatible") {
		p = &upbound.Proxy{}
	}
	p.SetNamespace(chaosSpace)
	p.SetName(name)
	p.SetUID(w.uid())
	p.SetGeneration(1)
	w.spec(t, p)
	if err := w.api.Create(w.ctx, p); !apierrors.IsAlreadyExists(err) {
		w.ok(err)
	}
}

func (w *chaosWorld) spec(t *rapid.T, p v1alpha1.Object) {
	s := p.Common()
	s.AgentID = rapid.SampledFrom(chaosAgents).Draw(t, "agent")
	s.SecretRef = v1alpha1.SecretKeyRef{Name: rapid.SampledFrom(chaosSecrets).Draw(t, "secret"), Key: "token"}
	s.PodSelector.MatchLabels = map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(rapid.SampledFrom(chaosNames).Draw(t, "selector"))}
}

// change has a person change a Proxy, or its records be lost.
func (w *chaosWorld) change(t *rapid.T, what string, p v1alpha1.Object) {
	switch {
	case what == "delete":
		w.ok(w.api.Delete(w.ctx, p))
		return
	case what == "spec":
		w.spec(t, p)
		p.SetGeneration(p.GetGeneration() + 1)
		delete(w.connected, p.GetUID())
		w.ok(w.api.Update(w.ctx, p))
	case rapid.Bool().Draw(t, "status"):
		if p.GetAnnotations()[AnnotationAgentID] == "" && p.Common().Agent() == "" {
			return // nothing would be left of it
		}
		*p.State() = v1alpha1.ProxyStatus{}
		delete(w.connected, p.GetUID())
		w.ok(w.api.Status().Update(w.ctx, p))
	default:
		if p.State().AgentID == "" {
			return // as above
		}
		p.SetAnnotations(map[string]string{AnnotationAgentID: rapid.SampledFrom([]string{"", "No ID"}).Draw(t, "annotation")})
		w.ok(w.api.Update(w.ctx, p))
	}
}

// meddle has somebody delete or change what was made for a Proxy.
func (w *chaosWorld) meddle(t *rapid.T, what string, o client.Object) {
	if metav1.GetControllerOf(o) == nil {
		return
	}
	w.sync() // a watch leaves nothing out
	if what == "break" {
		w.ok(w.api.Delete(w.ctx, o))
		return
	}
	switch one := o.(type) {
	case *appsv1.Deployment:
		if rapid.Bool().Draw(t, "scale") {
			three := int32(3)
			one.Spec.Replicas = &three
		} else {
			one.Spec.Template.Spec.Containers[0].Image = "another:image"
		}
	case *corev1.Secret:
		one.Data[keyPassword] = []byte("mine")
	default:
		o.GetLabels()["app.kubernetes.io/component"] = "another"
	}
	w.ok(w.api.Update(w.ctx, o, client.FieldOwner("somebody")))
}

// failures has some of the operator's writes fail from now on, or none.
func (w *chaosWorld) failures(t *rapid.T) {
	w.fail, w.lose = nil, rapid.Bool().Draw(t, "lose")
	share := rapid.SampledFrom([]int{0, 30, 100}).Draw(t, "share")
	if share == 0 {
		return
	}
	dice := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	resource := v1alpha1.GroupVersion().WithResource("any").GroupResource()
	w.fail = func(what string) error {
		if dice.IntN(100) >= share {
			return nil
		}
		return []error{
			apierrors.NewConflict(resource, what, fmt.Errorf("it was changed")), apierrors.NewInternalError(fmt.Errorf("etcd")),
			apierrors.NewTimeoutError("too slow", 1), apierrors.NewForbidden(resource, what, fmt.Errorf("quota")),
		}[dice.IntN(4)]
	}
}

// quiet lets everything that fails work again, and checks what comes of it.
func (w *chaosWorld) quiet() {
	w.fail, w.undone = nil, true
	w.settled()
	w.now = w.now.Add(grace + time.Second)
	w.settled()
	need := map[string]bool{}
	for _, g := range w.groups {
		for _, p := range w.proxies(g) {
			w.judge(g, p)
			if !p.GetDeletionTimestamp().IsZero() {
				w.t.Fatalf("%s %s was deleted and is still there: %v", g.name, p.GetName(), p.GetFinalizers())
			}
			need[string(p.GetUID())] = true
		}
		if remembered := len(g.r.memory); remembered > len(w.proxies(g)) {
			w.t.Fatalf("%s: %d Proxies are remembered of %d", g.name, remembered, len(w.proxies(g)))
		}
	}
	for _, o := range w.all() {
		if c := metav1.GetControllerOf(o); c != nil && !need[string(c.UID)] {
			w.t.Fatalf("%T %s is left behind", o, o.GetName())
		}
	}
}

// judge checks what a Proxy tells at rest, and what was made for it.
func (w *chaosWorld) judge(g *chaosGroup, p v1alpha1.Object) {
	s := p.State()
	if id := p.Common().Agent(); id != "" && s.AgentID != id || s.AgentID == "" {
		w.t.Fatalf("%s %s: agent %q, wanted %q", g.name, p.GetName(), s.AgentID, id)
	}
	reason, foreign := w.expect(p)
	ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Reason != reason || ready.ObservedGeneration != p.GetGeneration() || s.ObservedGeneration != p.GetGeneration() {
		w.t.Fatalf("%s %s: condition %+v, want %s at generation %d", g.name, p.GetName(), ready, reason, p.GetGeneration())
	}
	if reason == ReasonNameTaken && (!strings.Contains(ready.Message, p.GetName()+" ("+g.name+") needs") || !strings.Contains(ready.Message, "it belongs to Proxy "+p.GetName()) && !strings.Contains(ready.Message, "not made by the operator")) {
		w.t.Fatalf("the message does not name both: %s", ready.Message)
	}
	phase := v1alpha1.PhaseWaitingForProxy
	switch {
	case reason == ReasonConnected:
		phase = v1alpha1.PhaseConnected
	case w.connected[p.GetUID()]:
		phase = v1alpha1.PhaseDisconnected
	}
	if s.Phase != phase {
		w.t.Fatalf("%s %s: phase %s, want %s (%s)", g.name, p.GetName(), s.Phase, phase, reason)
	}
	applied := meta.FindStatusCondition(s.Conditions, ConditionApplied)
	want := ReasonApplied
	switch {
	case reason == ReasonNameTaken:
		want = ReasonNameTaken
	case foreign:
		want = ReasonFieldsOfOthers
	}
	if applied == nil || applied.Reason != want || want == ReasonFieldsOfOthers && !strings.Contains(applied.Message, "somebody") {
		w.t.Fatalf("%s %s: condition %+v, want %s", g.name, p.GetName(), applied, want)
	}
}

// expect returns the reason that follows from what is there, and whether others have set something.
func (w *chaosWorld) expect(p v1alpha1.Object) (reason string, foreign bool) {
	own, ready := 0, int32(0)
	for _, o := range w.all() {
		if o.GetName() != ObjectName(p.GetName()) {
			continue
		}
		if !metav1.IsControlledBy(o, p) {
			return ReasonNameTaken, false
		}
		own++
		foreign = foreign || o.GetLabels()["app.kubernetes.io/component"] != "proxy"
		if d, ok := o.(*appsv1.Deployment); ok {
			ready = d.Status.ReadyReplicas
			foreign = foreign || d.Spec.Template.Spec.Containers[0].Image != "postern:test"
		}
	}
	if own != len(w.kinds()) {
		w.t.Fatalf("%T %s has %d objects of %d", p, p.GetName(), own, len(w.kinds()))
	}
	secret := &corev1.Secret{}
	err := w.api.Get(w.ctx, client.ObjectKey{Namespace: chaosSpace, Name: p.Common().SecretRef.Name}, secret)
	switch token := string(secret.Data["token"]); {
	case err != nil:
		return ReasonSecretMissing, foreign
	case token == "":
		return ReasonSecretKeyMissing, foreign
	case w.hub.gone:
		return ReasonHubUnreachable, foreign
	case token == w.hub.refused:
		return ReasonTokenRefused, foreign
	case !w.hub.up[p.State().AgentID]:
		return ReasonAgentNotConnected, foreign
	case ready == 0:
		return ReasonProxyNotReady, foreign
	default:
		return ReasonConnected, foreign
	}
}
