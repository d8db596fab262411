package identitytoken

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"postern.dev/postern/operator/inject"
)

// podWith returns a pod with labels and annotations, each as NAME=VALUE.
func podWith(pairs ...string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "crossplane-system", Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "provider"}}},
	}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "pkg.") {
			pod.Labels[name] = value
		} else {
			pod.Annotations[name] = value
		}
	}
	return pod
}

func TestWantOf(t *testing.T) {
	const provider = "pkg.crossplane.io/provider=provider-aws"
	for _, tt := range []struct {
		name  string
		pairs []string
		want  Want
		ok    bool
		err   string
	}{
		{"nothing", nil, Want{}, false, ""},
		{"a provider", []string{provider}, Want{Name: "provider-aws"}, true, ""},
		{"a function", []string{"pkg.crossplane.io/function=function-kcl"}, Want{Name: "function-kcl"}, true, ""},
		{"any pod", []string{"identity.postern.dev/name=backup"}, Want{Name: "backup"}, true, ""},
		{"the annotation wins", []string{provider, "identity.postern.dev/name=other"}, Want{Name: "other"}, true, ""},
		{"opted out", []string{provider, "identity.postern.dev/inject=false"}, Want{}, false, ""},
		{"the document's audience", []string{provider, "proidc.cloud-spaces.upbound.io/audience=sts.amazonaws.com"}, Want{Name: "provider-aws", Audience: "sts.amazonaws.com"}, true, ""},
		{"our audience wins", []string{provider, "proidc.cloud-spaces.upbound.io/audience=a", "identity.postern.dev/audience=b,c"}, Want{Name: "provider-aws", Audience: "b,c"}, true, ""},
		{"scoped", []string{provider, "proidc.cloud-spaces.upbound.io/group-scoped=true"}, Want{Name: "provider-aws", Scoped: true}, true, ""},
		{"not scoped", []string{provider, "identity.postern.dev/group-scoped=false"}, Want{Name: "provider-aws"}, true, ""},
		{"neither", []string{provider, "identity.postern.dev/group-scoped=yes"}, Want{}, false, "want true or false"},
		{"smuggled", []string{"identity.postern.dev/name=a:provider:b"}, Want{}, false, "want a-z"},
		{"capitals", []string{"pkg.crossplane.io/provider=AWS"}, Want{}, false, "want a-z"},
		{"no name", []string{"pkg.crossplane.io/provider="}, Want{}, false, "missing"},
	} {
		got, ok, err := WantOf(podWith(tt.pairs...))
		if got != tt.want || ok != tt.ok || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %+v, %v, %v", tt.name, got, ok, err)
		}
	}
}

// TestSecretNames: names that are different tokens' differ, and are names of Secrets.
func TestSecretNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() Want {
			return Want{
				Name:     rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?`).Draw(t, "name"),
				Audience: rapid.StringMatching(`[a-z" ,.]{0,5}`).Draw(t, "audience"), Scoped: rapid.Bool().Draw(t, "scoped"),
			}
		}
		a, b := draw(), draw()
		if problems := validation.IsDNS1123Subdomain(a.SecretName()); len(problems) > 0 && !strings.Contains(a.Name, "..") && !strings.Contains(a.Name, ".-") && !strings.Contains(a.Name, "-.") {
			t.Fatalf("%q: %v", a.SecretName(), problems)
		}
		if a != b && a.SecretName() == b.SecretName() {
			t.Fatalf("%+v and %+v are both %s", a, b, a.SecretName())
		}
	})
}

// apply changes a pod as a plan says.
func apply(t *testing.T, pod *corev1.Pod, p *inject.Plan) *corev1.Pod {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := inject.Apply(raw, p.Operations)
	if err != nil {
		t.Fatal(err)
	}
	var next corev1.Pod
	if err := json.Unmarshal(changed, &next); err != nil {
		t.Fatal(err)
	}
	return &next
}

// TestMount mounts a token into every container, and finds nothing to do then.
func TestMount(t *testing.T) {
	want := Want{Name: "provider-aws", Audience: "sts.amazonaws.com"}
	pod := podWith("identity.postern.dev/aws-role-arn=arn:aws:iam::1:role/r")
	pod.Spec.InitContainers = []corev1.Container{{Name: "init", VolumeMounts: []corev1.VolumeMount{{Name: "x", MountPath: "/x"}}}}
	pod.Spec.Containers = append(pod.Spec.Containers,
		corev1.Container{Name: "own-mount", VolumeMounts: []corev1.VolumeMount{{Name: "mine", MountPath: PathUpbound}}},
		corev1.Container{Name: "own-file", Env: []corev1.EnvVar{{Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: "/mine"}}},
		corev1.Container{Name: "own-role", Env: []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "AWS_ROLE_ARN", Value: "mine"}}})
	pod.Spec.Volumes = []corev1.Volume{{Name: "x"}, {Name: "mine"}}
	before := pod.DeepCopy()
	plan := NewPlan(pod, want)
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("the plan changed the pod:\n%s", diff)
	}
	next := apply(t, pod, plan)
	volume := next.Spec.Volumes[len(next.Spec.Volumes)-1]
	if len(next.Spec.Volumes) != 3 || volume.Secret == nil || volume.Secret.SecretName != want.SecretName() || !*volume.Secret.Optional || volume.Secret.Items[0].Path != "token" {
		t.Errorf("volumes %+v", next.Spec.Volumes)
	}
	ours := []corev1.VolumeMount{{Name: Volume, MountPath: PathUpbound, ReadOnly: true}, {Name: Volume, MountPath: PathPostern, ReadOnly: true}}
	env := []corev1.EnvVar{{Name: "AWS_ROLE_ARN", Value: "arn:aws:iam::1:role/r"}, {Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: PathPostern + "/token"}}
	for _, one := range []struct {
		got    corev1.Container
		mounts []corev1.VolumeMount
		env    []corev1.EnvVar
	}{
		{next.Spec.InitContainers[0], append(slices.Clone(pod.Spec.InitContainers[0].VolumeMounts), ours...), env},
		{next.Spec.Containers[0], ours, env},
		{next.Spec.Containers[1], append(slices.Clone(pod.Spec.Containers[1].VolumeMounts), ours[1]), env},
		{next.Spec.Containers[2], ours, pod.Spec.Containers[2].Env},
		{next.Spec.Containers[3], ours, pod.Spec.Containers[3].Env},
	} {
		if diff := cmp.Diff(one.mounts, one.got.VolumeMounts); diff != "" {
			t.Errorf("%s: %s", one.got.Name, diff)
		}
		if diff := cmp.Diff(one.env, one.got.Env); diff != "" {
			t.Errorf("%s: %s", one.got.Name, diff)
		}
	}
	if again := NewPlan(next, want); len(again.Operations) != 0 {
		t.Errorf("again: %+v", again.Operations)
	}
	// A copy of the pod with another audience gets the other token.
	other := Want{Name: "provider-aws", Audience: "api://AzureADTokenExchange"}
	copied := apply(t, next, NewPlan(next, other))
	if got := copied.Spec.Volumes[2].Secret.SecretName; got != other.SecretName() || len(copied.Spec.Volumes) != 3 {
		t.Errorf("a copy mounts %s", got)
	}
	if env := apply(t, podWith(), NewPlan(podWith(), want)).Spec.Containers[0].Env; env != nil {
		t.Errorf("variables that nobody asked for: %v", env)
	}
}

func TestStep(t *testing.T) {
	var ensured []string
	var failure error
	s := &Step{
		Covers: func(namespace string) bool { return namespace == "crossplane-system" },
		Ensure: func(_ context.Context, namespace string, w Want) error {
			ensured = append(ensured, namespace+"/"+w.Name)
			return failure
		},
	}
	pod := podWith("pkg.crossplane.io/provider=provider-aws")
	plan := func(r inject.Request) *inject.Plan {
		t.Helper()
		p, err := s.Plan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// Whoever may make pods elsewhere is no provider by a label.
	if p := plan(inject.Request{Namespace: "default", Pod: pod}); p != nil || len(ensured) != 0 {
		t.Errorf("another namespace: %+v, %v", p, ensured)
	}
	if p := plan(inject.Request{Namespace: "crossplane-system", Pod: podWith()}); p != nil {
		t.Errorf("a pod that asks for none: %+v", p)
	}
	if p := plan(inject.Request{Namespace: "crossplane-system", Pod: pod, DryRun: true}); len(p.Operations) == 0 || len(ensured) != 0 {
		t.Errorf("a dry run: %+v, %v", p, ensured)
	}
	if p := plan(inject.Request{Namespace: "crossplane-system", Pod: pod}); len(p.Warnings) != 0 || !slices.Equal(ensured, []string{"crossplane-system/provider-aws"}) {
		t.Errorf("%+v, %v", p, ensured)
	}
	failure = errors.New("the hub is down")
	if p := plan(inject.Request{Namespace: "crossplane-system", Pod: pod}); len(p.Operations) == 0 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "the hub is down") {
		t.Errorf("with the hub down: %+v", p)
	}
	if _, err := s.Plan(t.Context(), inject.Request{Namespace: "crossplane-system", Pod: podWith("pkg.crossplane.io/provider=A:B")}); err == nil {
		t.Error("a bad name passes")
	}
}
