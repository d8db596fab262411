package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"postern.dev/postern/operator/api/v1alpha1"
)

// takenError says that an object has a name that the operator needs, and is not the operator's.
type takenError struct{ problem }

// Error returns the text of the problem.
func (e *takenError) Error() string { return e.message }

// foreignError says that somebody else has set fields of an object.
type foreignError struct {
	object string
	fields []string
	by     []string
}

// Error names the object, the fields and who has set them.
func (e *foreignError) Error() string {
	return fmt.Sprintf("%s of %s was set by %s", strings.Join(e.fields, ", "), e.object, strings.Join(e.by, ", "))
}

// apply brings what a Proxy needs into being, and deletes what it does not need any more. What others
// have set it leaves, and returns what that is. It returns which version of the password's Secret there is afterwards.
func (r *Reconciler) apply(ctx context.Context, p v1alpha1.Object, ca string, all, surplus []client.Object) (trouble *problem, secret string, err error) {
	for _, o := range all {
		if err := r.mine(ctx, p, o); err != nil {
			return nil, "", err
		}
	}
	var foreign []string
	secret, err = r.secret(ctx, p, ca)
	if err != nil {
		f, ok := errors.AsType[*foreignError](err)
		if !ok {
			return nil, "", err
		}
		foreign = append(foreign, f.Error())
	}
	for _, o := range all {
		_, err := r.applyOne(ctx, o)
		if f, ok := errors.AsType[*foreignError](err); ok {
			foreign = append(foreign, f.Error())
			continue
		}
		if err != nil {
			return nil, "", err
		}
	}
	for _, o := range surplus {
		if err := DeleteOwned(ctx, r.Client, r.Direct, p, o); err != nil {
			return nil, "", err
		}
	}
	if len(foreign) > 0 {
		return &problem{ReasonFieldsOfOthers, "The operator leaves alone what others have set: " + strings.Join(foreign, "; ") +
			". Delete the object, and the operator makes it again as it should be."}, secret, nil
	}
	return nil, secret, nil
}

// mine makes sure that an object is not there, or is this Proxy's.
func (r *Reconciler) mine(ctx context.Context, p v1alpha1.Object, o client.Object) error {
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(o.GetObjectKind().GroupVersionKind())
	err := r.Direct.Get(ctx, client.ObjectKeyFromObject(o), there)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", title(o), err)
	}
	if taken := notMine(p, there, title(o)); taken != nil {
		return taken
	}
	return nil
}

// notMine says whose an object is that the operator needs, if it is not this Proxy's.
func notMine(p v1alpha1.Object, there metav1.Object, name string) *takenError {
	if metav1.IsControlledBy(there, p) {
		return nil
	}
	owner := "it was not made by the operator"
	if c := metav1.GetControllerOf(there); c != nil {
		owner = fmt.Sprintf("it belongs to %s %s (%s)", c.Kind, c.Name, c.APIVersion)
	}
	return &takenError{problem{ReasonNameTaken, fmt.Sprintf("Proxy %s/%s (%s) needs the name of %s, and %s. Give the Proxy another name, or remove that object.",
		p.GetNamespace(), p.GetName(), p.GetObjectKind().GroupVersionKind().Group, name, owner)}}
}

// applyOne applies an object and returns the version that it has then. Replicas that an autoscaler
// or a person has set stay theirs.
func (r *Reconciler) applyOne(ctx context.Context, o client.Object) (version string, err error) {
	u, err := configuration(o)
	if err != nil {
		return "", err
	}
	err = r.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager))
	foreign := conflicts(o, err)
	if foreign != nil && slices.Contains(foreign.fields, ".spec.replicas") {
		unstructured.RemoveNestedField(u.Object, "spec", "replicas")
		err = r.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager))
		foreign = conflicts(o, err)
	}
	switch {
	case foreign != nil:
		return "", foreign
	case err != nil:
		return "", fmt.Errorf("apply %s: %w", title(o), err)
	default:
		return u.GetResourceVersion(), nil
	}
}

// conflicts returns which fields of others an apply ran into.
func conflicts(o client.Object, err error) *foreignError {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	f := &foreignError{object: title(o)}
	for _, c := range status.Status().Details.Causes {
		if c.Type != metav1.CauseTypeFieldManagerConflict {
			continue
		}
		f.fields = append(f.fields, c.Field)
		// The API server names the manager in quotes, and nowhere else.
		if _, rest, ok := strings.Cut(c.Message, `"`); ok {
			name, _, _ := strings.Cut(rest, `"`)
			if !slices.Contains(f.by, name) {
				f.by = append(f.by, name)
			}
		}
	}
	if len(f.fields) == 0 {
		return nil
	}
	return f
}

// configuration returns an object as it is applied: what it says, and nothing else.
func configuration(o client.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", title(o), err)
	}
	delete(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(content, "spec", "template", "metadata", "creationTimestamp")
	return &unstructured.Unstructured{Object: content}, nil
}

// digest is of all that is applied for a Proxy: as long as it stays, nothing has to be applied.
func digest(ca string, all []client.Object) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s", len(ca), ca)
	for _, o := range all {
		b, err := json.Marshal(o)
		if err != nil {
			return "", fmt.Errorf("encode %s: %w", title(o), err)
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func title(o client.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + " " + o.GetNamespace() + "/" + o.GetName()
}

// DeleteOwned deletes an object if it is there and a Proxy's own. direct reads from the API server.
func DeleteOwned(ctx context.Context, c client.Client, direct client.Reader, p v1alpha1.Object, o client.Object) error {
	kind, err := apiutil.GVKForObject(o, c.Scheme())
	if err != nil {
		return fmt.Errorf("find the kind of what is to be deleted: %w", err)
	}
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(kind)
	err = direct.Get(ctx, client.ObjectKeyFromObject(o), there)
	if apierrors.IsNotFound(err) || err == nil && !metav1.IsControlledBy(there, p) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s %s/%s: %w", kind.Kind, o.GetNamespace(), o.GetName(), err)
	}
	uid := there.GetUID()
	err = c.Delete(ctx, there, client.PropagationPolicy(metav1.DeletePropagationBackground), client.Preconditions{UID: &uid})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s %s/%s: %w", kind.Kind, o.GetNamespace(), o.GetName(), err)
	}
	return nil
}
