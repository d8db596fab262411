package evict

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"postern.dev/postern/operator/selection"
)

// judgement is what is to be thought of one pod.
type judgement struct {
	want     *selection.Proxy  // the Proxy that it belongs to; nil for none
	others   []selection.Proxy // Proxies that select it too, and lose
	about    *selection.Proxy  // the Proxy whose affair the pod is: the wanted one, or else that which it was pointed to
	affected bool              // it is not as it should be
}

// judge compares what a pod has with what it should have. Pods that were pointed to a Proxy of which
// nothing is known are left alone: they may be another operator's.
func judge(rules selection.Rules, pod *corev1.Pod, proxies []selection.Proxy) judgement {
	if !rules.Covers(pod.Namespace) || pod.DeletionTimestamp != nil || finished(pod) {
		return judgement{}
	}
	route, agent := selection.Injected(pod)
	selecting := rules.Selecting(pod.Namespace, pod, proxies)
	if len(selecting) > 0 {
		j := judgement{want: &selecting[0], others: selecting[1:], about: &selecting[0]}
		j.affected = j.want.Agent != "" && (route != j.want.Route() || agent != j.want.Agent)
		return j
	}
	for i := range proxies {
		if route != "" && proxies[i].Route() == route {
			return judgement{about: &proxies[i], affected: true}
		}
	}
	return judgement{}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// remaker returns who makes a new pod when this one is evicted, or nil if nobody is known to. A
// Job counts the eviction as a failure and loses the work; and a node keeps its static pods.
func remaker(pod *corev1.Pod) *metav1.OwnerReference {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind == "Job" || owner.Kind == "Node" {
		return nil
	}
	return owner
}

// Left counts the pods that go to a Proxy and that would be made again without it.
func Left(rules selection.Rules, pods []corev1.Pod, key selection.Key) (n int) {
	for i := range pods {
		pod := &pods[i]
		route, _ := selection.Injected(pod)
		if route == key.Route() && rules.Covers(pod.Namespace) && pod.DeletionTimestamp == nil && !finished(pod) && remaker(pod) != nil {
			n++
		}
	}
	return n
}

// Trim leaves of a pod its metadata and the little of its status that this package looks at. It is fit for the cache of pods, which are many.
func Trim(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	annotations := maps.Clone(pod.Annotations)
	delete(annotations, corev1.LastAppliedConfigAnnotation) // as large as the pod itself
	slim := &corev1.Pod{TypeMeta: pod.TypeMeta, ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
		Labels: pod.Labels, Annotations: annotations, OwnerReferences: pod.OwnerReferences,
	}}
	slim.Status.Phase = pod.Status.Phase
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			slim.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return slim, nil
}

// Same reports whether two versions of a trimmed pod say the same to this package. Most of what nodes
// tell of pods is about something else.
func Same(before, after any) bool {
	a, ok := before.(*corev1.Pod)
	b, ok2 := after.(*corev1.Pod)
	if !ok || !ok2 {
		return false
	}
	as := *a
	as.ResourceVersion = b.ResourceVersion
	return equality.Semantic.DeepEqual(&as, b)
}
