package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	applyconfigurations "k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"postern.dev/postern/internal/config"
	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// fataler is what the world fails.
type fataler interface {
	Fatalf(format string, args ...any)
}

// chaosWorld is a cluster that is no more than its API, with the controllers of both groups, a
// cache that lags behind, and writes that fail now and then.
type chaosWorld struct {
	t      fataler
	ctx    context.Context
	api    client.WithWatch // what is there; the world's own changes go here
	hub    *imitation
	now    time.Time
	groups []*chaosGroup

	seen      map[string]client.Object // the cache, by kind and key
	writes    []string                 // of the operator, in order
	last      error                    // of a look
	fail      func(what string) error  // what becomes of a write; nil: all is well
	lose      bool                     // a write that fails is done all the same
	made      int                      // objects with a UID
	told      map[types.UID]telling    // what statuses told of agents
	connected map[types.UID]bool       // statuses told that it was
	undone    bool                     // what others did for a Proxy is taken back at once
}

// telling is what a status told: the agent of a generation of the spec.
type telling struct {
	agent      string
	generation int64
}

// chaosGroup is the controller of one API group.
type chaosGroup struct {
	name string
	r    *Reconciler
	list func() v1alpha1.ObjectList
	due  map[types.NamespacedName]bool
}

// chaosTypes is what a fake API server knows of types; to find it out takes long.
type chaosTypes struct {
	scheme    *runtime.Scheme
	converter managedfields.TypeConverter
}

func newChaosTypes(scheme *runtime.Scheme) chaosTypes {
	return chaosTypes{scheme, applyconfigurations.NewTypeConverter(scheme)}
}

// ObjectToTyped implements managedfields.TypeConverter.
func (k chaosTypes) ObjectToTyped(o runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	kind := o.GetObjectKind().GroupVersionKind().Kind
	if u, ok := o.(*unstructured.Unstructured); ok && kind == "NetworkPolicy" {
		u = u.DeepCopy()
		unstructured.RemoveNestedField(u.Object, "status") // the fake API server makes it up
		o = u
	}
	return k.of(kind).ObjectToTyped(o, opts...)
}

// TypedToObject implements managedfields.TypeConverter.
func (k chaosTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	kind, _ := v.AsValue().AsMap().Get("kind")
	return k.of(kind.AsString()).TypedToObject(v)
}

// of returns what knows a kind: our own are not built in.
func (k chaosTypes) of(kind string) managedfields.TypeConverter {
	if kind == "Proxy" {
		return managedfields.NewDeducedTypeConverter()
	}
	return k.converter
}

func newChaosWorld(ctx context.Context, t fataler, known chaosTypes) *chaosWorld {
	w := &chaosWorld{
		t: t, ctx: ctx, hub: &imitation{up: map[string]bool{}, refused: "bad"}, now: time.Unix(1_800_000_000, 0), undone: true,
		seen: map[string]client.Object{}, told: map[types.UID]telling{}, connected: map[types.UID]bool{},
	}
	w.api = fake.NewClientBuilder().WithScheme(known.scheme).WithReturnManagedFields().
		WithTypeConverters(known).
		WithStatusSubresource(&v1alpha1.Proxy{}, &upbound.Proxy{}, &appsv1.Deployment{}).Build()
	w.groups = []*chaosGroup{
		{name: v1alpha1.Group, list: func() v1alpha1.ObjectList { return &v1alpha1.ProxyList{} }},
		{name: upbound.Group, list: func() v1alpha1.ObjectList { return &upbound.ProxyList{} }},
	}
	w.restart()
	return w
}

// restart forgets what the operator remembers; its new cache is what is there.
func (w *chaosWorld) restart() {
	for i, g := range w.groups {
		fresh := []func() v1alpha1.Object{func() v1alpha1.Object { return &v1alpha1.Proxy{} }, func() v1alpha1.Object { return &upbound.Proxy{} }}[i]
		g.r = &Reconciler{
			Client: w.operatorsClient(), Direct: w.api, Events: &events.FakeRecorder{}, Hubs: w.hub, Pods: config.DefaultOperator().Pods,
			Own: Hub{Hub: presence.Hub{ConnectURL: "tls://hub.example.org"}, Organization: "default"},
			New: fresh, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
			Undo: func(context.Context, v1alpha1.Object) (bool, error) { return w.undone, nil },
		}
		g.r.Pods.Image = "postern:test"
		g.due = map[types.NamespacedName]bool{}
	}
	w.seen = map[string]client.Object{}
	w.sync()
	for _, g := range w.groups {
		for _, p := range w.proxies(g) {
			g.due[client.ObjectKeyFromObject(p)] = true
		}
	}
}

// operatorsClient reads from the cache that lags, and its writes are noted and may fail.
func (w *chaosWorld) operatorsClient() client.Client {
	write := func(what string, do func() error) error {
		w.writes = append(w.writes, what)
		if w.fail != nil {
			if err := w.fail(what); err != nil {
				if w.lose {
					_ = do()
				}
				return err
			}
		}
		return do()
	}
	name := func(o runtime.ApplyConfiguration) string {
		if u, ok := o.(interface{ GetKind() string }); ok {
			return u.GetKind()
		}
		return fmt.Sprintf("%T", o)
	}
	return interceptor.NewClient(w.api, interceptor.Funcs{
		Get: func(_ context.Context, _ client.WithWatch, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
			there, ok := w.seen[cacheKey(o, key)]
			if !ok {
				return apierrors.NewNotFound(v1alpha1.GroupVersion().WithResource("cached").GroupResource(), key.Name)
			}
			return assign(o, there)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return write("patch "+o.GetName(), func() error { return c.Patch(ctx, o, p, opts...) })
		},
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			return write("apply "+name(o), func() error { return c.Apply(ctx, o, opts...) })
		},
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			return write("apply "+sub+" of "+name(o), func() error { return c.SubResource(sub).Apply(ctx, o, opts...) })
		},
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
			return errors.New("the controller creates nothing")
		},
		Delete: func(context.Context, client.WithWatch, client.Object, ...client.DeleteOption) error {
			return errors.New("the controller deletes nothing")
		},
	})
}

// cacheKey names an object in the cache.
func cacheKey(o client.Object, key client.ObjectKey) string {
	return fmt.Sprintf("%s %s", reflect.TypeOf(o).Elem().PkgPath()+reflect.TypeOf(o).Elem().Name(), key)
}

// assign copies one typed object into another.
func assign(to, from client.Object) error {
	switch to := to.(type) {
	case *v1alpha1.Proxy:
		from.(*v1alpha1.Proxy).DeepCopyInto(to)
	case *upbound.Proxy:
		from.(*upbound.Proxy).DeepCopyInto(to)
	case *appsv1.Deployment:
		from.(*appsv1.Deployment).DeepCopyInto(to)
	default:
		return fmt.Errorf("%T is not cached", to)
	}
	return nil
}

// ok fails the test at an error of the world's own.
func (w *chaosWorld) ok(err error) {
	if err != nil {
		w.t.Fatalf("%v", err)
	}
}

// uid is what the API server gives each object.
func (w *chaosWorld) uid() types.UID {
	w.made++
	return types.UID(fmt.Sprintf("uid-%d", w.made))
}

// proxies are those that are there.
func (w *chaosWorld) proxies(g *chaosGroup) []v1alpha1.Object {
	list := g.list()
	w.ok(w.api.List(w.ctx, list))
	return list.Objects()
}

// kinds are lists of what the operator makes.
func (*chaosWorld) kinds() []client.ObjectList {
	return []client.ObjectList{
		&appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &policyv1.PodDisruptionBudgetList{},
		&networkingv1.NetworkPolicyList{}, &corev1.SecretList{},
	}
}

// all returns everything of the kinds that the operator makes.
func (w *chaosWorld) all() (all []client.Object) {
	for _, list := range w.kinds() {
		w.ok(w.api.List(w.ctx, list))
		w.ok(meta.EachListItem(list, func(o runtime.Object) error { all = append(all, o.(client.Object)); return nil }))
	}
	return all
}

// collect deletes what belongs to nobody any more, as the cluster does, and what belongs to a Proxy
// that is gone.
func (w *chaosWorld) collect() {
	alive := map[types.UID]bool{}
	for _, g := range w.groups {
		for _, p := range w.proxies(g) {
			alive[p.GetUID()] = true
		}
	}
	for _, o := range w.all() {
		if c := metav1.GetControllerOf(o); c != nil && !alive[c.UID] {
			w.ok(client.IgnoreNotFound(w.api.Delete(w.ctx, o)))
		}
	}
}

// sync brings the cache up to date, and has the controllers told of what changed, as their watches do.
func (w *chaosWorld) sync() {
	after := map[string]client.Object{}
	for _, g := range w.groups {
		for _, p := range w.proxies(g) {
			after[cacheKey(p, client.ObjectKeyFromObject(p))] = p
		}
	}
	for _, o := range w.all() {
		if _, secret := o.(*corev1.Secret); !secret && o.GetLabels()["app.kubernetes.io/managed-by"] == FieldManager {
			after[cacheKey(o, client.ObjectKeyFromObject(o))] = o
		}
	}
	before := w.seen
	w.seen = after
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if o, was := after[key], before[key]; was == nil {
			w.tell(nil, o)
		} else if !same(was, o) {
			w.tell(was, o)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if after[key] == nil {
			w.tell(before[key], nil)
		}
	}
}

// same reports whether a real API server would have kept an object as it is: the fake one gives it
// another version when nothing is changed.
func same(a, b client.Object) bool {
	a, b = a.DeepCopyObject().(client.Object), b.DeepCopyObject().(client.Object)
	for _, o := range []client.Object{a, b} {
		o.SetResourceVersion("")
		o.SetManagedFields(nil)
	}
	return equality.Semantic.DeepEqual(a, b)
}

// tell tells the controllers of a change.
func (w *chaosWorld) tell(before, after client.Object) {
	one := after
	if one == nil {
		one = before
	}
	for _, g := range w.groups {
		if kinds, _, err := w.api.Scheme().ObjectKinds(one); err != nil || kinds[0].Kind == "Proxy" {
			w.ok(err)
			if kinds[0].Group == g.name {
				g.due[client.ObjectKeyFromObject(one)] = true
			}
			continue
		}
		kinds, _, err := w.api.Scheme().ObjectKinds(g.r.New())
		w.ok(err)
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
		h := g.r.owned(kinds[0].GroupKind())
		switch {
		case before == nil:
			h.Create(w.ctx, event.CreateEvent{Object: after}, q)
		case after == nil:
			h.Delete(w.ctx, event.DeleteEvent{Object: before}, q)
		default:
			h.Update(w.ctx, event.UpdateEvent{ObjectOld: before, ObjectNew: after}, q)
		}
		for range q.Len() {
			r, _ := q.Get()
			g.due[r.NamespacedName] = true
			q.Done(r)
		}
		q.ShutDown()
	}
}

// reconcile has a controller look at a Proxy, and checks what it told.
func (w *chaosWorld) reconcile(g *chaosGroup, key types.NamespacedName) {
	delete(g.due, key)
	if _, err := g.r.Reconcile(w.ctx, ctrl.Request{NamespacedName: key}); err != nil {
		w.last = err // it is tried again, as is all else
	}
	for _, g := range w.groups {
		for _, p := range w.proxies(g) {
			w.inspect(p)
		}
	}
}

// inspect checks what holds of a Proxy's status at all times.
func (w *chaosWorld) inspect(p v1alpha1.Object) {
	s := p.State()
	if s.AgentID == "" {
		return
	}
	if !slices.Contains([]v1alpha1.Phase{v1alpha1.PhaseWaitingForProxy, v1alpha1.PhaseConnected, v1alpha1.PhaseDisconnected}, s.Phase) {
		w.t.Fatalf("phase %q", s.Phase)
	}
	if was := w.told[p.GetUID()]; was.generation == s.ObservedGeneration && was.agent != s.AgentID {
		w.t.Fatalf("agent %s became %s by itself", was.agent, s.AgentID)
	}
	w.told[p.GetUID()] = telling{s.AgentID, s.ObservedGeneration}
	w.connected[p.GetUID()] = w.connected[p.GetUID()] || s.Phase == v1alpha1.PhaseConnected
}

// settled looks at everything until nothing is left to do, and fails if that never comes.
func (w *chaosWorld) settled() {
	const enough = 12
	for range enough {
		w.writes, w.last = nil, nil
		w.collect()
		w.sync()
		for _, g := range w.groups {
			for _, p := range w.proxies(g) {
				w.reconcile(g, client.ObjectKeyFromObject(p))
			}
			for key := range g.due {
				w.reconcile(g, key)
			}
		}
		if len(w.writes) == 0 {
			return
		}
	}
	w.t.Fatalf("after %d rounds without a change the controllers still write: %s (error: %v)", enough, strings.Join(w.writes, ", "), w.last)
}
