package pods

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/selection"
)

// burstTime is how long a copy is taken to be good for pods that come one after the other. A pod
// may be in a namespace that was deleted and made again.
const burstTime = 2 * time.Second

// copyRetry bounds the pauses before a copy is tried again.
const copyRetry, copyRetryMost = 100 * time.Millisecond, 30 * time.Second

// Copier copies the password of a Proxy to where a pod needs it as soon as the API server tells of
// the pod, long before its node starts it. Every operator has one, so that no pod waits for another
// leader.
type Copier struct{ pods *Pods }

// Copier returns what copies passwords.
func (p *Pods) Copier() *Copier { return &Copier{p} }

// NeedLeaderElection says that every operator does it.
func (*Copier) NeedLeaderElection() bool { return false }

// Start copies until ctx ends.
func (c *Copier) Start(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](copyRetry, copyRetryMost))
	informer, err := c.pods.cfg.Cache.GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(o any) {
		if pod, ok := o.(*corev1.Pod); ok {
			if route, _ := selection.Injected(pod); route != "" {
				queue.Add(client.ObjectKeyFromObject(pod))
			}
		}
	}})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = informer.RemoveEventHandler(registration)
		queue.ShutDown()
	})
	defer stop()
	for {
		key, shut := queue.Get()
		if shut {
			return nil
		}
		if err := c.copy(ctx, key); err != nil && ctx.Err() == nil {
			c.pods.cfg.Log.Warn("a pod waits for the password of its proxy", "namespace", key.Namespace, "pod", key.Name, "error", err)
			queue.AddRateLimited(key)
		} else {
			queue.Forget(key)
		}
		queue.Done(key)
	}
}

// copy copies what a pod needs. What the pod says is believed only if the Proxy selects it.
func (c *Copier) copy(ctx context.Context, key types.NamespacedName) error {
	pod := &corev1.Pod{}
	if err := c.pods.cfg.Client.Get(ctx, key, pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	all, err := c.pods.Proxies(ctx)
	if err != nil {
		return err
	}
	route, _ := selection.Injected(pod)
	for _, proxy := range c.pods.cfg.Rules.Selecting(pod.Namespace, pod, all) {
		if proxy.Route() == route && proxy.Agent != "" {
			return c.pods.password(ctx, proxy, pod.Namespace, burstTime)
		}
	}
	return nil
}
