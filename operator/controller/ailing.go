package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
)

// ailing says why no pod of a proxy is ready, as far as its Deployment and pods tell; "" if they do not.
// It asks the API server: the cache has little of pods.
func (r *Reconciler) ailing(ctx context.Context, p v1alpha1.Object, d *appsv1.Deployment) (string, error) {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return clip(c.Message), nil
		}
	}
	if d.Spec.Replicas != nil && *d.Spec.Replicas == 0 {
		return fmt.Sprintf("Its Deployment is scaled to none: kubectl scale deployment/%s -n %s --replicas=%d", d.Name, d.Namespace, r.Pods.Replicas), nil
	}
	var pods corev1.PodList
	err := r.Direct.List(ctx, &pods, client.InNamespace(p.GetNamespace()), client.MatchingLabels(selectorLabels(p)), client.Limit(maxReplicas))
	if err != nil {
		return "", fmt.Errorf("list the proxy's pods: %w", err)
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { // those of the newest template first
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i := range pods.Items {
		if why := ailment(&pods.Items[i]); why != "" {
			return clip(why), nil
		}
	}
	return "", nil
}

// ailment says what keeps a pod from being ready; "" if it only takes its time.
func ailment(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return ""
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("Pod %s has no node: %s", pod.Name, c.Message)
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		switch w := s.State.Waiting; {
		case w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing":
			return strings.TrimSuffix(fmt.Sprintf("Pod %s waits: %s: %s", pod.Name, w.Reason, w.Message), ": ")
		case s.State.Running != nil && !s.Ready:
			return fmt.Sprintf("Pod %s runs, and is not ready yet. If that lasts, its log says why: kubectl logs -n %s %s", pod.Name, pod.Namespace, pod.Name)
		}
	}
	return ""
}
