package controller

import (
	"context"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// workers is how many Proxies of a group are looked at at once: most of a look is waiting for a hub.
const workers = 8

// What the operator needs to be allowed to do, for the chart. Secrets it may read one by one, by
// their names, and not list.
//
// +kubebuilder:rbac:groups=postern.dev;spaces.upbound.io,resources=proxies,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=postern.dev;spaces.upbound.io,resources=proxies/status,verbs=patch
// +kubebuilder:rbac:groups=postern.dev;spaces.upbound.io,resources=proxies/finalizers,verbs=update
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=services;serviceaccounts,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=pods,verbs=list
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;create;patch;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch

// watched are the kinds that are made for Proxies and that a change is noticed of.
func watched() []client.Object {
	return []client.Object{
		&appsv1.Deployment{}, &corev1.Service{}, &corev1.ServiceAccount{},
		&policyv1.PodDisruptionBudget{}, &networkingv1.NetworkPolicy{},
	}
}

// CacheOptions says which objects of the cluster the operator keeps in memory: of the kinds that it
// makes, only those that it has made.
func CacheOptions() map[client.Object]cache.ByObject {
	all := make(map[client.Object]cache.ByObject)
	for _, o := range watched() {
		all[o] = cache.ByObject{Label: labels.SelectorFromSet(labels.Set{"app.kubernetes.io/managed-by": FieldManager})}
	}
	return all
}

// Setup makes a manager run the reconciler.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	kinds, _, err := mgr.GetScheme().ObjectKinds(r.New())
	if err != nil {
		return fmt.Errorf("find the Proxy's kind: %w", err)
	}
	b := ctrl.NewControllerManagedBy(mgr).Named(kinds[0].Group).
		For(r.New(), builder.WithPredicates(predicate.Or[client.Object](
			predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}, predicate.NewPredicateFuncs(deleting)))).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	for _, o := range watched() {
		b = b.Watches(o, r.owned(kinds[0].GroupKind()))
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("set up the controller of Proxies: %w", err)
	}
	return nil
}

func deleting(o client.Object) bool { return !o.GetDeletionTimestamp().IsZero() }

// owned returns what has the Proxy looked at of an object that was made for it, when the object
// changes, and notes whether it was its wanted state that changed.
func (r *Reconciler) owned(kind schema.GroupKind) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	look := func(o client.Object, touched bool, q queue) {
		owner := metav1.GetControllerOf(o)
		if owner == nil {
			return
		}
		if of, err := schema.ParseGroupVersion(owner.APIVersion); err != nil || of.Group != kind.Group || owner.Kind != kind.Kind {
			return
		}
		key := types.NamespacedName{Namespace: o.GetNamespace(), Name: owner.Name}
		if touched {
			r.touched(key)
		}
		q.Add(reconcile.Request{NamespacedName: key})
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { look(e.Object, false, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
			if e.ObjectNew.GetResourceVersion() == e.ObjectOld.GetResourceVersion() {
				return
			}
			look(e.ObjectNew, wanted(e.ObjectOld, e.ObjectNew), q)
			if !metav1.IsControlledBy(e.ObjectNew, ownerOf(e.ObjectOld)) {
				look(e.ObjectOld, true, q) // it was taken away from its Proxy
			}
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { look(e.Object, true, q) },
	}
}

// wanted reports whether the wanted state of an object changed, and not only its status. Objects
// without a generation have no status that matters.
func wanted(before, after client.Object) bool {
	return after.GetGeneration() == 0 || before.GetGeneration() != after.GetGeneration() || !maps.Equal(before.GetLabels(), after.GetLabels())
}

// ownerOf returns the owner of an object as far as it can be compared.
func ownerOf(o client.Object) metav1.Object {
	owner := &metav1.ObjectMeta{}
	if c := metav1.GetControllerOf(o); c != nil {
		owner.UID = c.UID
	}
	return owner
}
