package inject

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"postern.dev/postern/operator/selection"
)

// drawContainer makes a container whose variables come from few names, ours among them.
func drawContainer(t *rapid.T, name string) corev1.Container {
	c := corev1.Container{Name: name}
	for range rapid.IntRange(0, 6).Draw(t, "variables") {
		v := corev1.EnvVar{
			Name:  rapid.SampledFrom([]string{"A", "B", "HTTP_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "KUBERNETES_SERVICE_HOST", passwordVariable}).Draw(t, "variable"),
			Value: rapid.SampledFrom([]string{"", "x", "$(HTTP_PROXY)", wantURL, "10.0.0.1"}).Draw(t, "value"),
		}
		if rapid.IntRange(0, 9).Draw(t, "reference") == 0 {
			v.Value, v.ValueFrom = "", &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: "own"}, Key: "password",
			}}
		}
		c.Env = append(c.Env, v)
	}
	return c
}

func drawPod(t *rapid.T) *corev1.Pod {
	pod := onePod()
	pod.Spec.Containers = nil
	for i := range rapid.IntRange(1, 3).Draw(t, "containers") {
		pod.Spec.Containers = append(pod.Spec.Containers, drawContainer(t, fmt.Sprintf("c%d", i)))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "init containers") {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, drawContainer(t, fmt.Sprintf("i%d", i)))
	}
	if rapid.Bool().Draw(t, "annotated") {
		pod.Annotations = map[string]string{"own/annotation": "x", AnnotationNoProxy: rapid.StringN(0, 20, -1).Draw(t, "no-proxy")}
	}
	return pod
}

func drawRoute(t *rapid.T) *Route {
	route := testRoute()
	route.Agent = rapid.SampledFrom([]string{"agent-1", "agent-2"}).Draw(t, "agent")
	route.APIServer = rapid.SampledFrom([]string{"10.96.0.1", "fd00::1", "kubernetes.default.svc"}).Draw(t, "API server")
	return route
}

// without is a pod as the user wrote it: ours taken out of it again.
func without(t *rapid.T, pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			first, count := ours(list[i].Env)
			if first+count != len(list[i].Env) {
				t.Fatalf("ours do not come last: %v", names(list[i]))
			}
			list[i].Env = list[i].Env[:first]
			if first == 0 {
				list[i].Env = nil
			}
		}
	}
	delete(pod.Annotations, selection.AnnotationInjected)
	delete(pod.Annotations, selection.AnnotationAgent)
	if len(pod.Annotations) == 0 {
		pod.Annotations = nil
	}
	return pod
}

func TestPlansAreIdempotentAndTouchNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod, route := drawPod(t), drawRoute(t)
		before := pod.DeepCopy()
		once := applied(t, pod, NewPlan(pod, route, nil))
		if diff := cmp.Diff(before, pod); diff != "" {
			t.Fatalf("the plan changed the pod itself:\n%s", diff)
		}
		if again := NewPlan(once, route, nil); len(again.Operations) > 0 {
			t.Fatalf("a second plan has %v", again.Operations)
		}
		if diff := cmp.Diff(before, without(t, once)); diff != "" {
			t.Fatalf("what the user wrote has changed (-before +after):\n%s", diff)
		}
	})
}

func TestPlansForgetEarlierOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod, first, second := drawPod(t), drawRoute(t), drawRoute(t)
		direct := applied(t, pod, NewPlan(pod, second, nil))
		earlier := applied(t, pod, NewPlan(pod, first, nil))
		detour := applied(t, earlier, NewPlan(earlier, second, nil))
		if diff := cmp.Diff(direct, detour); diff != "" {
			t.Fatalf("by way of another route (-direct +detour):\n%s", diff)
		}
		freed := applied(t, detour, NewPlan(detour, nil, nil))
		if diff := cmp.Diff(pod, without(t, freed)); diff != "" {
			t.Fatalf("freed again (-user's +freed):\n%s", diff)
		}
	})
}

func TestAUsersVariableIsNeverShadowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod := drawPod(t)
		got := applied(t, pod, NewPlan(pod, drawRoute(t), nil))
		for i, c := range got.Spec.Containers {
			theirs := pod.Spec.Containers[i].Env
			for _, v := range c.Env[len(theirs):] {
				if slices.ContainsFunc(theirs, func(own corev1.EnvVar) bool { return own.Name == v.Name }) {
					t.Fatalf("container %s: %s is the user's: %v", c.Name, v.Name, names(c))
				}
			}
		}
	})
}
