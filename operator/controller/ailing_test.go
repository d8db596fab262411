package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"postern.dev/postern/operator/api/v1alpha1"
)

// TestWhyNoProxyIsReady has the condition tell what keeps the proxy's pods from running.
func TestWhyNoProxyIsReady(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.secret("aa.bb.cc")
	b.hub.up[b.settle().Status.AgentID] = true
	says := func(message string) {
		t.Helper()
		b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonProxyNotReady, message)
	}
	says("kubectl describe")
	template := b.deployment().Spec.Template
	pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: template.Spec}
	pod.Namespace, pod.Name = b.key.Namespace, "private-cluster-proxy-1"
	if err := b.c.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	status := func(s corev1.PodStatus) {
		t.Helper()
		pod.Status = s
		if err := b.c.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	container := func(s corev1.ContainerState) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "proxy", State: s}}}
	}
	waiting := func(reason, message string) corev1.PodStatus {
		return container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}})
	}
	status(corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available"}}})
	says("Pod private-cluster-proxy-1 has no node: 0/3 nodes are available")
	status(waiting("ContainerCreating", ""))
	says("kubectl describe")
	status(waiting("ImagePullBackOff", `Back-off pulling image "postern:test"`))
	says(`Pod private-cluster-proxy-1 waits: ImagePullBackOff: Back-off pulling image "postern:test"`)
	status(waiting("CrashLoopBackOff", ""))
	says("Pod private-cluster-proxy-1 waits: CrashLoopBackOff")
	status(container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}))
	says("kubectl logs -n " + b.key.Namespace + " private-cluster-proxy-1")

	if _, err := cluster.Kubectl(t.Context(), "", "scale", "deployment/private-cluster-proxy", "-n", b.key.Namespace, "--replicas=0"); err != nil {
		t.Fatal(err)
	}
	says("kubectl scale deployment/private-cluster-proxy -n " + b.key.Namespace + " --replicas=2")
}
