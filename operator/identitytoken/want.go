package identitytoken

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/internal/controlplane"
)

// What pods say about their tokens.
const (
	// LabelProvider and LabelFunction are on the pods of packages, and name the package.
	LabelProvider = "pkg.crossplane.io/provider"
	LabelFunction = "pkg.crossplane.io/function"

	// AnnotationName names whose token a pod gets, instead of its labels.
	AnnotationName = "identity.postern.dev/name"
	// AnnotationAudience says who is to accept the token; several have commas between.
	AnnotationAudience = "identity.postern.dev/audience"
	// AnnotationScoped set to "true" asks for a subject that is scoped to a group.
	AnnotationScoped = "identity.postern.dev/group-scoped"
	// AnnotationInject set to "false" keeps a pod as it is.
	AnnotationInject = "identity.postern.dev/inject"
	// AnnotationRole is an AWS role for which the SDK in all containers is set up.
	AnnotationRole = "identity.postern.dev/aws-role-arn"

	// The names that these have where pods were written for Upbound.
	annotationAudienceUpbound = "proidc.cloud-spaces.upbound.io/audience"
	annotationScopedUpbound   = "proidc.cloud-spaces.upbound.io/group-scoped"
)

// Want is the token that a pod asks for, in its namespace.
type Want struct {
	Name     string // of the provider, in the subject
	Audience string // with commas between several; empty: the default of the operator
	Scoped   bool   // the subject is scoped to a group
}

// WantOf returns which token a pod asks for, and false if it asks for none. An error says that
// what it asks for cannot be.
func WantOf(pod *corev1.Pod) (Want, bool, error) {
	name, ok := pod.Annotations[AnnotationName]
	for _, label := range []string{LabelProvider, LabelFunction} {
		if !ok {
			name, ok = pod.Labels[label]
		}
	}
	if !ok || pod.Annotations[AnnotationInject] == "false" {
		return Want{}, false, nil
	}
	w := Want{Name: name, Audience: first(pod.Annotations, AnnotationAudience, annotationAudienceUpbound)}
	switch text := first(pod.Annotations, AnnotationScoped, annotationScopedUpbound); text {
	case "true":
		w.Scoped = true
	case "", "false":
	default:
		return Want{}, false, fmt.Errorf("annotation %s is %.40q: want true or false", AnnotationScoped, text)
	}
	// With the shortest names of all else: what is too long for others, the issuer says.
	if _, err := controlplane.Subject("a", controlplane.Ref{Name: "a"}, w.Name); err != nil {
		return Want{}, false, fmt.Errorf("no identity token: %w", err)
	}
	return w, true, nil
}

func first(of map[string]string, names ...string) string {
	for _, name := range names {
		if v := of[name]; v != "" {
			return v
		}
	}
	return ""
}

// audiences returns the audiences of a token.
func (w Want) audiences(fallback []string) []string {
	var all []string
	for one := range strings.SplitSeq(w.Audience, ",") {
		if one = strings.TrimSpace(one); one != "" {
			all = append(all, one)
		}
	}
	if len(all) == 0 {
		return fallback
	}
	return all
}

// SecretName returns the name of the Secret that holds the token, in the pod's namespace.
func (w Want) SecretName() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %t", w.Name, w.Audience, w.Scoped))
	readable := strings.Trim(w.Name[:min(len(w.Name), 40)], "-.")
	return "postern-identity-" + readable + "-" + hex.EncodeToString(sum[:5])
}
