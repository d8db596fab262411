package pods

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/inject"
	"postern.dev/postern/operator/kubetest"
	"postern.dev/postern/operator/selection"
	"postern.dev/postern/operator/servingcert"
	"postern.dev/postern/test/kube/bins"
)

// apiServer is the one real API server of these tests, without a node. Tests run one after the
// other, each with an operator of its own.
var apiServer *rest.Config //nolint:gochecknoglobals // it takes seconds to start

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	os.Exit(run(m))
}

func run(m *testing.M) int {
	set, err := bins.Ensure(context.Background(), func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory: set.Dir(), CRDDirectoryPaths: []string{"../api/crds"}, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: kubetest.StartTime, ControlPlaneStopTimeout: kubetest.StartTime,
	}
	env.ControlPlane.GetAPIServer().Configure().Append("disable-admission-plugins", "ServiceAccount")
	if apiServer, err = env.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := env.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme, upbound.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// operator is an operator's part that has to do with pods, and a client of the cluster.
type operator struct {
	t         *testing.T
	client    client.Client
	namespace string // of the pods
	pods      *Pods
	hook      *webhookServer
	keeper    *servingcert.Keeper
	loader    *servingcert.Loader
	config    servingcert.Config
	mu        sync.Mutex
	events    []string
}

// system is the operator's own namespace.
const system = "postern-system"

// start starts an operator, and its webhook at the API server.
func start(t *testing.T) *operator {
	t.Helper()
	known := newScheme(t)
	direct, err := client.New(apiServer, client.Options{Scheme: known})
	if err != nil {
		t.Fatal(err)
	}
	o := &operator{t: t, client: direct}
	o.namespace = o.newNamespace("apps-")
	_ = direct.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}}) // it may be there

	mgr, err := ctrl.NewManager(apiServer, ctrl.Options{
		Scheme: known, Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Cache: cache.Options{ByObject: CacheOptions()},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.pods = New(Config{
		Client: mgr.GetClient(), Direct: mgr.GetAPIReader(), Cache: mgr.GetCache(),
		Lists:     []func() v1alpha1.ObjectList{func() v1alpha1.ObjectList { return &v1alpha1.ProxyList{} }, func() v1alpha1.ObjectList { return &upbound.ProxyList{} }},
		Empty:     []func() v1alpha1.Object{func() v1alpha1.Object { return &v1alpha1.Proxy{} }, func() v1alpha1.Object { return &upbound.Proxy{} }},
		Rules:     selection.Rules{Excluded: []string{"kube-system", system}},
		Host:      func(namespace, proxy string) string { return proxy + "-proxy." + namespace + ".svc:3128" },
		Secret:    func(proxy string) string { return proxy + "-proxy" },
		APIServer: "10.96.0.1",
		WriteStatus: func(ctx context.Context, p v1alpha1.Object, s v1alpha1.ProxyStatus) error {
			return applyStatus(ctx, direct, p, s)
		},
		Event: func(p v1alpha1.Object, _ *corev1.Pod, reason, message string) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.events = append(o.events, p.GetName()+" "+reason+" "+message)
		},
		Log: slog.New(slog.DiscardHandler),
	})
	o.config = servingcert.Config{
		Namespace: system, Secret: "webhook-" + o.namespace, Webhooks: o.namespace, Names: []string{"localhost"},
		Client: direct, Log: slog.New(slog.DiscardHandler),
	}
	o.keeper, o.loader = servingcert.NewKeeper(o.config), servingcert.NewLoader(o.config)
	o.hook = serve(t, o.loader, inject.NewWebhook(nil, slog.New(slog.DiscardHandler), inject.NamedStep{Name: "proxy", Step: o.pods.Step()}))
	o.configure()
	o.run(mgr)
	return o
}

// run runs the manager with the evictions until the test ends.
func (o *operator) run(mgr manager.Manager) {
	for _, one := range []manager.Runnable{o.pods, o.pods.Copier()} {
		if err := mgr.Add(one); err != nil {
			o.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	o.t.Cleanup(func() {
		o.clear()
		cancel()
		if err := <-done; err != nil {
			o.t.Error(err)
		}
	})
	if !mgr.GetCache().WaitForCacheSync(o.t.Context()) {
		o.t.Fatal("the cache was not filled")
	}
}

// configure makes the webhook known to the API server, with rules as the chart's.
func (o *operator) configure() {
	url := "https://localhost:" + o.hook.port + inject.Path
	ignore, none, scope := admissionregistration.Ignore, admissionregistration.SideEffectClassNoneOnDryRun, admissionregistration.NamespacedScope
	again, timeout := admissionregistration.IfNeededReinvocationPolicy, int32(5)
	hook := func(name, group, version, resource string, op admissionregistration.OperationType, s *metav1.LabelSelector) admissionregistration.MutatingWebhook {
		return admissionregistration.MutatingWebhook{
			Name: name, AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &ignore,
			ReinvocationPolicy: &again, TimeoutSeconds: &timeout, NamespaceSelector: s,
			ClientConfig: admissionregistration.WebhookClientConfig{URL: &url},
			Rules: []admissionregistration.RuleWithOperations{{
				Operations: []admissionregistration.OperationType{op},
				Rule:       admissionregistration.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}, Scope: &scope},
			}},
		}
	}
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: o.config.Webhooks}, Webhooks: []admissionregistration.MutatingWebhook{
		hook("pods.postern.dev", "", "v1", "pods", admissionregistration.Create, &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": o.namespace}}),
		hook("probe.postern.dev", "postern.dev", "v1alpha1", "proxies", admissionregistration.Update, nil),
	}}
	if err := o.client.Create(o.t.Context(), config); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = o.client.Delete(context.Background(), config) })
	o.certify()
}

// certify brings the webhook's certificate about, and waits until the API server uses it.
func (o *operator) certify() {
	o.t.Helper()
	o.must(o.keeper.Step(o.t.Context(), time.Now()))
	o.must(o.loader.Step(o.t.Context()))
	// A pod that nobody selects shows when the webhook is asked.
	o.eventually("the API server asks the webhook", func() string {
		before := o.hook.count()
		pod := o.bare("tried", nil)
		o.must(o.client.Create(o.t.Context(), pod, client.DryRunAll))
		if o.hook.count() == before {
			return "not asked"
		}
		return ""
	})
}

func (o *operator) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// eventually waits until what returns "" does, and fails with what it returned last.
func (o *operator) eventually(what string, ask func() string) {
	o.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		problem := ask()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("waited in vain until %s: %s", what, problem)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (o *operator) newNamespace(prefix string) string {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix}}
	o.must(o.client.Create(o.t.Context(), n))
	return n.Name
}

// bare is a pod that nobody has made yet.
func (o *operator) bare(name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "web"}}},
	}
}

// makePod does what a ReplicaSet and a node do: it makes a pod, and that becomes ready.
func (o *operator) makePod(owner, name string, labels map[string]string) *corev1.Pod {
	o.t.Helper()
	pod := o.bare(name, labels)
	if owner != "" {
		yes := true
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: types.UID("uid-of-" + owner), Controller: &yes}}
	}
	o.must(o.client.Create(o.t.Context(), pod))
	o.must(o.client.SubResource("binding").Create(o.t.Context(), pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "none"}}))
	o.patchStatus(pod, `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`)
	return pod
}

func (o *operator) list() []corev1.Pod {
	o.t.Helper()
	all := &corev1.PodList{}
	o.must(o.client.List(o.t.Context(), all, client.InNamespace(o.namespace)))
	return all.Items
}

// nodes plays ReplicaSets and nodes until all pods of the owners are there and right: pods that are
// being deleted go, and new ones are made. It returns how many of each owner were made anew.
func (o *operator) nodes(replicas map[string]int, labels map[string]string, right func(corev1.Pod) bool) map[string]int {
	o.t.Helper()
	made, serial := map[string]int{}, 0
	o.eventually("all pods are as they should be", func() string {
		have, wrong := map[string]int{}, []string{}
		for _, pod := range o.list() {
			owner := metav1.GetControllerOf(&pod)
			if owner == nil {
				continue
			}
			if pod.DeletionTimestamp != nil {
				o.must(client.IgnoreNotFound(o.client.Delete(o.t.Context(), &pod, client.GracePeriodSeconds(0))))
				continue
			}
			have[owner.Name]++
			if !right(pod) {
				wrong = append(wrong, pod.Name)
			}
		}
		for owner, n := range replicas {
			for ; have[owner] < n; have[owner]++ {
				serial++
				made[owner]++
				if pod := o.makePod(owner, fmt.Sprintf("%s-new-%d", owner, serial), labels); !right(*pod) {
					wrong = append(wrong, pod.Name)
				}
			}
		}
		if len(wrong) > 0 {
			return fmt.Sprintf("wrong: %v", wrong)
		}
		return ""
	})
	return made
}

// makeProxy makes a Proxy with a proxy that runs, as the controller would.
func (o *operator) makeProxy(name string, labels map[string]string) *v1alpha1.Proxy {
	o.t.Helper()
	p := &v1alpha1.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: name, Finalizers: []string{"postern.dev/proxy"}}}
	p.Spec.SecretRef = v1alpha1.SecretKeyRef{Name: "robot-token", Key: "token"}
	p.Spec.AgentID = "agent-" + name
	p.Spec.PodSelector.MatchLabels = values(labels)
	o.must(o.client.Create(o.t.Context(), p))
	o.must(o.client.Create(o.t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: name + "-proxy"}, Data: map[string][]byte{inject.SecretKey: []byte("secret of " + name)},
	}))
	o.serving(p, 1)
	return p
}

// values are labels as a Proxy has them.
func values(labels map[string]string) map[string]v1alpha1.LabelValue {
	all := make(map[string]v1alpha1.LabelValue, len(labels))
	for key, value := range labels {
		all[key] = v1alpha1.LabelValue(value)
	}
	return all
}

func (o *operator) serving(p v1alpha1.Object, n int32) {
	o.t.Helper()
	o.patchStatus(p, fmt.Sprintf(`{"status":{"readyProxies":%d}}`, n))
}

func (o *operator) patchStatus(p client.Object, text string) {
	o.t.Helper()
	o.must(o.client.Status().Patch(o.t.Context(), p, client.RawPatch(types.MergePatchType, []byte(text))))
}

func (o *operator) patch(p client.Object, text string) {
	o.t.Helper()
	o.must(o.client.Patch(o.t.Context(), p, client.RawPatch(types.MergePatchType, []byte(text))))
}

// condition waits for a condition of a Proxy.
func (o *operator) condition(name, kind, reason string, texts ...string) {
	o.t.Helper()
	o.eventually(name+" has the condition "+kind+" "+reason, func() string {
		p := &v1alpha1.Proxy{}
		o.must(o.client.Get(o.t.Context(), client.ObjectKey{Namespace: o.namespace, Name: name}, p))
		for _, c := range p.Status.Conditions {
			if c.Type != kind {
				continue
			}
			lacks := slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(c.Message, text) })
			if c.Reason == reason && !lacks && c.ObservedGeneration == p.Generation {
				return ""
			}
			return c.Reason + ": " + c.Message
		}
		return "no such condition"
	})
}

// budget is a PodDisruptionBudget that allows a number of disruptions, as its controller would say.
func (o *operator) budget(name string, labels map[string]string, allowed int32) *policyv1.PodDisruptionBudget {
	o.t.Helper()
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: name}}
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	b.Spec.MinAvailable = &intstr.IntOrString{IntVal: 2}
	o.must(o.client.Create(o.t.Context(), b))
	o.allow(b, allowed)
	return b
}

func (o *operator) allow(b *policyv1.PodDisruptionBudget, allowed int32) {
	o.t.Helper()
	o.patchStatus(b, fmt.Sprintf(`{"status":{"observedGeneration":%d,"disruptionsAllowed":%d,"desiredHealthy":2,"currentHealthy":%d,"expectedPods":%d}}`,
		b.Generation, allowed, 2+allowed, 2+allowed))
}

// clear removes what the test made, so that the next one finds nothing.
func (o *operator) clear() {
	ctx := context.Background()
	for _, list := range []v1alpha1.ObjectList{&v1alpha1.ProxyList{}, &upbound.ProxyList{}} {
		_ = o.client.List(ctx, list)
		for _, p := range list.Objects() {
			_ = o.client.Patch(ctx, p, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
			_ = o.client.Delete(ctx, p)
		}
	}
	_ = o.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(o.namespace), client.GracePeriodSeconds(0))
}

func applyStatus(ctx context.Context, c client.Client, p v1alpha1.Object, s v1alpha1.ProxyStatus) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var status map[string]any
	if err := json.Unmarshal(text, &status); err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	u.SetGroupVersionKind(p.GetObjectKind().GroupVersionKind())
	u.SetNamespace(p.GetNamespace())
	u.SetName(p.GetName())
	return c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager), client.ForceOwnership)
}

// webhookServer serves the webhook, and can stop.
type webhookServer struct {
	handler http.Handler
	port    string
	mu      sync.Mutex
	down    bool
	asked   int
}

func (s *webhookServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *webhookServer) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *webhookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down := s.down
	if !down {
		s.asked++
	}
	s.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler)
	}
	s.handler.ServeHTTP(w, r)
}

func serve(t *testing.T, loader *servingcert.Loader, handler http.Handler) *webhookServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	s := &webhookServer{handler: handler, port: port}
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: loader.Certificate},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return s
}
