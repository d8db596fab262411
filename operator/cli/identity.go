package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/controller"
	"postern.dev/postern/operator/identitytoken"
)

// setupIdentity has the manager keep the identity tokens of pods, and returns the step of the
// webhook that mounts them; nil if the settings say that pods get none.
func setupIdentity(ctx context.Context, mgr manager.Manager, s config.Operator, t command.Tools, getenv func(string) string) (*identitytoken.Step, error) {
	if !s.Identity.On() {
		return nil, nil //nolint:nilnil // there are none
	}
	asker, err := identitytoken.NewAsker(s, getenv)
	if err != nil {
		return nil, fmt.Errorf("identity tokens: %w", err)
	}
	metrics, err := identitytoken.NewMetrics(ctrlmetrics.Registry)
	if err != nil {
		return nil, err
	}
	covers := func(namespace string) bool { return slices.Contains(s.Identity.Namespaces, namespace) }
	events := mgr.GetEventRecorder(controller.FieldManager)
	keeper := identitytoken.NewKeeper(identitytoken.Config{
		Reader: mgr.GetClient(), Writer: mgr.GetClient(), Issuer: asker.Issuer, Published: asker.Published,
		Event: func(pod *corev1.Pod, kind, reason, message string) {
			events.Eventf(pod, nil, kind, reason, "GiveIdentityToken", "%s", message)
		},
		Organization: cmp.Or(s.Identity.Organization, s.Organization),
		ControlPlane: s.Identity.Ref(), Audiences: s.Identity.Audiences, Covers: covers, Metrics: metrics, Log: t.Log.With("part", "identity"),
	})
	pods, err := mgr.GetCache().GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("identity tokens: watch pods: %w", err)
	}
	tell := func(o any) {
		pod, ok := o.(*corev1.Pod)
		if !ok || !covers(pod.Namespace) {
			return // or it went unseen, and the next sweep finds out
		}
		if _, wants, _ := identitytoken.WantOf(pod); wants {
			keeper.Changed()
		}
	}
	if _, err := pods.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: tell, DeleteFunc: tell}); err != nil {
		return nil, fmt.Errorf("identity tokens: watch pods: %w", err)
	}
	for _, one := range []manager.Runnable{keeper, manager.RunnableFunc(func(ctx context.Context) error { <-ctx.Done(); asker.Close(); return nil })} {
		if err := mgr.Add(one); err != nil {
			return nil, fmt.Errorf("identity tokens: %w", err)
		}
	}
	return &identitytoken.Step{Covers: covers, Ensure: keeper.Ensure}, nil
}
