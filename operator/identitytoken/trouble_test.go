package identitytoken

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"postern.dev/postern/internal/controlplane"
)

// gauges returns what the metrics say, by name.
func (w *world) gauges() map[string]float64 {
	w.t.Helper()
	families, err := w.seen.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetGauge() != nil {
				out[strings.TrimPrefix(f.GetName(), "postern_operator_identity_tokens")] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

func (w *world) wantGauges(wanted, failing, unusable float64) {
	w.t.Helper()
	if diff := cmp.Diff(map[string]float64{"": wanted, "_failing": failing, "_unusable": unusable}, w.gauges()); diff != "" {
		w.t.Error(diff)
	}
}

// takeEvents returns the events since the last call.
func (w *world) takeEvents() []string {
	all := w.events
	w.events = nil
	slices.Sort(all)
	return all
}

// mounted has a pod mount the token that it wants, as the webhook does.
func (w *world) mounted(namespace, name string, pairs ...string) {
	w.t.Helper()
	pod := podWith(pairs...)
	want, _, err := WantOf(pod)
	if err != nil {
		w.t.Fatal(err)
	}
	w.add(apply(w.t, pod, NewPlan(pod, want)), namespace, name)
}

// TestKeeperRenewsWhatIsSpoiled: a key that the issuer withdraws takes its tokens with it, and so does
// another name of the control plane. Nobody waits for half of the hour.
func TestKeeperRenewsWhatIsSpoiled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controlplane.Ref{Name: "prod-1"})
		w.mounted("a", "a", "pkg.crossplane.io/provider=p")
		w.mounted("a", "b", "pkg.crossplane.io/function=f")
		w.sweep()
		w.issuer.take()
		for range 4 {
			time.Sleep(look)
			w.sweep()
		}
		if asked := w.issuer.take(); asked != nil {
			t.Errorf("asked for %q, and nothing had happened", asked)
		}
		w.issuer.withdraw("second")
		before := w.secrets()
		for range 4 {
			time.Sleep(look)
			w.sweep()
		}
		if asked := w.issuer.take(); len(asked) != 2 {
			t.Errorf("after a key was withdrawn asked for %q", asked)
		}
		for name, token := range w.secrets() {
			if token == before[name] {
				t.Errorf("%s still holds the token of the withdrawn key", name)
			}
		}
		// An issuer whose keys cannot be read spoils nothing, and is told of once.
		w.issuer.fail(errors.New("the hub is down"))
		for range 10 {
			time.Sleep(look)
			w.sweep()
		}
		w.issuer.fail(nil)
		if asked := w.issuer.take(); asked != nil || strings.Count(w.log.String(), "is noticed late") != 1 {
			t.Errorf("asked for %q\n%s", asked, w.log.String())
		}
		w.restart(controlplane.Ref{Name: "prod-2"})
		w.sweep()
		if asked := w.issuer.take(); !slices.Equal(asked, []string{"acme prod-2 f default.example.org", "acme prod-2 p default.example.org"}) {
			t.Errorf("of another control plane asked for %q", asked)
		}
	})
}

// TestKeeperRestart: an operator that starts goes on where another ended.
func TestKeeperRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plane := controlplane.Ref{Name: "prod-1"}
		w := newWorld(t, plane)
		w.mounted("a", "a", "pkg.crossplane.io/provider=p", "identity.postern.dev/audience=one, two")
		w.sweep()
		if asked := w.issuer.take(); !slices.Equal(asked, []string{"acme prod-1 p one,two"}) {
			t.Errorf("asked for %q", asked)
		}
		time.Sleep(10 * time.Minute)
		w.restart(plane)
		if w.sweep(); w.issuer.take() != nil {
			t.Error("asked again at its start")
		}
		time.Sleep(20 * time.Minute)
		w.restart(plane) // and one that was away when it was due
		if w.sweep(); len(w.issuer.take()) != 1 {
			t.Error("not renewed when it was due")
		}
		if events := w.takeEvents(); events != nil {
			t.Errorf("events %q", events)
		}
	})
}

// TestIssuerDown: tokens live to their end, it is tried again all the time, the metrics say how bad it
// is, and the pods what is wrong.
func TestIssuerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controlplane.Ref{Name: "prod-1"})
		w.mounted("a", "a", "pkg.crossplane.io/provider=p")
		w.sweep()
		w.wantGauges(1, 0, 0)
		w.issuer.take()
		first := w.secrets()
		w.issuer.fail(errors.New("the hub is down"))
		time.Sleep(31 * time.Minute)
		w.sweep()
		w.wantGauges(1, 1, 0)
		w.mounted("a", "new", "pkg.crossplane.io/provider=q")
		w.sweep()
		w.wantGauges(2, 2, 1)
		want := []string{
			"Warning a IdentityTokenFailed: No new identity token of p can be had: the hub is down",
			"Warning new IdentityTokenFailed: No new identity token of q can be had: the hub is down",
		}
		if diff := cmp.Diff(want, w.takeEvents()); diff != "" {
			t.Error(diff)
		}
		for range 30 * 4 {
			time.Sleep(look)
			w.sweep()
		}
		w.wantGauges(2, 2, 2)
		if len(w.issuer.take()) < 20 || w.secrets()["a/"+Want{Name: "p"}.SecretName()] != first["a/"+Want{Name: "p"}.SecretName()] {
			t.Error("it is not tried again, or the old token is gone")
		}
		if events := w.takeEvents(); events != nil {
			t.Errorf("told again: %q", events)
		}
		w.issuer.fail(nil)
		time.Sleep(longWait)
		w.sweep()
		w.wantGauges(2, 0, 0)
		want = []string{"Normal a IdentityTokenIssued: The identity token of p is there", "Normal new IdentityTokenIssued: The identity token of q is there"}
		if diff := cmp.Diff(want, w.takeEvents()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestPodsAreTold: whoever looks at a pod without a token sees why it has none.
func TestPodsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, controlplane.Ref{Name: "prod-1"})
		w.pod("a", "early", "pkg.crossplane.io/provider=p")
		w.pod("a", "wrong", "pkg.crossplane.io/provider=p", "identity.postern.dev/group-scoped=yes")
		w.mounted("a", "scoped", "pkg.crossplane.io/provider=p", "identity.postern.dev/group-scoped=true")
		w.pod("a", "other")
		w.pod("elsewhere", "early", "pkg.crossplane.io/provider=p")
		w.sweep()
		want := []string{
			"Warning early IdentityTokenNotMounted: The pod was made without its identity token, when the operator gave none yet or its webhook was not asked; " +
				"delete the pod, and the next one has it",
			"Warning scoped IdentityTokenFailed: No new identity token of p can be had: " +
				"the operator does not know its space and group: give it --identity-scope SPACE/GROUP",
			`Warning wrong IdentityTokenInvalid: annotation identity.postern.dev/group-scoped is "yes": want true or false`,
		}
		if diff := cmp.Diff(want, w.takeEvents()); diff != "" {
			t.Error(diff)
		}
		w.sweep()
		if events := w.takeEvents(); events != nil {
			t.Errorf("again at once: %q", events)
		}
		time.Sleep(again)
		if w.sweep(); len(w.takeEvents()) != 3 {
			t.Error("it is not told again before the event is forgotten")
		}
		// A hundred pods with one token are no hundred events, and what is gone is forgotten.
		w.issuer.fail(errors.New("the hub is down"))
		for n := range 100 {
			w.mounted("b", fmt.Sprintf("pod-%d", n), "pkg.crossplane.io/provider=many")
		}
		if w.sweep(); len(w.takeEvents()) != maxTold {
			t.Error("too many events, or too few")
		}
		if err := errors.Join(w.kube.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace("a")),
			w.kube.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace("b"))); err != nil {
			t.Fatal(err)
		}
		if w.sweep(); len(w.keeper.told) != 0 {
			t.Errorf("remembered: %v", w.keeper.told)
		}
	})
}

// TestRemove: an operator that is uninstalled leaves no token behind, whether it may list Secrets or
// not, and nothing of others is touched.
func TestRemove(t *testing.T) {
	for _, mayList := range []bool{true, false} {
		w := newWorld(t, controlplane.Ref{Name: "prod-1"})
		w.mounted("a", "a", "pkg.crossplane.io/provider=p")
		w.mounted("a", "b", "pkg.crossplane.io/provider=p")
		w.mounted("b", "c", "pkg.crossplane.io/function=f")
		w.pod("b", "d")
		theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: Want{Name: "q"}.SecretName()}}
		if err := w.kube.Create(t.Context(), theirs); err != nil {
			t.Fatal(err)
		}
		w.mounted("a", "q", "pkg.crossplane.io/provider=q")
		w.sweep()
		if len(w.secrets()) != 2 {
			t.Fatalf("Secrets %v", w.secrets())
		}
		c := interceptor.NewClient(w.kube.(client.WithWatch), interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if _, ok := list.(*corev1.SecretList); ok && !mayList {
					return apierrors.NewForbidden(corev1.Resource("secrets"), "", errors.New("RBAC"))
				}
				return c.List(ctx, list, opts...)
			},
		})
		if err := Remove(t.Context(), c); err != nil {
			t.Error(err)
		}
		if left := w.secrets(); len(left) != 0 {
			t.Errorf("may list %t: left %v", mayList, left)
		}
		if err := w.kube.Get(t.Context(), client.ObjectKeyFromObject(theirs), theirs); err != nil {
			t.Error(err)
		}
	}
}
