package controller

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// front is a hub's own proxy as far as it is asked.
type front struct {
	asked  []string // users
	answer error
}

func (f *front) Takes(_ context.Context, user, _ string) error {
	f.asked = append(f.asked, user)
	return f.answer
}

// hubProxy makes the reconciler use the hub's own proxy, whose Secret is in a namespace.
func (b *bench) hubProxy(namespace string) {
	b.r.Front = &front{}
	b.r.HubProxy = config.HubProxy{Service: "postern-hub." + namespace + ":3128", Credentials: namespace + "/passwords"}
}

// lines returns the credentials file of the hub's proxy.
func (b *bench) lines(namespace string) string {
	b.Helper()
	s := &corev1.Secret{}
	if err := b.c.Get(b.Context(), client.ObjectKey{Namespace: namespace, Name: "passwords"}, s); err != nil {
		if apierrors.IsNotFound(err) {
			return ""
		}
		b.Fatal(err)
	}
	return string(s.Data["credentials"])
}

// made returns what there is of the kinds that are made for a Proxy.
func (b *bench) made() string {
	b.Helper()
	meta := metav1.ObjectMeta{Namespace: b.key.Namespace, Name: ObjectName(b.key.Name)}
	var all []string
	for _, o := range []client.Object{
		&appsv1.Deployment{ObjectMeta: meta}, &corev1.Service{ObjectMeta: meta}, &corev1.ServiceAccount{ObjectMeta: meta},
		&policyv1.PodDisruptionBudget{ObjectMeta: meta}, &networkingv1.NetworkPolicy{ObjectMeta: meta}, &corev1.Secret{ObjectMeta: meta},
	} {
		if err := b.c.Get(b.Context(), client.ObjectKeyFromObject(o), o); err == nil {
			name := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1."), "{}")
			if s, ok := o.(*corev1.Service); ok {
				name += fmt.Sprintf("(%s %s%v:%d)", s.Spec.Type, s.Spec.ExternalName, s.Spec.Selector != nil, s.Spec.Ports[0].Port)
			}
			all = append(all, name)
		} else if !apierrors.IsNotFound(err) {
			b.Fatal(err)
		}
	}
	return strings.Join(all, " ")
}

const ownProxy = "Deployment Service(ClusterIP true:3128) ServiceAccount PodDisruptionBudget NetworkPolicy Secret"

// TestByTheHub follows two Proxies of the hub's own proxy: what is made, lines, tokens, and the end.
func TestByTheHub(t *testing.T) {
	t.Parallel()
	b, other := newBench(t, nil), newBench(t, nil)
	hub := namespace(t, b.c)
	b.hubProxy(hub)
	other.hubProxy(hub)
	byHub := "Service(ExternalName postern-hub." + hub + ".svc.cluster.localfalse:3128) Secret"

	const foreign = "# by hand\nalice:secret\nbob:secret agent=lab as=x/y\n"
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: hub, Name: "passwords"}, StringData: map[string]string{"credentials": foreign, "other": "x"}}
	if err := b.c.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonSecretMissing, "")
	if got := b.lines(hub); got != foreign || b.made() != byHub {
		t.Errorf("without a token: %q\n%s", got, b.made())
	}
	b.secret("aa.bb.cc")
	p := b.settle()
	b.want(p, v1alpha1.PhaseWaitingForProxy, ReasonAgentNotConnected, "")
	b.hub.up[p.Status.AgentID] = true
	p = b.settle()
	b.want(p, v1alpha1.PhaseConnected, ReasonConnected, "hub's own proxy postern-hub."+hub)
	if p.Status.ReadyProxies != 1 || len(p.Status.Replicas) != 1 {
		t.Errorf("%+v", p.Status)
	}
	mine := func(b *bench, agent string) bool {
		n := strings.Count(b.lines(hub), fmt.Sprintf(" agent=default/%s as=%s/%s\n", agent, b.key.Namespace, b.key.Name))
		return n == 1
	}
	if !mine(b, p.Status.AgentID) || !strings.HasPrefix(b.lines(hub), foreign) {
		t.Errorf("lines:\n%s", b.lines(hub))
	}
	other.secret("aa.bb.cc")
	q := other.settle()
	if !mine(b, p.Status.AgentID) || !mine(other, q.Status.AgentID) || strings.Count(b.lines(hub), "\n") != 5 {
		t.Errorf("lines of two:\n%s", b.lines(hub))
	}
	if got := string(secretOf(b, hub).Data["other"]); got != "x" {
		t.Errorf("another key is %q", got)
	}
	version := secretOf(b, hub).ResourceVersion
	b.settle()
	if secretOf(b, hub).ResourceVersion != version {
		t.Error("a look that finds nothing new writes")
	}

	// While the hub cannot be asked nothing changes; a token that it refuses is no good here either.
	b.hub.gone = true
	if p = b.settle(); !mine(b, p.Status.AgentID) || p.Status.ReadyProxies != 1 {
		t.Errorf("while the hub is away: %d\n%s", p.Status.ReadyProxies, b.lines(hub))
	}
	b.hub.gone, b.hub.refused = false, "aa.bb.cc"
	p = b.settle()
	b.want(p, v1alpha1.PhaseDisconnected, ReasonTokenRefused, "")
	if mine(b, p.Status.AgentID) || p.Status.ReadyProxies != 0 || !mine(other, q.Status.AgentID) {
		t.Errorf("with a refused token:\n%s", b.lines(hub))
	}
	b.hub.refused = ""
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")
	var told []string
	for len(b.told.Events) > 0 {
		told = append(told, <-b.told.Events)
	}
	if all := strings.Join(told, "\n"); !strings.Contains(all, "PasswordGiven") || !strings.Contains(all, "PasswordWithdrawn") || strings.Contains(all, "$2a$") {
		t.Errorf("events:\n%s", all)
	}

	// A Secret that is gone is made again, and one who tampers with the password brings no line in.
	if err := b.c.Delete(t.Context(), secretOf(b, hub)); err != nil {
		t.Fatal(err)
	}
	b.settle()
	other.settle()
	if !mine(b, p.Status.AgentID) || !mine(other, q.Status.AgentID) || strings.Count(b.lines(hub), "\n") != 2 {
		t.Errorf("made again:\n%s", b.lines(hub))
	}
	own := &corev1.Secret{}
	if err := b.c.Get(t.Context(), client.ObjectKey{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}, own); err != nil {
		t.Fatal(err)
	}
	own.Data["credentials"] = append(own.Data["credentials"], "\n*:open"...)
	if err := b.c.Update(t.Context(), own, client.FieldOwner("somebody")); err != nil {
		t.Fatal(err)
	}
	b.settle()
	if strings.Contains(b.lines(hub), "open") {
		t.Errorf("a line of somebody else's:\n%s", b.lines(hub))
	}

	for _, one := range []*bench{b, other} {
		if err := one.c.Delete(t.Context(), &v1alpha1.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: one.key.Namespace, Name: one.key.Name}}); err != nil {
			t.Fatal(err)
		}
		if p := one.settle(); p.Name != "" {
			t.Errorf("it is still there: %v", p.Finalizers)
		}
	}
	if got := b.lines(hub); got != "" {
		t.Errorf("lines of Proxies that are gone:\n%s", got)
	}
}

func secretOf(b *bench, namespace string) *corev1.Secret {
	b.Helper()
	s := &corev1.Secret{}
	if err := b.c.Get(b.Context(), client.ObjectKey{Namespace: namespace, Name: "passwords"}, s); err != nil {
		b.Fatal(err)
	}
	return s
}

// TestTheHubsProxyIsAsked follows what a Proxy says while the hub's own proxy does not take its password
// yet, does, cannot be asked, and does not any more.
func TestTheHubsProxyIsAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	hub := namespace(t, b.c)
	b.hubProxy(hub)
	b.secret("aa.bb.cc")
	f := &front{answer: wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "wrong password")}
	b.r.Front = f
	id := b.settle().Status.AgentID
	b.hub.up[id] = true
	waits := b.settle()
	b.want(waits, v1alpha1.PhaseWaitingForProxy, ReasonPasswordNotTaken, "proxy.credentialsSecret=passwords")
	if waits.Status.ReadyProxies != 0 || !strings.Contains(b.lines(hub), " agent=default/"+id+" ") {
		t.Errorf("%d proxies, lines %q", waits.Status.ReadyProxies, b.lines(hub))
	}
	f.answer = wire.Fail(wire.LegProxy, wire.CodeUnreachable, "no route")
	b.want(b.settle(), v1alpha1.PhaseWaitingForProxy, ReasonProxyUnreachable, "NetworkPolicies")
	f.answer = nil
	p := b.settle()
	b.want(p, v1alpha1.PhaseConnected, ReasonConnected, "takes this Proxy's password")
	if p.Status.ReadyProxies != 1 {
		t.Errorf("%d proxies", p.Status.ReadyProxies)
	}

	// What works is not asked about with every look.
	f.asked = nil
	for range 3 {
		b.settle()
	}
	if len(f.asked) > 0 {
		t.Errorf("asked about %q", f.asked)
	}
	f.answer = wire.Fail(wire.LegProxy, wire.CodeUnreachable, "no route")
	b.now = b.now.Add(askFrontAgain)
	p = b.settle()
	b.want(p, v1alpha1.PhaseConnected, ReasonProxyUnreachable, "no route")
	if len(f.asked) != 1 || f.asked[0] != id || p.Status.ReadyProxies != 1 {
		t.Errorf("asked about %q, %d proxies", f.asked, p.Status.ReadyProxies)
	}
	b.now = b.now.Add(grace + time.Second)
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonProxyUnreachable, "no route")
	f.answer = nil
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")

	// An agent that is gone is gone, whoever can be asked.
	f.answer = wire.Fail(wire.LegProxy, wire.CodeUnreachable, "no route")
	b.now = b.now.Add(askFrontAgain)
	b.hub.up[id] = false
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonAgentNotConnected, "")
	b.hub.up[id], f.answer = true, nil
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")

	// A line that is written again counts when it has come, and so does another password.
	f.answer = wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "wrong password")
	if err := b.c.Delete(t.Context(), secretOf(b, hub)); err != nil {
		t.Fatal(err)
	}
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonPasswordNotTaken, "")
	f.answer = nil
	b.want(b.settle(), v1alpha1.PhaseConnected, ReasonConnected, "")
	f.answer = wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "wrong password")
	own := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}}
	if err := b.c.Delete(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	b.want(b.settle(), v1alpha1.PhaseDisconnected, ReasonPasswordNotTaken, "status 407")
}

// TestSwitchToTheHub has a Proxy use the hub's own proxy, one of its own, and that of another hub,
// in turn: nothing stays behind, and its password is the same.
func TestSwitchToTheHub(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	hub, elsewhere := namespace(t, b.c), namespace(t, b.c)
	b.secret("aa.bb.cc")
	b.settle()
	if got := b.made(); got != ownProxy {
		t.Fatal(got)
	}
	password := func() string {
		t.Helper()
		s := &corev1.Secret{}
		if err := b.c.Get(t.Context(), client.ObjectKey{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}, s); err != nil {
			t.Fatal(err)
		}
		return string(s.Data["password"])
	}
	first := password()
	check := func(step, namespace string) {
		t.Helper()
		p := b.settle()
		b.settle()
		want := ownProxy
		if namespace != "" {
			want = "Service(ExternalName postern-hub." + namespace + ".svc.cluster.localfalse:3128) Secret"
		}
		if got := b.made(); got != want {
			t.Errorf("%s: %s", step, got)
		}
		for _, n := range []string{hub, elsewhere} {
			if got := b.lines(n); (got != "") != (n == namespace) {
				t.Errorf("%s: lines %q", step, got)
			}
		}
		if _, noted := p.Annotations[AnnotationCredentials]; noted != (namespace != "") || password() != first {
			t.Errorf("%s: %v, or another password", step, p.Annotations)
		}
	}
	b.hubProxy(hub)
	check("on", hub)
	b.hubProxy(elsewhere)
	check("another Secret", elsewhere)
	b.restart()
	check("off", "")
	b.hubProxy(hub)
	check("on again", hub)
	change := func(h *v1alpha1.Hub) {
		t.Helper()
		p := b.settle()
		p.Spec.Hub = h
		if err := b.c.Update(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	change(&v1alpha1.Hub{ConnectURL: "tls://another.example.org"})
	check("another hub", "")
	change(nil)
	check("the same hub", hub)
	change(&v1alpha1.Hub{CABundle: authority(t)})
	check("another CA", "")
	change(&v1alpha1.Hub{Organization: "acme"})
	check("another organization", hub)
	if got := b.lines(hub); !strings.Contains(got, " agent=acme/") {
		t.Errorf("lines %q", got)
	}
	b.restart()
	if err := b.c.Delete(t.Context(), b.settle()); err != nil {
		t.Fatal(err)
	}
	b.settle()
	if got := b.lines(hub); got != "" {
		t.Errorf("after the end: %q", got)
	}
}

// TestEdit checks that lines of others stay as they are, and which line is whose.
func TestEdit(t *testing.T) {
	t.Parallel()
	named := func(namespace, name string) string {
		p := &v1alpha1.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		p.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Proxy"))
		return mark(p)
	}
	q := &upbound.Proxy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x"}}
	q.SetGroupVersionKind(upbound.GroupVersion().WithKind("Proxy"))
	if mark(q) == named("ns", "x") {
		t.Error("Proxies of two groups have one line")
	}
	const text = "# a\n\nalice:x\na:b agent=a as=ns/x\na:c agent=a as=ns/xx\na:d agent=a as=nns/x"
	for _, tt := range []struct{ text, mark, line, want string }{
		{text, named("ns", "x"), "NEW", strings.Replace(text, "a:b agent=a as=ns/x", "NEW", 1) + "\n"},
		{text, named("ns", "x"), "", strings.Replace(text, "a:b agent=a as=ns/x\n", "", 1) + "\n"},
		{text, mark(q), "NEW", text + "\nNEW\n"},
		{"", named("ns", "x"), "NEW", "NEW\n"},
		{"NEW as=ns/x\n", named("ns", "x"), "", ""},
		{"a as=ns/x \nb as=ns/x\n", named("ns", "x"), "NEW", "NEW\n"},
	} {
		if got := edit(tt.text, tt.mark, tt.line); got != tt.want {
			t.Errorf("%q, %q, %q: %q", tt.text, tt.mark, tt.line, got)
		}
	}
}

// TestARealHubsProxy has a client reach a private target through a real hub's own proxy, with the
// password that pods of the Proxy get; the password of another Proxy does not.
func TestARealHubsProxy(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "credentials")
	p := startProgram(t, file)
	ca, err := os.ReadFile(filepath.Join(p.dir, "hub", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	hubs := presence.New(nil)
	t.Cleanup(hubs.Close)
	token := filepath.Join(p.dir, "token.json")
	p.must("robot", "create", "machines")
	p.must("robot", "token", "create", "machines", "first", "-f", token)
	text, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "private") }))
	t.Cleanup(target.Close)
	address := strings.TrimPrefix(target.URL, "http://")
	p.start("agent", "--connect-url", "tls://"+p.address, "--ca-file", filepath.Join(p.dir, "hub", "ca.crt"),
		"--organization", "default", "--agent-id", "office", "--token-file", token, "--allow", "tcp:"+address)

	place := func(agent, hub string) *bench {
		b := newBench(t, func(p *v1alpha1.Proxy) { p.Spec.AgentID = agent })
		if hub == "" {
			hub = b.key.Namespace
		}
		b.hubProxy(hub)
		b.r.Front = presence.NewFront(p.front)
		b.r.Hubs, b.r.Own = hubs, Hub{Hub: presence.Hub{ConnectURL: "tls://" + p.address, CA: string(ca)}, Organization: "default"}
		b.secret(string(text))
		return b
	}
	one := place("office", "")
	hub := one.key.Namespace
	two := place("plant", hub)
	one.until(v1alpha1.PhaseWaitingForProxy, ReasonPasswordNotTaken, "status 407")
	two.until(v1alpha1.PhaseWaitingForProxy, ReasonAgentNotConnected)
	mount := func() { // as the kubelet does
		t.Helper()
		if err := os.WriteFile(file+".next", []byte(one.lines(hub)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
	}
	password := func(b *bench) string {
		t.Helper()
		s := &corev1.Secret{}
		if err := b.c.Get(t.Context(), client.ObjectKey{Namespace: b.key.Namespace, Name: "private-cluster-proxy"}, s); err != nil {
			t.Fatal(err)
		}
		return string(s.Data["password"])
	}
	first, second := password(one), password(two)
	try := func(user, password, host string) int {
		t.Helper()
		way := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword(user, password), Host: p.front}), DisableKeepAlives: true}
		res, err := (&http.Client{Transport: way, Timeout: 20 * time.Second}).Get("http://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	eventually := func(status int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if got := try("office", first, address); got == status {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("status %d, want %d", got, status)
			}
		}
	}
	eventually(http.StatusProxyAuthRequired)
	mount()
	one.until(v1alpha1.PhaseConnected, ReasonConnected)
	if got := try("office", first, address); got != http.StatusOK {
		t.Errorf("status %d of a Proxy that is connected", got)
	}
	hostName, port, _ := strings.Cut(address, ":")
	for _, tt := range []struct {
		user, password, host string
		want                 int
	}{
		{"office", second, address, http.StatusProxyAuthRequired},
		{"plant", first, address, http.StatusProxyAuthRequired},
		{"default/office", second, address, http.StatusProxyAuthRequired},
		{"plant", second, hostName + ".office.postern.internal:" + port, http.StatusForbidden},
		{"office", first, hostName + ".office.postern.internal:" + port, http.StatusOK},
	} {
		if got := try(tt.user, tt.password, tt.host); got != tt.want {
			t.Errorf("%s at %s: %d, want %d", tt.user, tt.host, got, tt.want)
		}
	}
	if err := one.c.Delete(t.Context(), one.settle()); err != nil {
		t.Fatal(err)
	}
	one.settle()
	mount()
	eventually(http.StatusProxyAuthRequired)
}
