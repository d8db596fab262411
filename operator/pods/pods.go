// Package pods brings Proxies and pods of a cluster together: it tells webhook and evictor what the
// cluster holds, and does for them what they decide.
package pods

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/evict"
	"postern.dev/postern/operator/inject"
	"postern.dev/postern/operator/selection"
)

// What this package needs to be allowed to do, for the chart.
//
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods/eviction,verbs=create
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list
// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;create;update;delete
// +kubebuilder:rbac:groups=postern.dev;spaces.upbound.io,resources=proxies,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=postern.dev;spaces.upbound.io,resources=proxies/status,verbs=patch

// Config is what is worked with.
type Config struct {
	Client client.Client // writes; reads Proxies and pods from the cache
	Direct client.Reader // reads from the API server
	Cache  cache.Cache   // tells of changes
	// Lists make an empty list of Proxies, for each group that is served.
	Lists []func() v1alpha1.ObjectList
	// Empty make an empty Proxy of each of these groups.
	Empty []func() v1alpha1.Object
	Rules selection.Rules
	// Host and Secret are the proxy's host and port and the name of its Secret, which has the password.
	Host   func(namespace, proxy string) string
	Secret func(proxy string) string
	// APIServer is the host of this cluster's API server as pods know it, KUBERNETES_SERVICE_HOST.
	APIServer string
	NoProxy   []string
	// WriteStatus writes some fields of a Proxy's status and leaves the others alone.
	WriteStatus func(ctx context.Context, p v1alpha1.Object, s v1alpha1.ProxyStatus) error
	// Event tells what happened to a pod of a Proxy. It may be nil.
	Event func(p v1alpha1.Object, pod *corev1.Pod, reason, message string)
	Log   *slog.Logger
}

// Pods does the work. Its methods are safe for concurrent use.
type Pods struct {
	cfg  Config
	kick chan struct{} // something has changed

	mu     sync.Mutex
	copied map[copyKey]time.Time // when copies of passwords were last known to be good
}

// New returns what does the work.
func New(cfg Config) *Pods {
	return &Pods{cfg: cfg, kick: make(chan struct{}, 1), copied: make(map[copyKey]time.Time)}
}

// Step is the webhook's step that points pods to proxies.
func (p *Pods) Step() *inject.Proxies {
	return &inject.Proxies{
		List: p.Proxies, Rules: p.cfg.Rules, Password: p.MayCopy, Keys: p.keys,
		Route: func(s selection.Proxy) inject.Route {
			return inject.Route{
				Proxy: s.Key, Agent: s.Agent, Host: p.cfg.Host(s.Namespace, s.Name), Secret: selection.SecretName(s.Key),
				APIServer: p.cfg.APIServer, NoProxy: p.cfg.NoProxy,
			}
		},
	}
}

// Proxies returns all Proxies, as far as the choice of pods needs them.
func (p *Pods) Proxies(ctx context.Context) ([]selection.Proxy, error) {
	all, err := p.objects(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]selection.Proxy, 0, len(all))
	for _, o := range all {
		list = append(list, Summary(o))
	}
	return list, nil
}

// objects returns all Proxies with their kinds set. They are not to be changed.
func (p *Pods) objects(ctx context.Context) ([]v1alpha1.Object, error) {
	var all []v1alpha1.Object
	for _, empty := range p.cfg.Lists {
		list := empty()
		if err := p.cfg.Client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list Proxies: %w", err)
		}
		for _, o := range list.Objects() {
			if err := setKind(o, p.cfg.Client.Scheme()); err != nil {
				return nil, err
			}
			all = append(all, o)
		}
	}
	return all, nil
}

func setKind(o v1alpha1.Object, scheme *runtime.Scheme) error {
	kind, err := apiutil.GVKForObject(o, scheme)
	if err != nil {
		return fmt.Errorf("find the Proxy's kind: %w", err)
	}
	o.GetObjectKind().SetGroupVersionKind(kind)
	return nil
}

// Summary returns what the choice of pods needs of a Proxy, whose kind is set. One with a selector
// or an agent's ID that cannot be used selects nothing, or has no agent.
func Summary(o v1alpha1.Object) selection.Proxy {
	s := selection.Proxy{
		Key:      selection.Key{Group: o.GetObjectKind().GroupVersionKind().Group, Namespace: o.GetNamespace(), Name: o.GetName()},
		Created:  o.GetCreationTimestamp().Time,
		Deleting: o.GetDeletionTimestamp() != nil,
		Serving:  o.State().ReadyProxies > 0,
	}
	if s.Agent = o.Common().Agent(); s.Agent == "" {
		s.Agent = o.State().AgentID
	}
	if identity.ValidateName("agent ID", s.Agent) != nil {
		s.Agent = ""
	}
	if selector, err := metav1.LabelSelectorAsSelector(o.Common().PodSelector.LabelSelector()); err == nil {
		s.Selector = selector
	}
	return s
}

// keys returns the keys of a ConfigMap or Secret.
func (p *Pods) keys(ctx context.Context, kind, namespace, name string) ([]string, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	var list []string
	switch kind {
	case inject.KindConfigMap:
		m := &corev1.ConfigMap{}
		if err := p.cfg.Direct.Get(ctx, key, m); err != nil {
			return nil, err
		}
		for k := range m.Data {
			list = append(list, k)
		}
	case inject.KindSecret:
		s := &corev1.Secret{}
		if err := p.cfg.Direct.Get(ctx, key, s); err != nil {
			return nil, err
		}
		for k := range s.Data {
			list = append(list, k)
		}
	default:
		return nil, fmt.Errorf("containers take no variables from a %s", kind)
	}
	return list, nil
}

// CacheOptions says how pods are kept in memory: of all namespaces, whatever the Proxies' are, and
// only what the evictor looks at.
func CacheOptions() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&corev1.Pod{}: {Namespaces: map[string]cache.Config{cache.AllNamespaces: {}}, Transform: evict.Trim},
	}
}
