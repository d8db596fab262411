package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/evict"
	"postern.dev/postern/operator/selection"
)

// FieldManager is who writes what the status says of pods.
const FieldManager = "postern-operator-pods"

const (
	gatherTime = 200 * time.Millisecond // changes come in flocks
	restTimes  = 4                      // as long as the last step at least: in a large cluster there is always some change
	retryTime  = 5 * time.Second        // after a step that failed
	sweepTime  = time.Minute            // whatever is heard: nobody tells of a password that changed
	undoTime   = 10 * time.Minute       // a Proxy that is deleted waits no longer for its pods
)

// NeedLeaderElection says that one of several operators evicts pods.
func (*Pods) NeedLeaderElection() bool { return true }

// Start evicts pods and tells of it in the status of Proxies, until ctx ends.
func (p *Pods) Start(ctx context.Context) error {
	if err := p.listen(ctx); err != nil {
		return err
	}
	evictor := evict.New(evict.Config{Rules: p.cfg.Rules, Evict: p.evict, Probe: p.probe, Event: p.event(ctx), Log: p.cfg.Log})
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon, took := false, time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.kick:
			if !soon {
				timer.Reset(max(gatherTime, restTimes*took))
			}
			soon = true
			continue
		case <-timer.C:
			soon = false
		}
		began := time.Now()
		next, err := p.step(ctx, evictor)
		took = time.Since(began)
		if err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("pods were not brought up to date", "error", err)
			next = retryTime
		}
		if next <= 0 || next > sweepTime {
			next = sweepTime
		}
		timer.Reset(next)
	}
}

// listen has every change of a pod or Proxy noticed.
func (p *Pods) listen(ctx context.Context) error {
	kinds := []client.Object{&corev1.Pod{}}
	for _, empty := range p.cfg.Empty {
		kinds = append(kinds, empty())
	}
	notice := func(any) {
		select {
		case p.kick <- struct{}{}:
		default: // it is noticed already
		}
	}
	for _, kind := range kinds {
		informer, err := p.cfg.Cache.GetInformer(ctx, kind)
		if err != nil {
			return fmt.Errorf("watch pods and Proxies: %w", err)
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: notice, DeleteFunc: notice, UpdateFunc: func(before, after any) {
				if !evict.Same(before, after) {
					notice(after)
				}
			},
		})
		if err != nil {
			return fmt.Errorf("watch pods and Proxies: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = informer.RemoveEventHandler(registration) })
	}
	return nil
}

// step lets the evictor look once, and tells of it.
func (p *Pods) step(ctx context.Context, evictor *evict.Evictor) (time.Duration, error) {
	objects, err := p.objects(ctx)
	if err != nil {
		return 0, err
	}
	list := &corev1.PodList{}
	if err := p.cfg.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil { // they are many, and only read
		return 0, fmt.Errorf("list pods: %w", err)
	}
	proxies := make([]selection.Proxy, len(objects))
	for i, o := range objects {
		proxies[i] = Summary(o)
	}
	reports, next := evictor.Step(ctx, time.Now(), pointers(list), proxies)
	var problems []error
	for i, o := range objects {
		if o.GetDeletionTimestamp() == nil {
			problems = append(problems, p.follow(ctx, o, proxies[i], reports[proxies[i].Key]))
		}
	}
	return next, errors.Join(problems...)
}

// follow does for one Proxy what follows from a report: its status, and its password where its pods are.
func (p *Pods) follow(ctx context.Context, o v1alpha1.Object, proxy selection.Proxy, r *evict.Report) error {
	var problems []error
	if proxy.Agent != "" && proxy.Serving {
		for _, n := range r.Namespaces {
			problems = append(problems, client.IgnoreNotFound(p.Password(ctx, proxy, n)))
		}
	}
	before := o.State()
	after := v1alpha1.ProxyStatus{LastAppliedPodSelector: before.LastAppliedPodSelector}
	changed := false
	for _, c := range r.Conditions(o.GetGeneration()) {
		if old := meta.FindStatusCondition(before.Conditions, c.Type); old != nil {
			after.Conditions = append(after.Conditions, *old)
		}
		changed = meta.SetStatusCondition(&after.Conditions, c) || changed
	}
	if selector := o.Common().PodSelector.LabelSelector(); r.Settled() && proxy.Agent != "" && !equality.Semantic.DeepEqual(selector, before.LastAppliedPodSelector) {
		after.LastAppliedPodSelector, changed = selector, true
	}
	if changed {
		problems = append(problems, client.IgnoreNotFound(p.cfg.WriteStatus(ctx, o, after)))
	}
	return errors.Join(problems...)
}

// evict asks the Eviction API.
func (p *Pods) evict(ctx context.Context, pod *corev1.Pod) error {
	uid := pod.UID
	return p.cfg.Client.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}},
	})
}

// event tells what happened to a pod at the Proxy that it belongs to.
func (p *Pods) event(ctx context.Context) func(selection.Key, *corev1.Pod, string, string) {
	if p.cfg.Event == nil {
		return nil
	}
	return func(key selection.Key, pod *corev1.Pod, reason, message string) {
		objects, err := p.objects(ctx)
		if err != nil {
			return
		}
		for _, o := range objects {
			if Summary(o).Key == key {
				p.cfg.Event(o, pod, reason, message)
			}
		}
	}
}

// Undo frees the pods of a Proxy that is being deleted, and removes the copies of its password. It
// reports whether that is done; it waits for pods no longer than some minutes.
func (p *Pods) Undo(ctx context.Context, o v1alpha1.Object) (done bool, err error) {
	if err := setKind(o, p.cfg.Client.Scheme()); err != nil {
		return false, err
	}
	key := Summary(o).Key
	list := &corev1.PodList{}
	if err := p.cfg.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil { // as above
		return false, fmt.Errorf("list pods: %w", err)
	}
	left := evict.Left(p.cfg.Rules, list.Items, key)
	if since := o.GetDeletionTimestamp(); left > 0 && since != nil && time.Since(since.Time) < undoTime {
		return false, nil
	}
	if left > 0 {
		p.cfg.Log.Warn("a Proxy is deleted, and pods go to its proxy still", "proxy", key.String(), "pods", left)
	}
	return true, p.removeCopies(ctx, key)
}
