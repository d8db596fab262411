package identitytoken

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/operator/inject"
)

// Where containers find their token, in a file named token.
const (
	PathUpbound = "/var/run/secrets/upbound.io/provider"
	PathPostern = "/var/run/secrets/postern.dev/identity"

	// KeyToken is the Secret's key, and so the file's name.
	KeyToken = "token"

	// Volume is the name of the volume in pods.
	Volume = "postern-identity"
)

// Step mounts tokens when pods are made. It is safe for concurrent use.
type Step struct {
	// Covers reports whether pods of a namespace are changed.
	Covers func(namespace string) bool
	// Ensure sees to it that a namespace has the Secret of a token, as far as it can; a pod
	// starts without it too, and gets the file when it is there. It may be nil.
	Ensure func(ctx context.Context, namespace string, w Want) error
}

var _ inject.Step = (*Step)(nil)

// Plan implements inject.Step.
func (s *Step) Plan(ctx context.Context, r inject.Request) (*inject.Plan, error) {
	if !s.Covers(r.Namespace) {
		return nil, nil //nolint:nilnil // nothing to do
	}
	want, ok, err := WantOf(r.Pod)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, nil //nolint:nilnil // as above
	}
	plan := NewPlan(r.Pod, want)
	if s.Ensure != nil && !r.DryRun {
		if err := s.Ensure(ctx, r.Namespace, want); err != nil {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("the identity token is not there yet, and comes when it can be had: %v", err))
		}
	}
	return plan, nil
}

// NewPlan returns how a token is mounted into all containers of a pod. Done again, it finds
// nothing to do. What a container has at one of the paths already stays.
func NewPlan(pod *corev1.Pod, w Want) *inject.Plan {
	p := &inject.Plan{}
	planVolume(p, pod, w.SecretName())
	role := pod.Annotations[AnnotationRole]
	for i := range pod.Spec.InitContainers {
		planContainer(p, fmt.Sprintf("/spec/initContainers/%d", i), &pod.Spec.InitContainers[i], role)
	}
	for i := range pod.Spec.Containers {
		planContainer(p, fmt.Sprintf("/spec/containers/%d", i), &pod.Spec.Containers[i], role)
	}
	return p
}

// planVolume has the pod know the Secret. It is optional: an issuer that cannot be reached
// keeps no pod from starting, and the kubelet adds the file later.
func planVolume(p *inject.Plan, pod *corev1.Pod, secret string) {
	mode, optional := int32(0o444), true
	volume := corev1.Volume{Name: Volume, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: secret, DefaultMode: &mode, Optional: &optional, Items: []corev1.KeyToPath{{Key: KeyToken, Path: KeyToken}},
	}}}
	at := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == Volume })
	switch {
	case at >= 0 && pod.Spec.Volumes[at].Secret != nil && pod.Spec.Volumes[at].Secret.SecretName == secret:
	case at >= 0: // a copy of a pod with another token
		do(p, "replace", fmt.Sprintf("/spec/volumes/%d", at), volume)
	default:
		add(p, "/spec/volumes", len(pod.Spec.Volumes), volume)
	}
}

func planContainer(p *inject.Plan, path string, c *corev1.Container, role string) {
	mounts := len(c.VolumeMounts)
	for _, at := range []string{PathUpbound, PathPostern} {
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == at }) {
			continue
		}
		add(p, path+"/volumeMounts", mounts, corev1.VolumeMount{Name: Volume, MountPath: at, ReadOnly: true})
		mounts++
	}
	if role == "" {
		return
	}
	// The user's own choice wins as a whole: half of two is neither.
	variables := []corev1.EnvVar{{Name: "AWS_ROLE_ARN", Value: role}, {Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: PathPostern + "/" + KeyToken}}
	for _, v := range variables {
		if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == v.Name }) {
			return
		}
	}
	for n, v := range variables {
		add(p, path+"/env", len(c.Env)+n, v)
	}
}

// add appends to a list that has so many elements; a list without any may not be there.
func add[T any](p *inject.Plan, path string, have int, value T) {
	if have == 0 {
		do(p, "add", path, []T{value})
		return
	}
	do(p, "add", path+"/-", value)
}

func do(p *inject.Plan, op, path string, value any) {
	p.Operations = append(p.Operations, inject.Operation{Op: op, Path: path, Value: value})
}
