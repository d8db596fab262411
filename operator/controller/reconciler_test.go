package controller

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
	"postern.dev/postern/operator/servingcert"
)

// imitation is a hub as far as the reconciler asks it.
type imitation struct {
	mu      sync.Mutex
	up      map[string]bool // agents
	refused string          // a token that is not taken
	gone    bool
	failed  string // what the agent's replica tells of its last failure
}

func (h *imitation) Agent(_ context.Context, _ presence.Hub, _, agent string, token []byte) (presence.Agent, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.gone:
		return presence.Agent{}, wire.Fail(wire.LegHub, wire.CodeUnreachable, "no route")
	case string(token) == h.refused:
		return presence.Agent{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token is revoked")
	case !h.up[agent]:
		return presence.Agent{}, nil
	}
	return presence.Agent{Connected: true, Replicas: []api.Replica{{Name: "one", State: api.StateReady, Version: "v1", RTTMillis: 3, LastError: h.failed}}}, nil
}

// bench is one Proxy with a reconciler that is called by hand.
type bench struct {
	*testing.T
	c    client.Client
	r    *Reconciler
	hub  *imitation
	key  client.ObjectKey
	now  time.Time
	told *events.FakeRecorder
}

func newBench(t *testing.T, change func(*v1alpha1.Proxy)) *bench {
	t.Helper()
	c := kube(t)
	b := &bench{T: t, c: c, hub: &imitation{up: map[string]bool{}}, now: time.Now(), key: client.ObjectKey{Namespace: namespace(t, c), Name: "private-cluster"}}
	b.restart()
	p := &v1alpha1.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: b.key.Namespace, Name: b.key.Name}}
	p.Spec.SecretRef = v1alpha1.SecretKeyRef{Name: "robot-token", Key: "token"}
	p.Spec.PodSelector.MatchLabels = map[string]v1alpha1.LabelValue{"app": "x"}
	if change != nil {
		change(p)
	}
	if err := c.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return b
}

// restart forgets what the operator remembers.
func (b *bench) restart() {
	b.told = events.NewFakeRecorder(1000)
	b.r = &Reconciler{
		Client: b.c, Direct: b.c, Events: b.told, Hubs: b.hub, Pods: config.DefaultOperator().Pods,
		Own: Hub{Hub: presence.Hub{ConnectURL: "tls://hub.example.org"}, Organization: "default"},
		New: func() v1alpha1.Object { return &v1alpha1.Proxy{} }, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return b.now },
	}
	b.r.Pods.Image = "postern:test"
}

// settle reconciles until there is nothing to be done at once, and returns the Proxy.
func (b *bench) settle() *v1alpha1.Proxy {
	b.Helper()
	for range 10 {
		result, err := b.r.Reconcile(b.Context(), ctrl.Request{NamespacedName: b.key})
		if err != nil {
			b.Fatal(err)
		}
		if result.RequeueAfter > time.Second || result.RequeueAfter == 0 {
			break
		}
	}
	p := &v1alpha1.Proxy{}
	if err := b.c.Get(b.Context(), b.key, p); err != nil && !apierrors.IsNotFound(err) {
		b.Fatal(err)
	}
	return p
}

func (b *bench) secret(token string) {
	b.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.key.Namespace, Name: "robot-token"}, StringData: map[string]string{"token": token}}
	if err := b.c.Delete(b.Context(), s); err != nil && !apierrors.IsNotFound(err) {
		b.Fatal(err)
	}
	s.ResourceVersion = ""
	if err := b.c.Create(b.Context(), s); err != nil {
		b.Fatal(err)
	}
}

// ready sets how many pods of the proxy are ready, as the Deployment's controller does.
func (b *bench) ready(n int32) {
	b.Helper()
	d := b.deployment()
	d.Status.Replicas, d.Status.ReadyReplicas = n, n
	if err := b.c.Status().Update(b.Context(), d); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) deployment() *appsv1.Deployment {
	b.Helper()
	d := &appsv1.Deployment{}
	if err := b.c.Get(b.Context(), client.ObjectKey{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}, d); err != nil {
		b.Fatal(err)
	}
	return d
}

// want checks phase and reason, and that the message says something.
func (b *bench) want(p *v1alpha1.Proxy, phase v1alpha1.Phase, reason, message string) {
	b.Helper()
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	if c == nil || p.Status.Phase != phase || c.Reason != reason || !strings.Contains(c.Message, message) {
		b.Fatalf("phase %s, condition %+v\nwant %s, %s, %q", p.Status.Phase, c, phase, reason, message)
	}
	if p.Status.ObservedGeneration != p.Generation || c.ObservedGeneration != p.Generation {
		b.Fatalf("observed %d and %d of %d", p.Status.ObservedGeneration, c.ObservedGeneration, p.Generation)
	}
}

// TestLife follows a Proxy from its making to its end.
func TestLife(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := b.settle()
	id := p.Status.AgentID
	if _, err := uuid.Parse(id); err != nil {
		t.Errorf("agent %q: %v", id, err)
	}
	b.want(p, v1alpha1.PhaseWaitingForProxy, ReasonSecretMissing, "kubectl create secret generic robot-token -n "+b.key.Namespace)
	b.secret("aa.bb.cc")
	b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonAgentNotConnected, "agent.agentId="+id)
	b.hub.up[id] = true
	b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonProxyNotReady, "")
	b.ready(2)
	p = b.settle()
	b.want(p, v1alpha1.PhaseConnected, ReasonConnected, id)
	if len(p.Status.Replicas) != 1 || p.Status.Replicas[0].Version != "v1" || p.Status.ReadyProxies != 2 {
		t.Errorf("%+v", p.Status)
	}
	b.hub.failed = "tcp:db.example.org:5432 is refused by the agent's rules"
	if p = b.settle(); p.Status.LastError != b.hub.failed {
		t.Errorf("the last error is %q", p.Status.LastError)
	}
	b.hub.failed = ""
	if p = b.settle(); p.Status.LastError != "" {
		t.Errorf("the last error is %q still", p.Status.LastError)
	}
	version := p.ResourceVersion
	if p = b.settle(); p.ResourceVersion != version {
		t.Error("a look that finds nothing new writes")
	}

	b.hub.up[id] = false
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonAgentNotConnected, "")
	b.hub.up[id] = true
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")
	b.hub.gone = true
	p = b.settle()
	b.want(p, v1alpha1.PhaseConnected, ReasonHubUnreachable, "Streams that run go on")
	if !strings.Contains(p.Status.LastError, "no route") {
		t.Errorf("the last error is %q", p.Status.LastError)
	}
	b.now = b.now.Add(grace + time.Second)
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonHubUnreachable, "no route")
	b.hub.gone, b.hub.refused = false, "aa.bb.cc"
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonTokenRefused, "Secret robot-token")
	b.secret("dd.ee.ff")
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")
	var told []string
	for len(b.told.Events) > 0 {
		told = append(told, <-b.told.Events)
	}
	if all := strings.Join(told, "\n"); !strings.Contains(all, "TokenChanged Key token of Secret robot-token holds another token; the proxy takes it within seconds") || strings.Contains(all, "dd.ee.ff") || len(told) > 12 {
		t.Errorf("events:\n%s", all)
	}

	b.hub.gone = true // nobody has to be asked for it to go
	if err := b.c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if p = b.settle(); p.Name != "" {
		t.Errorf("it is still there: %v", p.Finalizers)
	}
	if len(b.r.memory) != 0 {
		t.Error("it is still remembered")
	}
}

// TestAgentOutlivesTheStatus checks that the ID that was made up stays, whichever record is lost.
func TestAgentOutlivesTheStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	p := b.settle()
	id := p.Status.AgentID
	p.Status = v1alpha1.ProxyStatus{}
	if err := b.c.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if p = b.settle(); p.Status.AgentID != id {
		t.Errorf("lost status: %s, was %s", p.Status.AgentID, id)
	}
	p.Annotations = nil
	if err := b.c.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if p = b.settle(); p.Status.AgentID != id || p.Annotations[AnnotationAgentID] != id {
		t.Errorf("lost annotation: %s, was %s", p.Status.AgentID, id)
	}
}

// TestOtherManagers checks that what others have set stays, is told, and that what they break is mended.
func TestOtherManagers(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.settle()
	// As an autoscaler does, and people.
	for _, args := range [][]string{
		{"scale", "deployment/private-cluster-proxy", "--replicas=3"},
		{"annotate", "deployment/private-cluster-proxy", "team=network"},
		{"label", "deployment/private-cluster-proxy", "team=network"},
	} {
		if _, err := cluster.Kubectl(t.Context(), "", append(args, "-n", b.key.Namespace)...); err != nil {
			t.Fatal(err)
		}
	}
	b.r.touched(b.key)
	if c := meta.FindStatusCondition(b.settle().Status.Conditions, ConditionApplied); c.Status != metav1.ConditionTrue {
		t.Errorf("a scaled Deployment: %+v", c)
	}
	d := b.deployment()
	if *d.Spec.Replicas != 3 || d.Annotations["team"] != "network" || d.Labels["team"] != "network" {
		t.Errorf("%d replicas, %v, %v: what somebody has set was taken back", *d.Spec.Replicas, d.Annotations, d.Labels)
	}
	d.Spec.Template.Spec.Containers[0].Image = "another:image"
	if err := b.c.Update(t.Context(), d, client.FieldOwner("somebody")); err != nil {
		t.Fatal(err)
	}
	b.r.touched(b.key)
	p := b.settle()
	c := meta.FindStatusCondition(p.Status.Conditions, ConditionApplied)
	if c == nil || c.Reason != ReasonFieldsOfOthers || !strings.Contains(c.Message, "somebody") || !strings.Contains(c.Message, "image") || strings.Contains(c.Message, ".spec.replicas") {
		t.Errorf("%+v", c)
	}
	if d = b.deployment(); *d.Spec.Replicas != 3 || d.Spec.Template.Spec.Containers[0].Image != "another:image" {
		t.Error("what somebody has set was taken back")
	}
	if err := b.c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	b.r.touched(b.key)
	p = b.settle()
	if c := meta.FindStatusCondition(p.Status.Conditions, ConditionApplied); c.Status != metav1.ConditionTrue {
		t.Errorf("%+v", c)
	}
	if d = b.deployment(); *d.Spec.Replicas != 2 || d.Spec.Template.Spec.Containers[0].Image != "postern:test" {
		t.Errorf("made again: %+v", d.Spec)
	}
}

// TestNameTaken checks that a Service of somebody else's is left alone.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if err := b.c.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonNameTaken, "Service "+b.key.Namespace+"/private-cluster-proxy, and it was not made by the operator")
	if err := b.c.Get(t.Context(), client.ObjectKeyFromObject(s), s); err != nil || len(s.OwnerReferences) != 0 || s.Spec.Ports[0].Port != 80 {
		t.Errorf("%v %+v", err, s)
	}
}

// authority is the certificate of somebody's CA.
func authority(t *testing.T) string {
	t.Helper()
	m, err := servingcert.Next(time.Now(), servingcert.Material{}, nil, []string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	return string(m.Authorities)
}

// TestHubOfTheProxy checks that a Proxy with a hub of its own does not get the operator's CA.
func TestHubOfTheProxy(t *testing.T) {
	own := Hub{Hub: presence.Hub{ConnectURL: "tls://a", CA: authority(t)}, Organization: "x"}
	const noCA = "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n"
	for _, tt := range []struct {
		hub    *v1alpha1.Hub
		own    Hub
		want   Hub
		reason string
	}{
		{nil, own, own, ""},
		{&v1alpha1.Hub{Organization: "y"}, own, Hub{own.Hub, "y"}, ""},
		{&v1alpha1.Hub{ConnectURL: "tls://b"}, own, Hub{presence.Hub{ConnectURL: "tls://b"}, "x"}, ""},
		{&v1alpha1.Hub{ConnectURL: "wss://b"}, own, Hub{presence.Hub{ConnectURL: "wss://b"}, "x"}, ReasonHubNotConfigured},
		{nil, Hub{Organization: "x"}, Hub{Organization: "x"}, ReasonHubNotConfigured},
		{nil, Hub{Hub: own.Hub}, Hub{Hub: own.Hub}, ReasonHubNotConfigured},
		{&v1alpha1.Hub{CABundle: noCA}, own, Hub{presence.Hub{ConnectURL: "tls://a", CA: noCA}, "x"}, ReasonHubNotConfigured},
		{&v1alpha1.Hub{ConnectURL: "tls://a..b"}, own, Hub{presence.Hub{ConnectURL: "tls://a..b"}, "x"}, ReasonHubNotConfigured},
	} {
		got, trouble := hubOf(&v1alpha1.Proxy{Spec: v1alpha1.ProxySpec{Hub: tt.hub}}, tt.own)
		if got != tt.want || (trouble == nil) != (tt.reason == "") || trouble != nil && trouble.reason != tt.reason {
			t.Errorf("%+v: %+v, %v", tt.hub, got, trouble)
		}
	}
}

// TestRestricted has the API server judge the proxy's pods by the restricted Pod Security Standard.
func TestRestricted(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.settle()
	const label = `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`
	if _, err := cluster.Kubectl(t.Context(), "", "patch", "namespace", b.key.Namespace, "-p", label); err != nil {
		t.Fatal(err)
	}
	d := b.deployment()
	pod := &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
	pod.Namespace, pod.Name = b.key.Namespace, "one"
	if err := b.c.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Error(err)
	}
	privileged := pod.DeepCopy()
	privileged.Spec.SecurityContext, privileged.ResourceVersion = nil, ""
	if err := b.c.Create(t.Context(), privileged, client.DryRunAll); !apierrors.IsForbidden(err) {
		t.Errorf("a pod without its security context: %v", err)
	}
}
