package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
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
	"postern.dev/postern/operator/identitytoken"
	"postern.dev/postern/operator/pods"
)

// freeTime is how long cleanup waits for pods that have to be made again.
const freeTime = 2 * time.Minute

// cleanup takes back what the operator did, and is still there without it: pods that were pointed to
// proxies, what was made for Proxies, identity tokens, the webhook's certificate, and the Lease.
//
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=delete
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
	var (
		errs    []error
		proxies []v1alpha1.Object
		lists   []func() v1alpha1.ObjectList
	)
	for _, empty := range []func() v1alpha1.ObjectList{
		func() v1alpha1.ObjectList { return &v1alpha1.ProxyList{} }, func() v1alpha1.ObjectList { return &upbound.ProxyList{} },
	} {
		list := empty()
		err := c.List(ctx, list)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			continue // that group is not there
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list the Proxies: %w", err))
			continue
		}
		lists, proxies = append(lists, empty), append(proxies, list.Objects()...)
	}
	free, cancel := context.WithTimeout(ctx, freeTime)
	defer cancel()
	errs = append(errs, pods.New(pods.Config{Client: c, Direct: c, Lists: lists, Rules: rules(s), Log: log}).Free(free))
	for _, p := range proxies {
		if err := cleanupProxy(ctx, c, p, s.HubProxy, log); err != nil {
			errs = append(errs, fmt.Errorf("proxy %s/%s: %w", p.GetNamespace(), p.GetName(), err))
		}
	}
	return errors.Join(append(errs, identitytoken.Remove(ctx, c), cleanupOwn(ctx, c, s))...)
}

// cleanupOwn deletes what the operator made for itself.
func cleanupOwn(ctx context.Context, c client.Client, s config.Operator) error {
	own := []client.Object{&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: leaderName}}}
	if s.Injection.Webhook != "" && !s.Injection.CertManager {
		own = append(own, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Injection.Secret}})
	}
	for _, o := range own {
		if err := client.IgnoreNotFound(c.Delete(ctx, o)); err != nil {
			return fmt.Errorf("delete %T %s/%s: %w", o, o.GetNamespace(), o.GetName(), err)
		}
	}
	return nil
}

// cleanupProxy deletes what was made for a Proxy, and takes the finalizer off it.
func cleanupProxy(ctx context.Context, c client.Client, p v1alpha1.Object, hub config.HubProxy, log *slog.Logger) error {
	meta := metav1.ObjectMeta{Namespace: p.GetNamespace(), Name: controller.ObjectName(p.GetName())}
	for _, o := range []client.Object{
		&appsv1.Deployment{ObjectMeta: meta}, &corev1.Service{ObjectMeta: meta}, &policyv1.PodDisruptionBudget{ObjectMeta: meta},
		&networkingv1.NetworkPolicy{ObjectMeta: meta}, &corev1.Secret{ObjectMeta: meta}, &corev1.ServiceAccount{ObjectMeta: meta},
	} {
		if err := controller.DeleteOwned(ctx, c, c, p, o); err != nil {
			return err
		}
	}
	if err := controller.Withdraw(ctx, c, c, hub, p); err != nil {
		return err
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
