package pods

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/inject"
)

// errNotAsked is why no pods are evicted in vain.
var errNotAsked = errors.New("it did not ask when it was told to change a Proxy: look at the operator's webhook configuration, Service and NetworkPolicy")

// probe finds out whether the API server asks the webhook: it is asked about changes of Proxies
// too, and one is changed that is not kept. Thus the operator needs no permission to make pods.
func (p *Pods) probe(ctx context.Context) error {
	objects, err := p.objects(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.GetDeletionTimestamp() != nil {
			continue
		}
		return p.probeWith(ctx, o)
	}
	return errors.New("there is no Proxy to try it with")
}

func (p *Pods) probeWith(ctx context.Context, o v1alpha1.Object) error {
	nonce := rand.Text()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{inject.AnnotationProbe: nonce}}})
	if err != nil {
		return fmt.Errorf("write the patch: %w", err)
	}
	same, ok := o.DeepCopyObject().(client.Object)
	if !ok {
		return errors.New("a Proxy is no object")
	}
	if err := p.cfg.Client.Patch(ctx, same, client.RawPatch(types.MergePatchType, patch), client.DryRunAll, client.FieldOwner(FieldManager)); err != nil {
		return fmt.Errorf("try it with the Proxy %s/%s: %w", o.GetNamespace(), o.GetName(), err)
	}
	if same.GetAnnotations()[inject.AnnotationProbed] != nonce {
		return errNotAsked
	}
	return nil
}
