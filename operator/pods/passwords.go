package pods

import (
	"bytes"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/inject"
	"postern.dev/postern/operator/selection"
)

// annotationCopy names the Proxy, NAMESPACE/NAME, of whose password a Secret is a copy.
const annotationCopy = "proxy.postern.dev/password-of"

// Bounds of what is remembered of copies.
const (
	copyTime  = 30 * time.Second // so long a copy is taken to be good
	maxCopied = 10_000
)

// copyKey is a copy of a password.
type copyKey struct{ route, namespace string }

// Password makes sure that a namespace has a copy of a Proxy's password.
func (p *Pods) Password(ctx context.Context, proxy selection.Proxy, namespace string) error {
	return p.password(ctx, proxy, namespace, copyTime)
}

// password is Password, where a copy is taken to be good for some time.
func (p *Pods) password(ctx context.Context, proxy selection.Proxy, namespace string, good time.Duration) error {
	if p.fresh(proxy, namespace, good) {
		return nil
	}
	password, err := p.source(ctx, proxy)
	if err != nil {
		return err
	}
	if err := p.copyPassword(ctx, proxy, namespace, password, false); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.copied) >= maxCopied {
		clear(p.copied)
	}
	p.copied[copyKey{proxy.Route(), namespace}] = time.Now()
	return nil
}

// MayCopy reports why a namespace could not have a copy of a Proxy's password, or returns nil. It
// writes nothing: whoever reaches the webhook could otherwise have passwords copied where he likes.
func (p *Pods) MayCopy(ctx context.Context, proxy selection.Proxy, namespace string) error {
	if p.fresh(proxy, namespace, copyTime) {
		return nil
	}
	password, err := p.source(ctx, proxy)
	if err != nil {
		return err
	}
	return p.copyPassword(ctx, proxy, namespace, password, true)
}

// fresh reports whether a copy was good a short time ago.
func (p *Pods) fresh(proxy selection.Proxy, namespace string, good time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.copied[copyKey{proxy.Route(), namespace}]) < good
}

// source returns the password of a Proxy's proxy.
func (p *Pods) source(ctx context.Context, proxy selection.Proxy) ([]byte, error) {
	source := &corev1.Secret{}
	if err := p.cfg.Direct.Get(ctx, client.ObjectKey{Namespace: proxy.Namespace, Name: p.cfg.Secret(proxy.Name)}, source); err != nil {
		return nil, fmt.Errorf("read the proxy's password: %w", err)
	}
	password := source.Data[inject.SecretKey]
	if len(password) == 0 {
		return nil, fmt.Errorf("the Secret %s/%s has no key %s", source.Namespace, source.Name, inject.SecretKey)
	}
	return password, nil
}

// copyPassword writes a copy, or in a dry run finds out whether it could.
func (p *Pods) copyPassword(ctx context.Context, proxy selection.Proxy, namespace string, password []byte, dry bool) error {
	name := selection.SecretName(proxy.Key)
	secret := &corev1.Secret{}
	err := p.cfg.Direct.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, secret)
	var created []client.CreateOption
	var updated []client.UpdateOption
	if dry {
		created, updated = append(created, client.DryRunAll), append(updated, client.DryRunAll)
	}
	switch {
	case apierrors.IsNotFound(err):
		secret = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name,
				Labels:      map[string]string{"app.kubernetes.io/managed-by": "postern-operator"},
				Annotations: map[string]string{annotationCopy: proxy.Route()},
			},
			Type: corev1.SecretTypeOpaque, Data: map[string][]byte{inject.SecretKey: password},
		}
		err = p.cfg.Client.Create(ctx, secret, created...)
		if apierrors.IsAlreadyExists(err) {
			return nil // another operator made it in this moment
		}
	case err != nil:
		return fmt.Errorf("read the copy of the password: %w", err)
	case secret.Annotations[annotationCopy] != proxy.Route():
		return fmt.Errorf("the Secret %s/%s is not the operator's", namespace, name)
	case bytes.Equal(secret.Data[inject.SecretKey], password):
		return nil
	default:
		secret.Data = map[string][]byte{inject.SecretKey: password}
		err = p.cfg.Client.Update(ctx, secret, updated...)
	}
	if err != nil {
		return fmt.Errorf("write the copy of the password: %w", err)
	}
	if dry {
		return nil
	}
	p.cfg.Log.Info("copied a proxy's password", "proxy", proxy.Route(), "namespace", namespace)
	return nil
}

// removeCopies deletes the copies of a Proxy's password from all namespaces. It looks for them by
// their name, since the operator may not list Secrets.
func (p *Pods) removeCopies(ctx context.Context, key selection.Key) error {
	namespaces := &metav1.PartialObjectMetadataList{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := p.cfg.Direct.List(ctx, namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, n := range namespaces.Items {
		secret := &corev1.Secret{}
		err := p.cfg.Direct.Get(ctx, client.ObjectKey{Namespace: n.Name, Name: selection.SecretName(key)}, secret)
		if apierrors.IsNotFound(err) || err == nil && secret.Annotations[annotationCopy] != key.Route() {
			continue
		}
		if err == nil {
			err = p.cfg.Client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID})
		}
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete a copy of the password from %s: %w", n.Name, err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.copied {
		if k.route == key.Route() {
			delete(p.copied, k)
		}
	}
	return nil
}
