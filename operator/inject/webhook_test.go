package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"postern.dev/postern/operator/selection"
)

// world is what a step for proxies asks, in memory.
type world struct {
	proxies   []selection.Proxy
	listErr   error
	secretErr error
	copies    []string            // namespaces into which a password was copied
	keys      map[string][]string // by kind and name
	keysErr   error
}

func (w *world) step() *Proxies {
	return &Proxies{
		List:  func(context.Context) ([]selection.Proxy, error) { return w.proxies, w.listErr },
		Rules: selection.Rules{Excluded: []string{"kube-system", "postern-system"}},
		Route: func(p selection.Proxy) Route {
			route := testRoute()
			route.Proxy, route.Agent, route.Secret = p.Key, p.Agent, selection.SecretName(p.Key)
			return *route
		},
		Password: func(_ context.Context, _ selection.Proxy, namespace string) error {
			w.copies = append(w.copies, namespace)
			return w.secretErr
		},
		Keys: func(_ context.Context, kind, _, name string) ([]string, error) {
			keys, ok := w.keys[kind+" "+name]
			if w.keysErr == nil && !ok {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: kind}, name)
			}
			return keys, w.keysErr
		},
	}
}

func office() selection.Proxy {
	return selection.Proxy{
		Key:     selection.Key{Group: "postern.dev", Namespace: "default", Name: "office"},
		Created: time.Unix(100, 0), Agent: "agent-1", Selector: labels.SelectorFromSet(labels.Set{"app": "web"}),
	}
}

func request(t *testing.T, pod *corev1.Pod, change func(*admissionv1.AdmissionRequest)) []byte {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	r := &admissionv1.AdmissionRequest{
		UID: "u1", Operation: admissionv1.Create, Namespace: "apps",
		Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: raw},
	}
	if change != nil {
		change(r)
	}
	body, err := json.Marshal(admissionv1.AdmissionReview{Request: r})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func review(t *testing.T, w *Webhook, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	answer, err := w.Review(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatal(err)
	}
	if out.Response == nil || out.Response.UID != "u1" || !out.Response.Allowed || out.APIVersion != "admission.k8s.io/v1" {
		t.Fatalf("answer %s", answer)
	}
	return out.Response
}

// patched is the pod that a response makes of another.
func patched(t *testing.T, pod *corev1.Pod, r *admissionv1.AdmissionResponse) *corev1.Pod {
	t.Helper()
	var operations []Operation
	if len(r.Patch) > 0 {
		if err := json.Unmarshal(r.Patch, &operations); err != nil {
			t.Fatal(err)
		}
	}
	return applied(t, pod, &Plan{Operations: operations})
}

func TestReview(t *testing.T) {
	younger := office()
	younger.Name, younger.Created = "younger", time.Unix(200, 0)
	unborn := office()
	unborn.Agent = ""
	dry := true
	for _, test := range []struct {
		name     string
		world    world
		pod      *corev1.Pod
		change   func(*admissionv1.AdmissionRequest)
		injected bool
		copies   int
		warn     string
	}{
		{name: "selected", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), injected: true, copies: 1},
		{name: "dry run", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), injected: true, copies: 0, change: func(r *admissionv1.AdmissionRequest) { r.DryRun = &dry }},
		{
			name: "without name and namespace", world: world{proxies: []selection.Proxy{office()}}, injected: true, copies: 1,
			pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Labels: map[string]string{"app": "web"}}, Spec: onePod().Spec},
		},
		{name: "two select it", world: world{proxies: []selection.Proxy{younger, office()}}, pod: onePod(), injected: true, copies: 1, warn: "default/younger (postern.dev) selects the pod too; default/office"},
		{name: "no Proxies", pod: onePod()},
		{name: "the system's namespace", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.Namespace = "kube-system" }},
		{name: "the operator's namespace", world: world{proxies: []selection.Proxy{office()}, listErr: errors.New("no")}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.Namespace = "postern-system" }},
		{name: "an update", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }},
		{name: "a subresource", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.SubResource = "ephemeralcontainers" }},
		{name: "no pod", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" }},
		{name: "no object", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), change: func(r *admissionv1.AdmissionRequest) { r.Object.Raw = nil }},
		{name: "an object that is no pod", world: world{proxies: []selection.Proxy{office()}}, pod: onePod(), warn: "read the pod", change: func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"spec":[]}`) }},
		{name: "Proxies are not known", world: world{listErr: errors.New("the cache is empty")}, pod: onePod(), warn: "was made without proxy: list the Proxies: the cache is empty"},
		{name: "no agent yet", world: world{proxies: []selection.Proxy{unborn}}, pod: onePod(), warn: "has no agent yet"},
		{name: "no password", world: world{proxies: []selection.Proxy{office()}, secretErr: errors.New("forbidden")}, pod: onePod(), copies: 1, warn: "copy the password of the Proxy default/office: forbidden"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := NewWebhook(nil, slog.New(slog.DiscardHandler), NamedStep{"proxy", test.world.step()})
			r := review(t, w, request(t, test.pod, test.change))
			if test.injected {
				if got := patched(t, test.pod, r); len(got.Spec.Containers[0].Env) != 7 || got.Annotations[selection.AnnotationInjected] != "default/office" {
					t.Errorf("the pod became %v %v", names(got.Spec.Containers[0]), got.Annotations)
				}
			} else if r.Patch != nil || r.PatchType != nil {
				t.Errorf("patch %s", r.Patch)
			}
			if warned := strings.Join(r.Warnings, "\n"); !strings.Contains(warned, test.warn) || test.warn == "" && warned != "" {
				t.Errorf("warnings %q, want one with %q", warned, test.warn)
			}
			if len(test.world.copies) != test.copies {
				t.Errorf("copies of the password in %v, want %d", test.world.copies, test.copies)
			}
		})
	}
}

func TestVariablesFromConfigMapsAndSecrets(t *testing.T) {
	configMap := func(name, prefix string) corev1.EnvFromSource {
		return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}
	}
	secret := corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}
	keys := map[string][]string{
		"ConfigMap own":    {"HTTPS_PROXY", "OTHER"},
		"ConfigMap tail":   {"PROXY", "KEY"},
		"ConfigMap others": {"DEBUG"},
		"Secret s":         {"https_proxy"},
	}
	for _, test := range []struct {
		name string
		from corev1.EnvFromSource
		err  error
		set  int // variables that are injected
	}{
		{"a ConfigMap sets one", configMap("own", ""), nil, 5},
		{"a Secret sets one", secret, nil, 5},
		{"with a prefix it sets one", configMap("tail", "HTTP_"), nil, 5},
		{"with a prefix it sets none", configMap("own", "MY_"), nil, 7},
		{"with such a prefix it is not even asked", configMap("own", "MY_"), errors.New("forbidden"), 7},
		{"others", configMap("others", ""), nil, 7},
		{"one that is not there", configMap("absent", ""), nil, 7},
		{"one that may not be read", configMap("own", ""), errors.New("forbidden"), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := onePod()
			pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{test.from}
			w := world{proxies: []selection.Proxy{office()}, keys: keys, keysErr: test.err}
			r := review(t, NewWebhook(nil, slog.New(slog.DiscardHandler), NamedStep{"proxy", w.step()}), request(t, pod, nil))
			if got := patched(t, pod, r).Spec.Containers[0]; len(got.Env) != test.set {
				t.Errorf("injected %v, want %d; warnings %q", names(got), test.set, r.Warnings)
			}
		})
	}
}

// stepFunc is a step of its own.
type stepFunc func(context.Context, Request) (*Plan, error)

func (f stepFunc) Plan(ctx context.Context, r Request) (*Plan, error) { return f(ctx, r) }

func TestStepsSeeWhatEarlierOnesDid(t *testing.T) {
	annotate := func(name string) stepFunc {
		return func(_ context.Context, r Request) (*Plan, error) {
			if r.Pod.Annotations == nil {
				return &Plan{Operations: []Operation{{"add", "/metadata/annotations", map[string]string{name: "x"}}}}, nil
			}
			return &Plan{Operations: []Operation{{"add", "/metadata/annotations/" + name, "x"}}}, nil
		}
	}
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	w := NewWebhook(metrics, slog.New(slog.DiscardHandler),
		NamedStep{"one", annotate("one")},
		NamedStep{"broken", stepFunc(func(context.Context, Request) (*Plan, error) { return nil, errors.New("broken") })},
		NamedStep{"impossible", stepFunc(func(context.Context, Request) (*Plan, error) {
			return &Plan{Operations: []Operation{{Op: "remove", Path: "/spec/nothing"}}}, nil
		})},
		NamedStep{"idle", stepFunc(func(context.Context, Request) (*Plan, error) { return nil, nil })},
		NamedStep{"two", annotate("two")},
	)
	pod := onePod()
	r := review(t, w, request(t, pod, nil))
	if diff := cmp.Diff(map[string]string{"one": "x", "two": "x"}, patched(t, pod, r).Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if len(r.Warnings) != 2 {
		t.Errorf("warnings %q, want two", r.Warnings)
	}
	for _, want := range []struct {
		step, result string
	}{{"one", resultChanged}, {"broken", resultFailed}, {"impossible", resultFailed}, {"idle", resultNone}, {"two", resultChanged}} {
		if n := testutil.ToFloat64(metrics.reviews.WithLabelValues(want.step, want.result)); n != 1 {
			t.Errorf("step %s was %s %v times, want once", want.step, want.result, n)
		}
	}
}

func TestWarningsAreBounded(t *testing.T) {
	w := NewWebhook(nil, slog.New(slog.DiscardHandler), NamedStep{"loud", stepFunc(func(context.Context, Request) (*Plan, error) {
		return &Plan{Warnings: slices.Repeat([]string{strings.Repeat("ä", 500)}, 100)}, nil
	})})
	r := review(t, w, request(t, onePod(), nil))
	if len(r.Warnings) != maxWarnings || len(r.Warnings[0]) > maxWarning {
		t.Errorf("%d warnings of %d bytes", len(r.Warnings), len(r.Warnings[0]))
	}
}

func TestWhatIsNoReview(t *testing.T) {
	w := NewWebhook(nil, slog.New(slog.DiscardHandler))
	for _, body := range []string{"", "{}", "[]", `{"request":{}}`, `{"request":null}`} {
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, strings.NewReader(body)))
		if rec.Code != http.StatusBadRequest {
			t.Errorf("%q: status %d", body, rec.Code)
		}
	}
	rec := httptest.NewRecorder()
	huge := `{"request":{"uid":"` + strings.Repeat("x", maxReview) + `"}}`
	w.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, strings.NewReader(huge)))
	if rec.Code != http.StatusBadRequest {
		t.Errorf("a review of more than %d bytes: status %d", maxReview, rec.Code)
	}
}

// TestAStepThatHangs answers before the API server's own five seconds are over, so that whoever makes
// the pod reads why it has no proxy. A crowd of reviews waits no longer either.
func TestAStepThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw, err := json.Marshal(onePod())
		if err != nil {
			t.Fatal(err)
		}
		review, err := json.Marshal(admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{
			UID: "1", Operation: admissionv1.Create, Namespace: "apps", Object: runtime.RawExtension{Raw: raw},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		w := NewWebhook(nil, slog.New(slog.DiscardHandler), NamedStep{"proxy", stepFunc(func(ctx context.Context, _ Request) (*Plan, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})})
		began := time.Now()
		answers := make(chan *httptest.ResponseRecorder)
		for range maxReviews + 1 {
			go func() {
				rec := httptest.NewRecorder()
				w.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, bytes.NewReader(review)))
				answers <- rec
			}()
		}
		late := 0
		for range maxReviews + 1 {
			rec := <-answers
			var answer admissionv1.AdmissionReview
			switch err := json.Unmarshal(rec.Body.Bytes(), &answer); {
			case rec.Code == http.StatusServiceUnavailable:
				late++
			case err != nil || !answer.Response.Allowed || len(answer.Response.Patch) > 0 || len(answer.Response.Warnings) != 1 ||
				!strings.Contains(answer.Response.Warnings[0], "without proxy: context deadline exceeded"):
				t.Errorf("status %d, %v: %s", rec.Code, err, rec.Body)
			}
		}
		if took := time.Since(began); took != patience || late > 1 {
			t.Errorf("answered after %s, %d turned away", took, late)
		}
	})
}

// FuzzReview gives the webhook bytes that nobody vouches for: it answers them, or says that they
// are no review, and a patch it makes can be applied to the object it is for.
func FuzzReview(f *testing.F) {
	raw, err := json.Marshal(onePod(env("A", "b", "NO_PROXY", "x")...))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"metadata":{"labels":{"app":"web"},"annotations":null},"spec":{"containers":[{"env":null},{}],"initContainers":null}}`))
	f.Add([]byte(`{"metadata":{"labels":{"app":"web"}},"Metadata":{"annotations":{}},"spec":{"containers":[{"env":[]},null]}}`))
	w := world{proxies: []selection.Proxy{office()}}
	webhook := NewWebhook(nil, slog.New(slog.DiscardHandler), NamedStep{"proxy", w.step()})
	f.Fuzz(func(t *testing.T, object []byte) {
		w.copies = nil
		body := fmt.Appendf(nil, `{"request":{"uid":"u1","operation":"CREATE","namespace":"apps","resource":{"version":"v1","resource":"pods"},"object":%s}}`, object)
		answer, err := webhook.Review(t.Context(), body)
		if err != nil {
			return
		}
		var out admissionv1.AdmissionReview
		if err := json.Unmarshal(answer, &out); err != nil || !out.Response.Allowed {
			t.Fatalf("answer %s (%v)", answer, err)
		}
		if out.Response.Patch == nil {
			return
		}
		var operations []Operation
		if err := json.Unmarshal(out.Response.Patch, &operations); err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(object, operations); err != nil {
			t.Fatalf("patch %s: %v", out.Response.Patch, err)
		}
	})
}
