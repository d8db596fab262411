package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
)

// ownConditions are those that this package writes; others have their own writers.
func ownConditions() []string { return []string{v1alpha1.ConditionReady, ConditionApplied} }

// ownStatus returns the part of a status that this package writes.
func ownStatus(s v1alpha1.ProxyStatus) v1alpha1.ProxyStatus {
	own := *s.DeepCopy()
	own.LastAppliedPodSelector = nil
	own.Conditions = slices.DeleteFunc(own.Conditions, func(c metav1.Condition) bool { return !slices.Contains(ownConditions(), c.Type) })
	return own
}

// sameStatus reports whether two statuses say the same, times of conditions apart: those change
// with what they say.
func sameStatus(a, b v1alpha1.ProxyStatus) bool {
	a, b = ownStatus(a), ownStatus(b)
	for _, name := range ownConditions() {
		x, y := meta.FindStatusCondition(a.Conditions, name), meta.FindStatusCondition(b.Conditions, name)
		if x == nil || y == nil {
			return x == nil && y == nil
		}
		y.LastTransitionTime = x.LastTransitionTime
	}
	return equality.Semantic.DeepEqual(a, b)
}

// writeStatus writes the part of a status that is this package's, by server-side apply: conditions
// that others write stay.
func (r *Reconciler) writeStatus(ctx context.Context, p v1alpha1.Object, s v1alpha1.ProxyStatus) error {
	return ApplyStatus(ctx, r.Client, p, FieldManager, ownStatus(s))
}

// ApplyStatus writes fields of a Proxy's status as a field manager of its own, and leaves those of
// other managers alone.
func ApplyStatus(ctx context.Context, c client.Client, p v1alpha1.Object, manager string, s v1alpha1.ProxyStatus) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the status: %w", err)
	}
	var status map[string]any
	if err := json.Unmarshal(b, &status); err != nil {
		return fmt.Errorf("encode the status: %w", err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	u.SetGroupVersionKind(p.GetObjectKind().GroupVersionKind())
	u.SetNamespace(p.GetNamespace())
	u.SetName(p.GetName())
	u.SetUID(p.GetUID()) // not of a later one with that name
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(manager), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}
