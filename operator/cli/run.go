package cli

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/controller"
	"postern.dev/postern/operator/identitytoken"
	"postern.dev/postern/operator/pods"
	"postern.dev/postern/operator/presence"
)

// leaderName is the name of the Lease by which one of several operators acts.
const leaderName = "postern-operator"

// stopTime is how long what is under way may take once the operator is told to stop.
const stopTime = 10 * time.Second

// run runs the operator until ctx ends.
func run(ctx context.Context, w command.World, s config.Operator) error {
	return command.RunRole(ctx, w, "operator", s.Log, s.Metrics, func(ctx context.Context, t command.Tools) error {
		kube, err := connection(s)
		if err != nil {
			return err
		}
		mgr, err := newManager(kube, s, t.Log)
		if err != nil {
			return err
		}
		includeMetrics(t.Registry)
		if err := setup(ctx, mgr, s, t, w.Getenv); err != nil {
			return err
		}
		t.Health.Register("cache", func(ctx context.Context) error {
			if !mgr.GetCache().WaitForCacheSync(ctx) {
				return fmt.Errorf("the objects of the cluster are not all read yet")
			}
			return nil
		})
		t.Log.Info("starting", "version", t.Version, "namespace", s.Namespace, "compat_upbound", s.CompatUpbound)
		if err := mgr.Start(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("run the operator: %w", err)
		}
		t.Log.Info("stopped")
		return nil
	})
}

// setup gives the manager what the operator consists of.
func setup(ctx context.Context, mgr manager.Manager, s config.Operator, t command.Tools, getenv func(string) string) error {
	all := newPods(mgr, s, t, getenv)
	if err := setupProxies(mgr, s, t, getenv, all); err != nil {
		return err
	}
	identity, err := setupIdentity(ctx, mgr, s, t, getenv)
	if err != nil || all == nil {
		return err
	}
	return setupWebhook(mgr, s, t, all, identity)
}

// setupProxies adds what makes Proxies work.
func setupProxies(mgr manager.Manager, s config.Operator, t command.Tools, getenv func(string) string, all *pods.Pods) error {
	own := controller.Hub{Hub: presence.Hub{ConnectURL: s.ConnectURL, CAPin: s.CAPin}, Organization: s.Organization}
	if s.CAFile != "" {
		ca, err := os.ReadFile(s.CAFile)
		if err != nil {
			return fmt.Errorf("read the hub's CA: %w", err)
		}
		own.CA = string(ca)
	}
	hubs := presence.New(getenv)
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { <-ctx.Done(); hubs.Close(); return nil })); err != nil {
		return fmt.Errorf("set up the operator: %w", err)
	}
	host, port := s.HubProxy.Address()
	front := presence.NewFront(net.JoinHostPort(host, strconv.Itoa(port))) // asked only where it is set
	metrics := observe.NewOperator(t.Registry)
	for _, group := range groups(s) {
		r := &controller.Reconciler{
			Client: mgr.GetClient(), Direct: mgr.GetAPIReader(), Events: mgr.GetEventRecorder(controller.FieldManager), Hubs: hubs,
			Own: own, Pods: s.Pods, HubProxy: s.HubProxy, Front: front, New: group, Metrics: metrics, Log: t.Log,
		}
		if all != nil {
			r.Undo = all.Undo
		}
		if err := r.Setup(mgr); err != nil {
			return err
		}
	}
	return nil
}

// groups returns what makes an empty Proxy, for each API group that is served.
func groups(s config.Operator) []func() v1alpha1.Object {
	all := []func() v1alpha1.Object{func() v1alpha1.Object { return &v1alpha1.Proxy{} }}
	if s.CompatUpbound {
		all = append(all, func() v1alpha1.Object { return &upbound.Proxy{} })
	}
	return all
}

// connection returns how to reach the API server.
func connection(s config.Operator) (*rest.Config, error) {
	kube, err := rest.InClusterConfig()
	if s.Kubeconfig != "" {
		kube, err = clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w (outside of a cluster, give --kubeconfig)", err)
	}
	kube.QPS, kube.Burst = 50, 100
	kube.UserAgent = leaderName + "/" + command.Version()
	return kube, nil
}

// newScheme returns the types that the operator works with.
func newScheme(s config.Operator) (*runtime.Scheme, error) {
	known := runtime.NewScheme()
	add := []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme}
	if s.CompatUpbound {
		add = append(add, upbound.AddToScheme)
	}
	for _, one := range add {
		if err := one(known); err != nil {
			return nil, fmt.Errorf("make the types known: %w", err)
		}
	}
	return known, nil
}

// newManager returns what runs controllers and webhooks: with their cache, one leader among
// several operators, and an orderly end.
func newManager(kube *rest.Config, s config.Operator, l *slog.Logger) (manager.Manager, error) {
	known, err := newScheme(s)
	if err != nil {
		return nil, err
	}
	logger := logr.FromSlogHandler(l.Handler())
	log.SetLogger(logger) // the library has one for all
	stop := stopTime
	opts := ctrl.Options{
		Scheme:                        known,
		Logger:                        logger,
		Metrics:                       server.Options{BindAddress: "0"}, // they are served with ours
		HealthProbeBindAddress:        "0",                              // as above
		LeaderElection:                s.LeaderElect,
		LeaderElectionID:              leaderName,
		LeaderElectionNamespace:       s.Namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &stop,
	}
	opts.Cache.ByObject = controller.CacheOptions()
	maps.Copy(opts.Cache.ByObject, pods.CacheOptions())
	maps.Copy(opts.Cache.ByObject, identitytoken.CacheOptions())
	if s.Injection.Webhook != "" {
		if opts.WebhookServer, err = webhookServer(s.Injection.Webhook); err != nil {
			return nil, err
		}
	}
	if len(s.WatchNamespaces) > 0 {
		opts.Cache.DefaultNamespaces = make(map[string]cache.Config, len(s.WatchNamespaces))
		for _, n := range s.WatchNamespaces {
			opts.Cache.DefaultNamespaces[n] = cache.Config{}
		}
	}
	mgr, err := ctrl.NewManager(kube, opts)
	if err != nil {
		return nil, fmt.Errorf("set up the operator: %w", err)
	}
	return mgr, nil
}

// includeMetrics serves the library's metrics of controllers, webhooks and requests with ours,
// without those of process and runtime, which are there already.
func includeMetrics(r *observe.Registry) {
	ctrlmetrics.Registry.Unregister(collectors.NewGoCollector())
	ctrlmetrics.Registry.Unregister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.Include(ctrlmetrics.Registry)
}
