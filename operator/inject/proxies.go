package inject

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"postern.dev/postern/operator/selection"
)

// Proxies is the step that points pods to proxies.
type Proxies struct {
	// List returns all Proxies, of all groups. It fails as long as they are not known.
	List func(ctx context.Context) ([]selection.Proxy, error)
	// Rules say which pods may be selected.
	Rules selection.Rules
	// Route says where the pods of a Proxy are pointed to. The Proxy has an agent.
	Route func(p selection.Proxy) Route
	// Password says why a namespace could not have a copy of a Proxy's password; nil: it can. The
	// copy itself is made for pods that are there: a review may come from anybody.
	Password func(ctx context.Context, p selection.Proxy, namespace string) error
	// Keys returns the keys of a ConfigMap or Secret from which containers take variables. Errors
	// may be those of the API server. It may be nil; then such variables are not known.
	Keys func(ctx context.Context, kind, namespace, name string) ([]string, error)
}

// Kinds for Keys.
const (
	KindConfigMap = "ConfigMap"
	KindSecret    = "Secret"
)

var _ Step = (*Proxies)(nil)

// Plan implements Step.
func (s *Proxies) Plan(ctx context.Context, r Request) (*Plan, error) {
	if !s.Rules.Covers(r.Namespace) {
		return nil, nil //nolint:nilnil // nothing to do
	}
	all, err := s.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the Proxies: %w", err)
	}
	selecting := s.Rules.Selecting(r.Namespace, r.Pod, all)
	if len(selecting) == 0 {
		return NewPlan(r.Pod, nil, nil), nil
	}
	chosen := selecting[0]
	if chosen.Agent == "" {
		return nil, fmt.Errorf("the Proxy %s has no agent yet", chosen.Route())
	}
	if !r.DryRun {
		if err := s.Password(ctx, chosen, r.Namespace); err != nil {
			return nil, fmt.Errorf("copy the password of the Proxy %s: %w", chosen.Route(), err)
		}
	}
	route := s.Route(chosen)
	plan := NewPlan(r.Pod, &route, func(c *corev1.Container, names []string) ([]string, error) {
		return s.envFrom(ctx, r.Namespace, c, names)
	})
	for _, other := range selecting[1:] {
		plan.warn("the Proxy %s selects the pod too; %s is older and wins", other, chosen)
	}
	return plan, nil
}

// envFrom returns which names the ConfigMaps and Secrets of a container define. One that is not
// there defines none: without it the container does not start, or does not need it.
func (s *Proxies) envFrom(ctx context.Context, namespace string, c *corev1.Container, names []string) (defined []string, err error) {
	if s.Keys == nil {
		return nil, nil
	}
	for _, from := range c.EnvFrom {
		var kind, name string
		switch {
		case from.ConfigMapRef != nil:
			kind, name = KindConfigMap, from.ConfigMapRef.Name
		case from.SecretRef != nil:
			kind, name = KindSecret, from.SecretRef.Name
		default:
			continue
		}
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, from.Prefix) }) {
			continue // with this prefix it cannot define any of them
		}
		keys, err := s.Keys(ctx, kind, namespace, name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("it takes variables from the %s %s, which cannot be looked at: %w", kind, name, err)
		}
		for _, key := range keys {
			if slices.Contains(names, from.Prefix+key) {
				defined = append(defined, from.Prefix+key)
			}
		}
	}
	return defined, nil
}
