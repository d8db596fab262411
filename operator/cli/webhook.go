package cli

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/controller"
	"postern.dev/postern/operator/evict"
	"postern.dev/postern/operator/identitytoken"
	"postern.dev/postern/operator/inject"
	"postern.dev/postern/operator/pods"
	"postern.dev/postern/operator/selection"
	"postern.dev/postern/operator/servingcert"
)

// certificate lets the webhook be set up before its certificate is there.
type certificate struct{ loader *servingcert.Loader }

// hookServer is the webhook's server and the place of its certificate.
type hookServer struct {
	webhook.Server
	certificate *certificate
}

// webhookServer returns a server that listens on an address.
func webhookServer(addr string) (webhook.Server, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the webhook: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("listen for the webhook: %w", err)
	}
	c := &certificate{}
	s := webhook.NewServer(webhook.Options{Host: host, Port: port, TLSOpts: []func(*tls.Config){func(t *tls.Config) {
		t.MinVersion = tls.VersionTLS12
		t.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.loader.Certificate(hello) }
	}}})
	return &hookServer{s, c}, nil
}

// newPods returns what brings Proxies and pods together; nil if the settings leave pods alone.
func newPods(mgr manager.Manager, s config.Operator, t command.Tools, getenv func(string) string) *pods.Pods {
	if s.Injection.Webhook == "" {
		return nil
	}
	lists := []func() v1alpha1.ObjectList{func() v1alpha1.ObjectList { return &v1alpha1.ProxyList{} }}
	if s.CompatUpbound {
		lists = append(lists, func() v1alpha1.ObjectList { return &upbound.ProxyList{} })
	}
	events := mgr.GetEventRecorder(controller.FieldManager)
	return pods.New(pods.Config{
		Client: mgr.GetClient(), Direct: mgr.GetAPIReader(), Cache: mgr.GetCache(), Lists: lists, Empty: groups(s),
		Rules: rules(s),
		Host:  controller.Host(s.HubProxy), Secret: controller.ObjectName, APIServer: getenv("KUBERNETES_SERVICE_HOST"), NoProxy: s.Injection.NoProxy,
		WriteStatus: func(ctx context.Context, p v1alpha1.Object, status v1alpha1.ProxyStatus) error {
			return controller.ApplyStatus(ctx, mgr.GetClient(), p, pods.FieldManager, status)
		},
		Event: func(p v1alpha1.Object, pod *corev1.Pod, reason, message string) {
			kind := corev1.EventTypeNormal
			if reason != evict.EventEvicted {
				kind = corev1.EventTypeWarning
			}
			events.Eventf(p, pod, kind, reason, reason, "%s", message)
		},
		Log: t.Log.With("part", "pods"),
	})
}

// rules returns in which namespaces pods are pointed to proxies.
func rules(s config.Operator) selection.Rules {
	return selection.Rules{Excluded: append(append(config.SystemNamespaces(), s.Namespace), s.Injection.Excluded...), Only: s.Injection.Only}
}

// setupWebhook has the manager serve the webhook with its certificate, and evict pods.
func setupWebhook(mgr manager.Manager, s config.Operator, t command.Tools, all *pods.Pods, identity *identitytoken.Step) error {
	for _, entry := range s.Injection.NoProxy {
		if err := inject.CheckNoProxy(entry); err != nil {
			return fmt.Errorf("setting no-proxy: %w", err)
		}
	}
	own, ok := mgr.GetWebhookServer().(*hookServer)
	if !ok {
		return fmt.Errorf("set up the webhook: its server is a %T", mgr.GetWebhookServer())
	}
	direct, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme(), HTTPClient: mgr.GetHTTPClient()})
	if err != nil {
		return fmt.Errorf("set up the webhook: %w", err)
	}
	cfg := servingcert.Config{
		Namespace: s.Namespace, Secret: s.Injection.Secret, Webhooks: s.Injection.Configuration,
		Names:  []string{s.Injection.Service + "." + s.Namespace + ".svc"},
		Labels: map[string]string{"app.kubernetes.io/managed-by": controller.FieldManager},
		Client: direct, Log: t.Log.With("part", "certificate"),
	}
	own.certificate.loader = servingcert.NewLoader(cfg)
	parts := []manager.Runnable{own.certificate.loader, all, all.Copier()}
	if !s.Injection.CertManager {
		parts = append(parts, servingcert.NewKeeper(cfg))
	}
	for _, one := range parts {
		if err := mgr.Add(one); err != nil {
			return fmt.Errorf("set up the webhook: %w", err)
		}
	}
	metrics, err := inject.NewMetrics(ctrlmetrics.Registry)
	if err != nil {
		return fmt.Errorf("set up the webhook: %w", err)
	}
	steps := []inject.NamedStep{{Name: "proxy", Step: all.Step()}}
	if identity != nil {
		steps = append(steps, inject.NamedStep{Name: "identity token", Step: identity})
	}
	own.Register(inject.Path, inject.NewWebhook(metrics, t.Log.With("part", "webhook"), steps...))
	t.Health.Register("webhook", func(context.Context) error { return own.certificate.loader.Ready() })
	return nil
}
