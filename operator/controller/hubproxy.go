package controller

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/operator/api/v1alpha1"
)

// AnnotationCredentials names the Secret, NAMESPACE/NAME, in which the hub's own proxy has a line
// for a Proxy, so that the line is found again when the settings are other ones.
const AnnotationCredentials = "postern.dev/hub-credentials"

// byHub reports whether a Proxy uses the hub's own proxy: that is the proxy of the operator's hub,
// as the operator knows it, and of no other.
func (r *Reconciler) byHub(h Hub) bool { return r.HubProxy.Service != "" && h.Hub == r.Own.Hub }

// ServicePort is where the Services of proxies take connections of HTTP clients. A Service that is
// another name of the hub's cannot have a port of its own, and all have the same.
func ServicePort(h config.HubProxy) int32 {
	_, port := h.Address()
	return cmp.Or(int32(port), ProxyPort) //nolint:gosec // at most 65535
}

// alias is the Service of a Proxy that is another name of the hub's own proxy.
func alias(p v1alpha1.Object, h config.HubProxy) *corev1.Service {
	host, _ := h.Address()
	at := ServicePort(h)
	return &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: objectMeta(p),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeExternalName, ExternalName: host,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: at, TargetPort: intstr.FromInt32(at)}},
		},
	}
}

// move keeps the annotation of a Proxy to the Secret that has its line, or is to have it, and takes
// the line out of another one. It reports whether it changed the Proxy.
func (r *Reconciler) move(ctx context.Context, p v1alpha1.Object) (changed bool, err error) {
	want := ""
	if h, _ := hubOf(p, r.Own); r.byHub(h) {
		want = r.HubProxy.Credentials
	}
	have := p.GetAnnotations()[AnnotationCredentials]
	if have == want {
		return false, nil
	}
	if _, err := writeLine(ctx, r.Client, r.Direct, have, p, ""); err != nil {
		return false, err
	}
	before, _ := p.DeepCopyObject().(client.Object)
	annotations := p.GetAnnotations()
	if annotations == nil {
		annotations = make(map[string]string)
	}
	annotations[AnnotationCredentials] = want
	if want == "" {
		delete(annotations, AnnotationCredentials)
	}
	p.SetAnnotations(annotations)
	err = r.Client.Patch(ctx, p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldManager))
	if err != nil {
		return true, fmt.Errorf("note where the hub's proxy has the Proxy's line: %w", err)
	}
	return true, nil
}

// line returns the line of a Proxy in the credentials file of the hub's proxy: its agent's ID as
// user name, as pods have it, and a password that is good for that agent only. It is empty where there
// is a problem.
func (r *Reconciler) line(ctx context.Context, p v1alpha1.Object, f *facts) (line, password string, err error) {
	if err := identity.ValidateName("organization", f.where.Organization); err != nil {
		f.problem = &problem{ReasonHubNotConfigured, fmt.Sprintf("%v.", err)}
		return "", "", nil
	}
	var kept corev1.Secret
	err = r.Direct.Get(ctx, client.ObjectKey{Namespace: p.GetNamespace(), Name: ObjectName(p.GetName())}, &kept)
	if err != nil {
		return "", "", fmt.Errorf("read the Secret of the proxy's password: %w", err)
	}
	hash, ok := bytes.CutPrefix(kept.Data[keyCredentials], []byte("*:"))
	if !ok || !plainHash(hash) || !metav1.IsControlledBy(&kept, p) {
		f.problem = &problem{ReasonNotApplied, fmt.Sprintf("The Secret %s has no password that the operator made. Delete it, and it is made again.", kept.Name)}
		return "", "", nil
	}
	return fmt.Sprintf("%s:%s agent=%s/%s%s", f.agentID, hash, f.where.Organization, f.agentID, mark(p)), string(kept.Data[keyPassword]), nil
}

// plainHash reports whether a hash is a bcrypt hash as this package makes them, and nothing else:
// whoever may write Secrets in the Proxy's namespace must not bring lines of his own into the hub's
// file, nor have operator and hub compute for hours.
func plainHash(hash []byte) bool {
	const size, alphabet = 60, "./$ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	return len(hash) == size && strings.Trim(string(hash), alphabet) == "" && bytes.HasPrefix(hash, fmt.Appendf(nil, "$2a$%02d$", passwordCost))
}

// mark ends the line of a Proxy, and no other line. It also names the Proxy in grants and records:
// NAMESPACE/NAME, and the group where that is not our own.
func mark(p v1alpha1.Object) string {
	text := " as=" + p.GetNamespace() + "/" + p.GetName()
	if group := p.GetObjectKind().GroupVersionKind().Group; group != v1alpha1.Group {
		text += "@" + group
	}
	return text
}

// hasLine reports whether the Secret has a line of a Proxy.
func (r *Reconciler) hasLine(ctx context.Context, p v1alpha1.Object) (bool, error) {
	namespace, name := r.HubProxy.Secret()
	var secret corev1.Secret
	err := r.Direct.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &secret)
	if err != nil {
		return false, client.IgnoreNotFound(err)
	}
	text := string(secret.Data[keyCredentials])
	return edit(text, mark(p), "") != text, nil
}

// edit returns a credentials file with a line in the place of the one that ends with mark, or
// without it if the line is empty. All others stay as they are.
func edit(text, mark, line string) string {
	var all []string
	for old := range strings.Lines(text) {
		old = strings.TrimRight(old, "\n")
		if !strings.HasSuffix(strings.TrimSpace(old), mark) {
			all = append(all, old)
		} else if line != "" {
			all, line = append(all, line), ""
		}
	}
	if line != "" {
		all = append(all, line)
	}
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all, "\n") + "\n"
}

// writeLine puts the line of a Proxy into a Secret, NAMESPACE/NAME, or takes it out if it is empty,
// and reports whether that was to be done. Whoever else writes there meanwhile loses nothing.
func writeLine(ctx context.Context, c client.Client, direct client.Reader, where string, p v1alpha1.Object, line string) (changed bool, err error) {
	namespace, name := config.HubProxy{Credentials: where}.Secret()
	if namespace == "" || name == "" {
		return false, nil
	}
	collided := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	err = retry.OnError(retry.DefaultBackoff, collided, func() error {
		changed = false
		secret := &corev1.Secret{}
		err := direct.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, secret)
		if apierrors.IsNotFound(err) {
			if line == "" {
				return nil
			}
			changed = true
			return c.Create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": FieldManager}},
				Type:       corev1.SecretTypeOpaque, Data: map[string][]byte{keyCredentials: []byte(line + "\n")},
			}, client.FieldOwner(FieldManager))
		}
		if err != nil {
			return err
		}
		before := string(secret.Data[keyCredentials])
		after := edit(before, mark(p), line)
		if after == before {
			return nil
		}
		changed = true
		from := secret.DeepCopy()
		if secret.Data == nil {
			secret.Data = make(map[string][]byte)
		}
		secret.Data[keyCredentials] = []byte(after)
		return c.Patch(ctx, secret, client.MergeFromWithOptions(from, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldManager))
	})
	if err != nil {
		return false, fmt.Errorf("keep the lines of the hub's proxy in Secret %s: %w", where, err)
	}
	return changed, nil
}

// Withdraw takes the line of a Proxy out of the file of the hub's own proxy: where the Proxy says
// that it is, and where the settings do.
func Withdraw(ctx context.Context, c client.Client, direct client.Reader, h config.HubProxy, p v1alpha1.Object) error {
	kind, err := apiutil.GVKForObject(p, c.Scheme())
	if err != nil {
		return fmt.Errorf("find the Proxy's kind: %w", err)
	}
	p.GetObjectKind().SetGroupVersionKind(kind) // a typed object does not say it
	places := []string{p.GetAnnotations()[AnnotationCredentials], h.Credentials}
	for _, where := range slices.Compact(places) {
		if _, err := writeLine(ctx, c, direct, where, p, ""); err != nil {
			return err
		}
	}
	return nil
}
