package hub_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/wire"
)

// podAPI is the API server of the cluster that a hub runs in.
type podAPI struct {
	t      *testing.T
	server *httptest.Server
	dir    string
	pod    *podcluster.Cluster

	mu      sync.Mutex
	own     string          // token of the hub's service account
	good    map[string]bool // tokens
	bundles map[string]string
	refuse  bool
	reviews int
	now     time.Time
}

func newPodAPI(t *testing.T) *podAPI {
	t.Helper()
	a := &podAPI{t: t, dir: t.TempDir(), own: "first", good: map[string]bool{}, bundles: map[string]string{}, now: time.Now()}
	a.server = httptest.NewTLSServer(a)
	t.Cleanup(a.server.Close)
	a.write("token", "first\n")
	a.write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.server.Certificate().Raw})))
	host, port, err := net.SplitHostPort(a.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
	a.pod = podcluster.New(func(key string) string { return env[key] }, a.dir)
	t.Cleanup(a.pod.Close)
	return a
}

func (a *podAPI) write(name, text string) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// set changes what the API server knows.
func (a *podAPI) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *podAPI) clock() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

// ServeHTTP answers as kube-apiserver 1.36 does, to the letter.
func (a *podAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	status := func(code int, reason, message string) {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":%q,"reason":%q,"code":%d}`, message, reason, code)
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer "+a.own:
		status(http.StatusUnauthorized, "Unauthorized", "Unauthorized")
	case a.refuse:
		status(http.StatusForbidden, "Forbidden", `User "system:serviceaccount:postern:hub" cannot do that`)
	case r.Method == http.MethodGet:
		bundle, there := a.bundles[r.URL.Path]
		if !there {
			status(http.StatusNotFound, "NotFound", "configmaps not found")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "ConfigMap", "apiVersion": "v1", "data": map[string]string{"ca.crt": bundle}, "binaryData": map[string][]byte{"der": []byte("x")}})
	case r.Method == http.MethodPost && r.URL.Path == gateway.ReviewPath:
		a.reviews++
		var asked struct {
			APIVersion, Kind string
			Spec             struct{ Token string }
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.APIVersion != "authentication.k8s.io/v1" || asked.Kind != "TokenReview" {
			a.t.Errorf("%+v, %v", asked, err)
		}
		const head = `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","metadata":{"creationTimestamp":null,"managedFields":[{"manager":"postern","operation":"Update"}]},"spec":{"token":%q},"status":`
		w.WriteHeader(http.StatusCreated)
		if !a.good[asked.Spec.Token] {
			fmt.Fprintf(w, head+`{"user":{},"error":"[invalid bearer token, service account token has been invalidated]"}}`, asked.Spec.Token)
			return
		}
		fmt.Fprintf(w, head+`{"authenticated":true,"user":{"username":"system:serviceaccount:apps:test-sa","uid":"5c2bd6c2-0f5b-44a8-9c86-1f2d3c4b5a69",`+
			`"groups":["system:serviceaccounts","system:serviceaccounts:apps","system:authenticated"],`+
			`"extra":{"authentication.kubernetes.io/credential-id":["JTI=8b7f"]}},"audiences":["https://kubernetes.default.svc.cluster.local"]}}`, asked.Spec.Token)
	default:
		a.t.Errorf("%s %s", r.Method, r.URL)
	}
}

// TestOwnClusterTokens: a hub in a pod asks its own cluster about tokens, remembers the
// answer for seconds, good or bad, and hears of what has ended.
func TestOwnClusterTokens(t *testing.T) {
	t.Parallel()
	a := newPodAPI(t)
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d,"iss":"https://kubernetes.default.svc.cluster.local"}`, expires.Unix()))
	token := "e30." + payload + ".c2ln"
	a.set(func() { a.good[token] = true })
	tokens := &gateway.ClusterTokens{
		Name: "hub", Organization: config.DefaultOrganization, Home: "local-cluster", Reviewer: gateway.NewReviewer("hub", hub.AskPod(a.pod), a.clock),
	}
	as := func(token, cluster string) (gateway.Caller, error) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/"+cluster+"/api", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return tokens.Authenticate(r, kubeurl.URL{Cluster: cluster})
	}
	asked := func(want int) {
		t.Helper()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.reviews != want {
			t.Errorf("the cluster was asked %d times, want %d", a.reviews, want)
		}
	}
	later := func(d time.Duration) { a.set(func() { a.now = a.now.Add(d) }) }

	c, err := as(token, "plant")
	if err != nil {
		t.Fatal(err)
	}
	want := assertion.Identity{
		User: "cluster:hub:system:serviceaccount:apps:test-sa", UID: "cluster:hub:5c2bd6c2-0f5b-44a8-9c86-1f2d3c4b5a69",
		Groups: []string{"cluster:hub:system:serviceaccounts", "cluster:hub:system:serviceaccounts:apps", "system:authenticated"},
	}
	if diff := cmp.Diff(want, c.Kubernetes); diff != "" || c.Principal.String() != "workload:cluster:hub:system:serviceaccount:apps:test-sa" || !c.Expires.Equal(expires) {
		t.Errorf("%+v\n%s", c, diff)
	}
	// In its own cluster he is who he is.
	own, err := as(token, "local-cluster")
	want = assertion.Identity{
		User: "system:serviceaccount:apps:test-sa", UID: "5c2bd6c2-0f5b-44a8-9c86-1f2d3c4b5a69",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:apps", "system:authenticated"},
	}
	if diff := cmp.Diff(want, own.Kubernetes); diff != "" || err != nil || own.Principal != c.Principal {
		t.Error(err, diff)
	}
	asked(1)
	for range 2 {
		if _, err := as("other", "plant"); !errors.Is(err, gateway.ErrNoCredentials) {
			t.Errorf("a foreign token: %v", err)
		}
	}
	asked(2)

	// The pod's own token is replaced; the caller's is revoked.
	a.set(func() { a.own, a.good[token] = "second", false })
	a.write("token", "second\n")
	if err := c.Still(t.Context()); err != nil {
		t.Errorf("just after: %v", err)
	}
	later(10 * time.Second)
	if f := wire.AsFailure(c.Still(t.Context()), wire.LegUnknown); f == nil || f.Code != wire.CodeUnauthenticated {
		t.Errorf("revoked: %v", f)
	}
	asked(3)
	a.set(func() { a.good["other"] = true })
	if _, err := as("other", "plant"); err != nil {
		t.Errorf("a new token: %v", err)
	}
	asked(4)

	// What goes wrong is told, and not remembered.
	later(10 * time.Second)
	a.set(func() { a.refuse = true })
	if _, err := as(token, "plant"); err == nil || !strings.Contains(err.Error(), "cluster hub cannot be asked whose the token is: it answered 403 Forbidden") {
		t.Errorf("not allowed: %v", err)
	}
	a.set(func() { a.refuse = false })
	if _, err := as("other", "plant"); err != nil {
		t.Errorf("allowed again: %v", err)
	}
	outside := gateway.NewReviewer("hub", hub.AskPod(podcluster.New(nil, a.dir)), nil)
	if _, err := outside.Review(t.Context(), token); err == nil || !strings.Contains(err.Error(), "the hub does not run in a Kubernetes pod") {
		t.Errorf("outside of a pod: %v", err)
	}
}

// TestIssuerCAOfConfigMap: an issuer's CA comes from a ConfigMap of the hub's own
// cluster, and from a new one when it changes; while there is none, the hub says so.
func TestIssuerCAOfConfigMap(t *testing.T) {
	t.Parallel()
	a := newPodAPI(t)
	issuer := oidctest.New(t)
	verifier := oidc.NewVerifier(oidc.Options{Now: a.clock})
	t.Cleanup(verifier.Close)
	cfg := config.DefaultHub().SignIn
	cfg.IssuerURL, cfg.ClientID, cfg.Algorithms, cfg.CAConfigMap = issuer.URL, "postern", []string{"ES256"}, "postern/issuer"
	s, err := hub.NewSignIn(cfg, hub.SignInOptions{Verifier: verifier, Cluster: a.pod, Now: a.clock, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const path = "/api/v1/namespaces/postern/configmaps/issuer"
	check := func(what, want string) {
		t.Helper()
		a.set(func() { a.now = a.now.Add(2 * time.Minute) })
		switch info, err := s.Info(t.Context()); {
		case want == "" && (err != nil || info.CA != string(issuer.CA)):
			t.Errorf("%s: %v", what, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	check("no ConfigMap", "ConfigMap postern/issuer: there is no such object")
	a.set(func() { a.bundles[path] = "no certificate" })
	check("nothing in it", "holds no certificate")
	a.set(func() { a.refuse = true })
	check("not allowed", "may not do that (RBAC)")
	a.set(func() { a.refuse, a.bundles[path] = false, string(issuer.CA) })
	check("there it is", "")
	a.set(func() { delete(a.bundles, path) })
	check("it is gone", "")

	for key, want := range map[string]string{"der": "x", "other": ""} {
		a.set(func() { a.bundles[path] = "pem" })
		if got, err := a.pod.ConfigMap(t.Context(), "postern", "issuer", key); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
}
