package identitytoken

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/controlplane"
)

// issuer is one for tests.
type issuer struct {
	mu    sync.Mutex
	asked []string
	made  int
	key   string // that signs
	err   error
}

func (i *issuer) CreateIdentityToken(_ context.Context, org string, q api.CreateIdentityToken) (api.IdentityToken, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, org+" "+q.ControlPlane+" "+q.Provider+" "+strings.Join(q.Audiences, ","))
	if i.err != nil {
		return api.IdentityToken{}, i.err
	}
	i.made++
	now := time.Now().UTC().Truncate(time.Second)
	part := func(text string, args ...any) string {
		return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, text, args...))
	}
	return api.IdentityToken{
		Token: part(`{"alg":"RS256","kid":%q}`, i.key) + "." + part(`{"iss":"https://id.example.org/x"}`) + fmt.Sprintf(".secret-%d", i.made), Subject: "mcp:" + org + "/" + q.ControlPlane + ":provider:" + q.Provider, Audiences: q.Audiences,
		ID: "id", IssuedAt: now, Expires: now.Add(time.Hour),
	}, nil
}

func (i *issuer) fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
}

// withdraw has another key sign, and show alone.
func (i *issuer) withdraw(next string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = next
}

// published is for a Keeper's Config.
func (i *issuer) published(_ context.Context, name string) (map[string]bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	if name != "https://id.example.org/x" {
		return nil, fmt.Errorf("asked for the keys of %s", name)
	}
	return map[string]bool{i.key: true}, nil
}

func (i *issuer) take() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := i.asked
	i.asked = nil
	slices.Sort(all)
	return all
}

// world is a cluster with a Keeper.
type world struct {
	t      *testing.T
	kube   client.Client
	issuer *issuer
	keeper *Keeper
	seen   *prometheus.Registry
	events []string
	log    bytes.Buffer
}

func newWorld(t *testing.T, scope controlplane.Ref) *world {
	t.Helper()
	w := &world{t: t, kube: fake.NewClientBuilder().Build(), issuer: &issuer{key: "first"}}
	w.restart(scope)
	return w
}

// restart is an operator that starts.
func (w *world) restart(scope controlplane.Ref) {
	w.t.Helper()
	w.seen = prometheus.NewRegistry()
	metrics, err := NewMetrics(w.seen)
	if err != nil {
		w.t.Fatal(err)
	}
	w.keeper = NewKeeper(Config{
		Reader: w.kube, Writer: w.kube, Organization: "acme", ControlPlane: scope,
		Issuer:    func(context.Context) (Issuer, error) { return w.issuer, nil },
		Published: w.issuer.published,
		Event: func(pod *corev1.Pod, kind, reason, message string) {
			w.events = append(w.events, kind+" "+pod.Name+" "+reason+": "+message)
		},
		Audiences: []string{"default.example.org"}, Covers: func(n string) bool { return n != "elsewhere" },
		Metrics: metrics, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
}

func (w *world) pod(namespace, name string, pairs ...string) *corev1.Pod {
	w.t.Helper()
	return w.add(podWith(pairs...), namespace, name)
}

func (w *world) add(pod *corev1.Pod, namespace, name string) *corev1.Pod {
	w.t.Helper()
	pod.Namespace, pod.Name, pod.UID = namespace, name, types.UID(namespace+"-"+name)
	if err := w.kube.Create(w.t.Context(), pod); err != nil {
		w.t.Fatal(err)
	}
	return pod
}

func (w *world) sweep() {
	w.t.Helper()
	if err := w.keeper.Sweep(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// secrets returns what the Secrets of the operator hold, by name.
func (w *world) secrets() map[string]string {
	w.t.Helper()
	var all corev1.SecretList
	if err := w.kube.List(w.t.Context(), &all, client.MatchingLabels{labelComponent: component}); err != nil {
		w.t.Fatal(err)
	}
	out := make(map[string]string)
	for _, s := range all.Items {
		out[s.Namespace+"/"+s.Name] = string(s.Data[KeyToken])
	}
	return out
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controlplane.Ref{Space: "eu", Group: "main", Name: "prod-1"})
		aws := w.pod("crossplane-system", "a", "pkg.crossplane.io/provider=provider-aws", "identity.postern.dev/audience=sts.amazonaws.com")
		w.pod("crossplane-system", "b", "pkg.crossplane.io/provider=provider-aws", "identity.postern.dev/audience=sts.amazonaws.com")
		w.pod("other", "c", "pkg.crossplane.io/provider=provider-aws")
		w.pod("other", "d", "pkg.crossplane.io/function=fn", "identity.postern.dev/group-scoped=true")
		w.pod("other", "e", "pkg.crossplane.io/function=A:B")
		w.pod("elsewhere", "f", "pkg.crossplane.io/provider=provider-aws")
		w.pod("other", "g")
		w.sweep()
		want := []string{
			"acme eu/main/prod-1 fn default.example.org", "acme prod-1 provider-aws default.example.org", "acme prod-1 provider-aws sts.amazonaws.com",
		}
		if got := w.issuer.take(); !slices.Equal(got, want) {
			t.Errorf("asked for %q", got)
		}
		first := w.secrets()
		if len(first) != 3 {
			t.Errorf("Secrets %v", first)
		}
		// Nothing is asked for until shortly before half of the hour, and all is renewed then.
		time.Sleep(23 * time.Minute)
		if w.sweep(); len(w.issuer.take()) != 0 {
			t.Error("renewed too early")
		}
		time.Sleep(7 * time.Minute)
		if w.sweep(); len(w.issuer.take()) != 3 {
			t.Error("not renewed at half of the hour")
		}
		for name, token := range w.secrets() {
			if token == first[name] || token == "" {
				t.Errorf("%s still holds %q", name, token)
			}
		}
		// A Secret goes some time after the last pod that mounts it, and no sooner.
		if err := w.kube.Delete(t.Context(), aws); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		time.Sleep(unusedFor + time.Second)
		if w.sweep(); len(w.secrets()) != 3 {
			t.Error("deleted while a pod mounts it")
		}
		aws.Name = "b"
		if err := w.kube.Delete(t.Context(), aws); err != nil {
			t.Fatal(err)
		}
		w.sweep()
		time.Sleep(unusedFor - time.Second)
		if w.sweep(); len(w.secrets()) != 3 {
			t.Error("deleted at once")
		}
		time.Sleep(2 * time.Second)
		if w.sweep(); len(w.secrets()) != 2 {
			t.Errorf("left over: %v", w.secrets())
		}
		if log := w.log.String(); strings.Contains(log, "secret-") || !strings.Contains(log, "mcp:acme/prod-1:provider:provider-aws") {
			t.Errorf("the log has the wrong things:\n%s", log)
		}
	})
}

// TestKeeperBacksOff asks an issuer that fails ever more seldom, and tells it once.
func TestKeeperBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controlplane.Ref{Name: "prod"})
		w.pod("a", "a", "pkg.crossplane.io/provider=p")
		w.issuer.fail(errors.New("the hub is down"))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = w.keeper.Start(ctx) })
		time.Sleep(time.Hour)
		if n := len(w.issuer.take()); n < 10 || n > 25 {
			t.Errorf("asked %d times in an hour", n)
		}
		w.issuer.fail(nil)
		time.Sleep(longWait + look)
		if len(w.secrets()) != 1 {
			t.Error("not tried again")
		}
		w.keeper.Changed()
		w.keeper.Changed()
		time.Sleep(50 * time.Minute)
		if n := len(w.issuer.take()); n != 2 && n != 3 {
			t.Errorf("then asked %d times", n)
		}
		cancel()
		wg.Wait()
		if n := strings.Count(w.log.String(), "the hub is down"); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// TestKeeperLeavesOthersAlone: a Secret of that name that somebody else made stays.
func TestKeeperLeavesOthersAlone(t *testing.T) {
	w := newWorld(t, controlplane.Ref{Name: "prod"})
	w.pod("a", "a", "pkg.crossplane.io/provider=p")
	w.pod("a", "b", "pkg.crossplane.io/provider=p", "identity.postern.dev/group-scoped=true")
	name := types.NamespacedName{Namespace: "a", Name: Want{Name: "p"}.SecretName()}
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Data: map[string][]byte{KeyToken: []byte("theirs")}}
	if err := w.kube.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	var got corev1.Secret
	if err := w.kube.Get(t.Context(), name, &got); err != nil || string(got.Data[KeyToken]) != "theirs" {
		t.Errorf("%s, %v", got.Data[KeyToken], err)
	}
	if log := w.log.String(); !strings.Contains(log, "not the operator's") || !strings.Contains(log, "--identity-scope") {
		t.Errorf("nothing is said:\n%s", log)
	}
	if err := w.keeper.Ensure(t.Context(), "a", Want{Name: "p", Scoped: true}); err == nil || !strings.Contains(err.Error(), "--identity-scope") {
		t.Errorf("ensure: %v", err)
	}
	// A token that somebody else spoiled is made anew.
	if err := w.keeper.Ensure(t.Context(), "a", Want{Name: "q"}); err != nil {
		t.Fatal(err)
	}
	w.pod("a", "c", "pkg.crossplane.io/provider=q")
	name.Name = Want{Name: "q"}.SecretName()
	if err := w.kube.Get(t.Context(), name, &got); err != nil {
		t.Fatal(err)
	}
	before := string(got.Data[KeyToken])
	got.Data = nil
	if err := w.kube.Update(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	w.sweep()
	if err := w.kube.Get(t.Context(), name, &got); err != nil || len(got.Data[KeyToken]) == 0 || string(got.Data[KeyToken]) == before {
		t.Errorf("%q, %v", got.Data[KeyToken], err)
	}
}
