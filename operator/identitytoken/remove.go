package identitytoken

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CacheOptions says which Secrets a Keeper's Reader keeps in memory: those of Keepers, of all
// namespaces, and of no others. All Secrets of a cluster are more than an operator should hold.
func CacheOptions() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{&corev1.Secret{}: {
		Label:      labels.SelectorFromSet(labels.Set{labelManagedBy: managedBy, labelComponent: component}),
		Namespaces: map[string]cache.Config{cache.AllNamespaces: {}},
	}}
}

// Remove deletes all tokens that Keepers left in a cluster, for when no operator renews them any
// more. Pods that mount them go on without the file. An operator that gives no tokens may not list
// Secrets: then those are found that pods still want.
func Remove(ctx context.Context, c client.Client) error {
	var left corev1.SecretList
	err := c.List(ctx, &left, client.MatchingLabels{labelManagedBy: managedBy, labelComponent: component})
	if apierrors.IsForbidden(err) {
		left.Items, err = wantedSecrets(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("list the Secrets of identity tokens: %w", err)
	}
	var errs []error
	for i := range left.Items {
		s := &left.Items[i]
		if err := client.IgnoreNotFound(c.Delete(ctx, s, client.Preconditions{UID: &s.UID})); err != nil {
			errs = append(errs, fmt.Errorf("delete Secret %s/%s: %w", s.Namespace, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// wantedSecrets returns the Secrets of tokens that pods want.
func wantedSecrets(ctx context.Context, c client.Client) ([]corev1.Secret, error) {
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return nil, err
	}
	found := make(map[key]corev1.Secret)
	for i := range pods.Items {
		w, ok, err := WantOf(&pods.Items[i])
		if !ok || err != nil {
			continue
		}
		at := key{Namespace: pods.Items[i].Namespace, Name: w.SecretName()}
		if _, seen := found[at]; seen {
			continue
		}
		var s corev1.Secret
		switch err := c.Get(ctx, at, &s); {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, err
		case s.Labels[labelManagedBy] == managedBy && s.Labels[labelComponent] == component:
			found[at] = s
		}
	}
	all := make([]corev1.Secret, 0, len(found))
	for _, s := range found {
		all = append(all, s)
	}
	return all, nil
}
