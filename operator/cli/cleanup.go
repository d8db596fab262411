package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/controller"
)

// cleanup takes back what the operator did.
func cleanup(ctx context.Context, w command.World, s config.Operator) error {
	log, err := w.Logger(s.Log)
	if err != nil {
		return err
	}
	kube, err := connection(s)
	if err != nil {
		return err
	}
	s.CompatUpbound = true // it may have been on before
	known, err := newScheme(s)
	if err != nil {
		return err
	}
	c, err := client.New(kube, client.Options{Scheme: known})
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	var errs []error
	for _, list := range []v1alpha1.ObjectList{&v1alpha1.ProxyList{}, &upbound.ProxyList{}} {
		err := c.List(ctx, list)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			continue // that group is not there
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list the Proxies: %w", err))
			continue
		}
		for _, p := range list.Objects() {
			if err := cleanupProxy(ctx, c, p, log); err != nil {
				errs = append(errs, fmt.Errorf("proxy %s/%s: %w", p.GetNamespace(), p.GetName(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// cleanupProxy deletes what was made for a Proxy, and takes the finalizer off it.
func cleanupProxy(ctx context.Context, c client.Client, p v1alpha1.Object, log *slog.Logger) error {
	meta := metav1.ObjectMeta{Namespace: p.GetNamespace(), Name: controller.ObjectName(p.GetName())}
	for _, o := range []client.Object{
		&appsv1.Deployment{ObjectMeta: meta}, &corev1.Service{ObjectMeta: meta}, &policyv1.PodDisruptionBudget{ObjectMeta: meta},
		&networkingv1.NetworkPolicy{ObjectMeta: meta}, &corev1.Secret{ObjectMeta: meta}, &corev1.ServiceAccount{ObjectMeta: meta},
	} {
		if err := deleteOwned(ctx, c, p, o); err != nil {
			return err
		}
	}
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return client.IgnoreNotFound(err)
		}
		return controller.Release(ctx, c, p)
	})
	if err != nil {
		return err
	}
	log.Info("took back what was done for a Proxy", "proxy", p.GetNamespace()+"/"+p.GetName())
	return nil
}

// deleteOwned deletes an object if it is that Proxy's.
func deleteOwned(ctx context.Context, c client.Client, p v1alpha1.Object, o client.Object) error {
	err := c.Get(ctx, client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) || err == nil && !metav1.IsControlledBy(o, p) {
		return nil
	}
	uid := o.GetUID()
	if err == nil {
		err = c.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationBackground), client.Preconditions{UID: &uid})
	}
	if err := client.IgnoreNotFound(err); err != nil {
		return fmt.Errorf("delete %T: %w", o, err)
	}
	return nil
}
