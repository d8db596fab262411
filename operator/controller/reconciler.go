package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// reapply is how often everything is applied again, whatever was heard of it.
const reapply = 10 * time.Minute

// Asker asks hubs about agents; *presence.Hubs does.
type Asker interface {
	Agent(ctx context.Context, where presence.Hub, organization, agent string, token []byte) (presence.Agent, error)
}

// Fronter asks the hub's own proxy whether it takes a password; *presence.Front does.
type Fronter interface {
	Takes(ctx context.Context, user, password string) error
}

// Reconciler brings the Proxies of one API group about. Its fields are set before it is used; it is
// then safe for concurrent use.
type Reconciler struct {
	Client client.Client // reads from the cache
	Direct client.Reader // reads from the API server
	Events events.EventRecorder
	Hubs   Asker
	Own    Hub // the operator's; for Proxies that do not say it themselves
	Pods   config.ProxyPods
	// HubProxy is the own proxy of that hub, which Proxies of that hub use instead of one of their own.
	HubProxy config.HubProxy
	Front    Fronter                // that proxy, where it is set
	New      func() v1alpha1.Object // an empty Proxy of the group
	// Undo takes back what others did for a Proxy that is being deleted. It reports whether that is
	// done; while it is not, it is called again. It may be nil.
	Undo    func(ctx context.Context, p v1alpha1.Object) (done bool, err error)
	Metrics *observe.Operator // nil: nothing is counted
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now

	mu     sync.Mutex
	memory map[types.NamespacedName]*memory
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	p := r.New()
	err := r.Client.Get(ctx, request.NamespacedName, p)
	if apierrors.IsNotFound(err) {
		r.forget(request.NamespacedName)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read the Proxy: %w", err)
	}
	if kinds, _, err := r.Client.Scheme().ObjectKinds(p); err == nil {
		p.GetObjectKind().SetGroupVersionKind(kinds[0]) // a typed object does not say it
	}
	if !p.GetDeletionTimestamp().IsZero() {
		return r.finish(ctx, p)
	}
	if changed, err := r.claim(ctx, p); err != nil || changed {
		return ctrl.Result{RequeueAfter: time.Millisecond}, ignoreConflict(err)
	}
	if changed, err := r.move(ctx, p); err != nil || changed {
		return ctrl.Result{RequeueAfter: time.Millisecond}, ignoreConflict(err)
	}
	f, err := r.look(ctx, p)
	if err != nil {
		return ctrl.Result{}, err
	}
	same, err := r.tell(ctx, p, f)
	return ctrl.Result{RequeueAfter: r.pause(request.NamespacedName, f, same)}, err
}

// ignoreConflict drops the error of a write that came too late: what was written will be looked at.
func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// claim puts the finalizer on a Proxy and, if it names no agent, makes an ID up and keeps it. It
// reports whether it changed the Proxy.
func (r *Reconciler) claim(ctx context.Context, p v1alpha1.Object) (changed bool, err error) {
	before, _ := p.DeepCopyObject().(client.Object)
	changed = controllerutil.AddFinalizer(p, Finalizer)
	if p.Common().Agent() == "" && identity.ValidateName("agent ID", p.GetAnnotations()[AnnotationAgentID]) != nil {
		id := p.State().AgentID
		if id == "" {
			id = uuid.NewString()
		}
		annotations := p.GetAnnotations()
		if annotations == nil {
			annotations = make(map[string]string)
		}
		annotations[AnnotationAgentID] = id
		p.SetAnnotations(annotations)
		changed = true
	}
	if !changed {
		return false, nil
	}
	err = r.Client.Patch(ctx, p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldManager))
	if err != nil {
		return true, fmt.Errorf("claim the Proxy: %w", err)
	}
	return true, nil
}

// agentOf returns the agent's ID that is in effect: of the spec, or the one that was made up. It
// never changes by itself.
func agentOf(p v1alpha1.Object) string {
	if id := p.Common().Agent(); id != "" {
		return id
	}
	return p.GetAnnotations()[AnnotationAgentID]
}

// look gathers what is known of a Proxy, and applies what it needs.
func (r *Reconciler) look(ctx context.Context, p v1alpha1.Object) (facts, error) {
	f := facts{agentID: agentOf(p), now: r.now(), secret: p.Common().SecretRef}
	if err := identity.ValidateName("agent ID", f.agentID); err != nil {
		f.problem = &problem{ReasonInvalidAgentID, fmt.Sprintf("%v. Set spec.agentID to the ID that the agent runs with.", err)}
		return f, nil
	}
	if _, err := metav1.LabelSelectorAsSelector(p.Common().PodSelector.LabelSelector()); err != nil {
		f.problem = &problem{ReasonInvalidSelector, fmt.Sprintf("spec.podSelector cannot be used: %v.", err)}
		return f, nil
	}
	if f.where, f.problem = hubOf(p, r.Own); f.problem != nil {
		return f, nil
	}
	var err error
	if f.foreign, f.problem, err = r.bring(ctx, p, f.where); err != nil || f.problem != nil {
		return f, err
	}
	f.applied = true
	if r.byHub(f.where) {
		f.byHub, f.credentials = r.HubProxy.Service, r.HubProxy.Credentials
	} else if f.ready, f.why, err = r.pods(ctx, p); err != nil {
		return f, err
	}
	if err = r.ask(ctx, p, &f); err == nil && f.byHub != "" {
		err = r.admit(ctx, p, &f)
	}
	return f, err
}

// bring applies what a Proxy needs, unless that was done and nobody touched it since.
func (r *Reconciler) bring(ctx context.Context, p v1alpha1.Object, h Hub) (foreign, trouble *problem, err error) {
	all, surplus, err := r.needs(p, h)
	if err != nil {
		return nil, nil, err
	}
	sum, err := digest(h.CA, all)
	if err != nil {
		return nil, nil, err
	}
	m := r.remember(p)
	r.mu.Lock()
	done := m.applied == sum && !m.dirty && r.now().Sub(m.at) < reapply
	foreign = m.foreign
	secret := m.secret
	m.dirty = false // what changes from here on is seen next time
	r.mu.Unlock()
	if done {
		if done, err = r.keeps(ctx, p, secret); err != nil || done {
			return foreign, nil, err
		}
	}
	foreign, secret, err = r.apply(ctx, p, h.CA, all, surplus)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		m.applied = ""
		if taken, ok := errors.AsType[*takenError](err); ok {
			return nil, &taken.problem, nil
		}
		if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) {
			return nil, &problem{ReasonNotApplied, clip(fmt.Sprintf("The API server refuses what the proxy needs: %v.", err))}, nil
		}
		return nil, nil, err
	}
	m.applied, m.at, m.foreign, m.secret = sum, r.now(), foreign, secret
	return foreign, nil, nil
}

// needs returns what a Proxy needs, and what it does not: that of the other way, by a proxy of its
// own or the hub's.
func (r *Reconciler) needs(p v1alpha1.Object, h Hub) (all, surplus []client.Object, err error) {
	all, err = desired(p, h, r.Pods, ServicePort(r.HubProxy))
	if err != nil || !r.byHub(h) {
		return all, nil, err
	}
	surplus = slices.DeleteFunc(all, func(o client.Object) bool { _, ok := o.(*corev1.Service); return ok })
	return []client.Object{alias(p, r.HubProxy)}, surplus, nil
}

// pods returns how many pods of a Proxy's proxy are ready, and if none is, why not.
func (r *Reconciler) pods(ctx context.Context, p v1alpha1.Object) (ready int32, why string, err error) {
	var d appsv1.Deployment
	err = r.Client.Get(ctx, client.ObjectKey{Namespace: p.GetNamespace(), Name: ObjectName(p.GetName())}, &d)
	if apierrors.IsNotFound(err) || err == nil && !metav1.IsControlledBy(&d, p) {
		return 0, "They are being made.", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read the proxy's Deployment: %w", err)
	}
	if d.Status.ReadyReplicas == 0 {
		why, err = r.ailing(ctx, p, &d)
	}
	return d.Status.ReadyReplicas, why, err
}

// tell writes the status if it says something new, and an event if Ready has another reason. It
// reports whether the status said it already.
func (r *Reconciler) tell(ctx context.Context, p v1alpha1.Object, f facts) (same bool, err error) {
	before := *p.State()
	after := judge(before, p.GetGeneration(), f)
	r.Metrics.Saw(p.GetUID(), string(after.Phase))
	if sameStatus(before, after) {
		return true, nil
	}
	if err := r.writeStatus(ctx, p, after); err != nil {
		return false, ignoreConflict(err)
	}
	was, is := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionReady)
	if was == nil || was.Reason != is.Reason {
		kind := corev1.EventTypeNormal
		if is.Status != metav1.ConditionTrue && is.Reason != ReasonAgentNotConnected && is.Reason != ReasonPasswordNotTaken || before.Phase == v1alpha1.PhaseConnected {
			kind = corev1.EventTypeWarning
		}
		r.event(p, kind, is.Reason, is.Message)
	}
	if w := meta.FindStatusCondition(before.Conditions, ConditionApplied); f.foreign != nil && (w == nil || w.Message != f.foreign.message) {
		r.event(p, corev1.EventTypeWarning, f.foreign.reason, f.foreign.message)
	}
	r.Log.Info("a Proxy changed", "proxy", p.GetNamespace()+"/"+p.GetName(), "phase", string(after.Phase), "reason", is.Reason, "agent", after.AgentID)
	return false, nil
}

// event tells people; the API takes messages of up to a kilobyte.
func (r *Reconciler) event(p v1alpha1.Object, kind, reason, message string) {
	const most = 1000
	r.Events.Eventf(p, nil, kind, reason, "Reconcile", "%s", wire.Clip(message, most))
}

// finish undoes what was done for a Proxy that is being deleted. What it owns the cluster deletes.
func (r *Reconciler) finish(ctx context.Context, p v1alpha1.Object) (ctrl.Result, error) {
	if !slices.Contains(p.GetFinalizers(), Finalizer) {
		return ctrl.Result{}, nil
	}
	if r.Undo != nil {
		done, err := r.Undo(ctx, p)
		if err != nil {
			return ctrl.Result{}, fmt.Errorf("undo what was done for the Proxy: %w", err)
		}
		if !done {
			return ctrl.Result{RequeueAfter: lookOften}, nil
		}
	}
	if err := Withdraw(ctx, r.Client, r.Direct, r.HubProxy, p); err != nil {
		return ctrl.Result{}, err
	}
	if err := Release(ctx, r.Client, p); err != nil {
		return ctrl.Result{}, err
	}
	r.forget(client.ObjectKeyFromObject(p))
	r.Metrics.Forgot(p.GetUID())
	return ctrl.Result{}, nil
}

// Release takes the finalizer off a Proxy.
func Release(ctx context.Context, c client.Client, p v1alpha1.Object) error {
	before, _ := p.DeepCopyObject().(client.Object)
	if !controllerutil.RemoveFinalizer(p, Finalizer) {
		return nil
	}
	err := c.Patch(ctx, p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldManager))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the finalizer off the Proxy: %w", err)
	}
	return nil
}

func (r *Reconciler) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}
