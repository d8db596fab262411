package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// authority is a cluster that knows some tokens.
type authority struct {
	asked  atomic.Int64
	mu     sync.Mutex
	tokens map[string]string // user by token
	broken error
	hold   chan struct{}
}

func (a *authority) ask(r *http.Request) (*http.Response, error) {
	a.asked.Add(1)
	a.mu.Lock()
	broken, hold := a.broken, a.hold
	a.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if broken != nil {
		return nil, broken
	}
	rec := httptest.NewRecorder()
	a.review(rec, r)
	return rec.Result(), nil
}

// review is the API server's end.
func (a *authority) review(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Spec struct{ Token string }
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Method != http.MethodPost || r.URL.Path != ReviewPath {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	user := a.tokens[q.Spec.Token]
	a.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	if user == "" {
		_, _ = io.WriteString(w, `{"kind":"TokenReview","status":{"error":"[invalid bearer token]"}}`)
		return
	}
	_, _ = fmt.Fprintf(w, `{"kind":"TokenReview","status":{"authenticated":true,"user":{"username":%q,"uid":"u-1",
		"groups":["system:serviceaccounts","system:masters","system:authenticated"],"extra":{"a":["b"]}}}}`, user)
}

func (a *authority) set(token, user string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[token] = user
}

// TestReview: an answer is remembered for seconds, good or bad; a failure is not.
func TestReview(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{tokens: map[string]string{"good": "ann"}}
		v := NewReviewer("ci", a.ask, nil)
		check := func(token, user string, asked int64) {
			t.Helper()
			who, err := v.Review(t.Context(), token)
			if who.User != user || (err == nil) != (user != "") || err != nil && !errors.Is(err, errForeign) || a.asked.Load() != asked {
				t.Errorf("%s: %+v, %v, asked %d times", token, who, err, a.asked.Load())
			}
		}
		check("good", "ann", 1)
		check("good", "ann", 1)
		check("bad", "", 2)
		check("bad", "", 2)
		a.set("good", "")
		a.set("bad", "bob")
		check("good", "ann", 2)
		time.Sleep(badFor)
		check("bad", "bob", 3)
		check("good", "ann", 3)
		time.Sleep(goodFor - badFor)
		check("good", "", 4)
		check("", "", 4)
		check(strings.Repeat("x", maxForeignToken+1), "", 4)
		a.broken = wire.Fail(wire.LegAgent, wire.CodeNoAgent, "away")
		for n := int64(5); n < 7; n++ {
			_, err := v.Review(t.Context(), "other")
			if f := wire.AsFailure(err, wire.LegUnknown); f.Code != wire.CodeNoAgent || !strings.Contains(f.Text, "cluster ci") || a.asked.Load() != n {
				t.Errorf("%v, asked %d times", err, a.asked.Load())
			}
		}
	})
}

// TestReviewBounds: strangers can neither fill the memory nor keep a cluster busy, and
// many who show one token ask once.
func TestReviewBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{tokens: map[string]string{"good": "ann"}, hold: make(chan struct{})}
		v := NewReviewer("ci", a.ask, nil)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if who, err := v.Review(t.Context(), "good"); err != nil || who.User != "ann" {
					t.Errorf("%v, %v", who, err)
				}
			})
		}
		synctest.Wait()
		var refused atomic.Int64
		for i := range 100 {
			wg.Go(func() {
				if _, err := v.Review(t.Context(), fmt.Sprint("junk", i)); wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeOverloaded {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		if a.asked.Load() != maxReviewing || refused.Load() != 100-maxReviewing+1 {
			t.Errorf("asked %d times, refused %d", a.asked.Load(), refused.Load())
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := v.Review(gone, "good"); !errors.Is(err, context.Canceled) {
			t.Errorf("one that gave up: %v", err)
		}
		close(a.hold)
		wg.Wait()
		for i := range maxReviews + 100 {
			_, _ = v.Review(t.Context(), fmt.Sprint("more", i))
		}
		if n := len(v.known.all); n > maxReviews {
			t.Errorf("%d answers are remembered", n)
		}
	})
}

// TestReviewLeavesRoom: somebody who shows token after token does not keep others from
// having theirs reviewed; not even the good ones of the same network for longer than that.
func TestReviewLeavesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{tokens: map[string]string{"good": "ann", "known": "bob"}, hold: make(chan struct{})}
		c := &ClusterTokens{Name: "ci", Organization: "acme", Reviewer: NewReviewer("ci", a.ask, nil)}
		show := func(from, token string) error {
			r := httptest.NewRequest(http.MethodGet, "/plant/api", nil)
			r.RemoteAddr = from
			r.Header.Set("Authorization", "Bearer "+token)
			_, err := c.Authenticate(r, kubeurl.URL{})
			return err
		}
		var wg sync.WaitGroup
		var busy atomic.Int64
		for i := range 40 {
			wg.Go(func() {
				from := fmt.Sprintf("[2001:db8::%x]:1", i) // one network
				if err := show(from, fmt.Sprint("junk", i)); wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeOverloaded {
					busy.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := a.asked.Load(); n != maxReviewing/4 || busy.Load() != 40-n {
			t.Errorf("asked %d times, refused %d", n, busy.Load())
		}
		done := make(chan error, 1)
		go func() { done <- show("[2001:db8:0:1::1]:1", "good") }()
		synctest.Wait()
		if n := a.asked.Load(); n != maxReviewing/4+1 {
			t.Error("another network is not asked about")
		}
		close(a.hold)
		if err := <-done; err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := show("[2001:db8::1]:1", "known"); err != nil {
			t.Errorf("the first network, later: %v", err)
		}
		if n := len(c.Reviewer.known.asking); n != 0 {
			t.Errorf("%d askers are remembered", n)
		}
		for from, want := range map[string]string{"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "[fe80::1%eth0]:5": "fe80::/64", "@": "@"} {
			if got := network(&http.Request{RemoteAddr: from}); got != want {
				t.Errorf("%s is of %s", from, got)
			}
		}
	})
}

// TestReviewAnswers: what is no TokenReview is no user.
func TestReviewAnswers(t *testing.T) {
	t.Parallel()
	for answer, code := range map[string]int{
		`{"kind":"Status","code":403}`: 403, `{}`: 201, `[]`: 200, `<html>`: 200, `{"kind":"TokenReview","status":{"user":{"username":"ann"}}}`: 201,
		`{"kind":"TokenReview","status":{"authenticated":true}}`: 201, `{"kind":"TokenReview","status":{"authenticated":"true","user":{"username":"a"}}}`: 201,
		`{"kind":"TokenReview","status":{"authenticated":true,"user":{"username":"a","groups":["` + strings.Repeat(`g","`, 100) + `"]}}}`: 201,
	} {
		v := NewReviewer("ci", func(*http.Request) (*http.Response, error) {
			rec := httptest.NewRecorder()
			rec.WriteHeader(code)
			_, _ = io.WriteString(rec, answer)
			return rec.Result(), nil
		}, nil)
		if who, err := v.Review(t.Context(), "t"); err == nil {
			t.Errorf("%d %.100s is %+v", code, answer, who)
		}
	}
}

func jwt(exp int64) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc(fmt.Appendf(nil, `{"exp":%d}`, exp)) + "." + enc([]byte("sig"))
}

// TestClusterTokens: somebody of a registered cluster is seen under that cluster's
// name, also by his groups, and is nobody elsewhere.
func TestClusterTokens(t *testing.T) {
	t.Parallel()
	exp := time.Now().Add(time.Hour).Unix()
	good := jwt(exp)
	a := &authority{tokens: map[string]string{good: "system:serviceaccount:apps:deployer", "long": strings.Repeat("n", 300)}}
	c := &ClusterTokens{Name: "hub", Organization: "acme", Reviewer: NewReviewer("hub", a.ask, nil)}
	r := httptest.NewRequest(http.MethodGet, "/plant/api", nil)
	if _, err := c.Authenticate(r, kubeurl.URL{}); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("without a token: %v", err)
	}
	r.Header.Set("Authorization", "Bearer junk")
	if _, err := c.Authenticate(r, kubeurl.URL{}); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("with an unknown token: %v", err)
	}
	r.Header.Set("Authorization", "Bearer long")
	if _, err := c.Authenticate(r, kubeurl.URL{}); wire.AsFailure(err, wire.LegUnknown).Code != wire.CodeDenied {
		t.Errorf("with a long name: %v", err)
	}
	r.Header.Set("Authorization", "bearer "+good)
	got, err := c.Authenticate(r, kubeurl.URL{})
	if err != nil {
		t.Fatal(err)
	}
	want := assertion.Identity{
		User: "cluster:hub:system:serviceaccount:apps:deployer", UID: "cluster:hub:u-1",
		Groups: []string{"cluster:hub:system:serviceaccounts", "cluster:hub:system:masters", "system:authenticated"},
	}
	if diff := cmp.Diff(want, got.Kubernetes); diff != "" {
		t.Error(diff)
	}
	if got.Principal.String() != "workload:cluster:hub:system:serviceaccount:apps:deployer" || got.Organization != "acme" || got.Expires.Unix() != exp || got.Pass {
		t.Errorf("%+v", got)
	}
	if err := got.Still(t.Context()); err != nil {
		t.Error(err)
	}
	c.Reviewer = NewReviewer("hub", (&authority{}).ask, nil)
	if f := wire.AsFailure(got.Still(t.Context()), wire.LegUnknown); f == nil || f.Code != wire.CodeUnauthenticated {
		t.Errorf("a deleted service account's: %v", f)
	}
}

// TestPassThrough: the cluster that a request is for is asked about the token, and
// gets it as it is; another cluster is neither asked nor told.
func TestPassThrough(t *testing.T) {
	t.Parallel()
	a := &authority{tokens: map[string]string{"sa-token": "system:serviceaccount:a:b"}}
	w := newWorld(t, func(c *Config) {
		c.Authenticators = append(c.Authenticators, &PassThrough{Organization: "acme", Cluster: "plant", Reviewer: NewReviewer("plant", a.ask, nil)})
	})
	got := make(chan http.Header, 1)
	w.set(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	r := w.request("", "GET", "/plant/api", nil)
	r.Header.Set("Authorization", "Bearer sa-token")
	r.Header.Set("X-Remote-User", "root")
	r.Header.Set("Impersonate-User", "bob") // for the cluster to judge
	r.Header.Set("Impersonate_User", "root")
	if res, body := w.do(r); res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, body)
	}
	h, claims := <-got, w.last()
	if h.Get("Authorization") != "Bearer sa-token" || h.Get("Impersonate-User") != "bob" || len(h["Impersonate_user"]) > 0 || !claims.As.IsZero() || h.Get("X-Remote-User") != "" || claims.Mode != assertion.ModePass || !claims.Impersonate.IsZero() ||
		claims.Principal != "workload:cluster:plant:system:serviceaccount:a:b" {
		t.Errorf("%v, %+v", h, claims)
	}
	for path, token := range map[string]string{"/away/api": "sa-token", "/other:plant/api": "sa-token", "/plant/api": "junk"} {
		r := w.request("", "GET", path, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		if res, _ := w.do(r); res.StatusCode != 401 {
			t.Errorf("%s with %s: %s", path, token, res.Status)
		}
	}
	r = w.request("", "GET", "/plant/api/v1/namespaces/a/services/b:80/proxy-service/", nil)
	r.Header.Set("Authorization", "Bearer sa-token")
	if res, _ := w.do(r); res.StatusCode != 400 {
		t.Errorf("a service gets the token of the cluster: %s", res.Status)
	}
	// The hub's own tokens are good there as well, and not passed.
	w.do(w.request("ann", "GET", "/plant/api", nil))
	if h := <-got; h.Get("Authorization") != "" || w.last().Mode != assertion.ModeImpersonate {
		t.Errorf("%v", h)
	}
}

// TestAsk: the hub asks a cluster through its agent, with its own word.
func TestAsk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := &authority{tokens: map[string]string{"t": "ann"}}
	w.set(a.review)
	who, err := NewReviewer("plant", w.gateway.Ask("acme", "plant"), nil).Review(t.Context(), "t")
	if err != nil || who.User != "ann" {
		t.Fatalf("%+v, %v", who, err)
	}
	if c := w.last(); c.Mode != assertion.ModeSelf || c.URI != ReviewPath || c.Principal != "hub:node" {
		t.Errorf("%+v", c)
	}
	_, err = NewReviewer("away", w.gateway.Ask("acme", "away"), nil).Review(t.Context(), "t")
	if f := wire.AsFailure(err, wire.LegUnknown); f.Code != wire.CodeNoAgent {
		t.Error(err)
	}
}

// TestCertificates: a client certificate says who calls where its authority is trusted
// with it, and nowhere else.
func TestCertificates(t *testing.T) {
	t.Parallel()
	ca, caKey := certificate(t, nil, nil, pkix.Name{CommonName: "ca"})
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	a := &Certificates{Names: Names{Reserved: []string{"system:"}}, Allowed: func(_ context.Context, user string) error {
		if user == "gone" {
			return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "revoked")
		}
		return nil
	}}
	g := New(Config{Hub: &world{}, Authenticators: []Authenticator{a}, Log: slog.New(slog.DiscardHandler)})
	var trusted atomic.Bool
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, method, err := g.authenticate(r, kubeurl.URL{})
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s %v %v", method, c.Principal, c.Groups, c.Kubernetes.Groups)
	}))
	front.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		if trusted.Load() {
			return WithCertificates(ctx)
		}
		return ctx
	}
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	front.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, MinVersion: tls.VersionTLS13}
	front.StartTLS()
	t.Cleanup(front.Close)
	ask := func(name *pkix.Name) (int, string) {
		t.Helper()
		secure := &tls.Config{InsecureSkipVerify: true}
		if name != nil {
			leaf, key := certificate(t, ca, caKey, *name)
			one := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
			secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return one, nil } // whatever is asked for
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}}
		res, err := client.Get(front.URL)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	ann := &pkix.Name{CommonName: "ann", Organization: []string{"sre", "system:masters", "dev"}}
	if code, text := ask(ann); code != 401 {
		t.Errorf("where certificates do not count: %d %s", code, text)
	}
	trusted.Store(true)
	if code, text := ask(ann); code != 200 || text != "certificate user:ann [dev sre system:masters] [dev sre system:authenticated]" {
		t.Errorf("%d %s", code, text)
	}
	for _, name := range []*pkix.Name{nil, {CommonName: "gone"}, {CommonName: ""}, {CommonName: "system:admin"}, {CommonName: "a\nb"}, {CommonName: "a", Organization: []string{""}}} {
		if code, text := ask(name); code != 401 {
			t.Errorf("%v: %d %s", name, code, text)
		}
	}
	caKey = nil // by itself
	if code, _ := ask(ann); code != 0 {
		t.Errorf("a certificate of nobody: %d", code)
	}
}

// TestAttackOtherSites: a page somewhere cannot use the certificate of who looks at it.
func TestAttackOtherSites(t *testing.T) {
	t.Parallel()
	leaf := &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, NotAfter: time.Now().Add(time.Hour)}
	a := &Certificates{}
	for name, one := range map[string]struct {
		method string
		fields map[string]string
		denied bool
	}{
		"a program":              {"POST", nil, false},
		"a program's WebSocket":  {"GET", map[string]string{"Upgrade": "websocket"}, false},
		"the address line":       {"GET", map[string]string{"Sec-Fetch-Site": "none"}, false},
		"a link":                 {"GET", map[string]string{"Sec-Fetch-Site": "cross-site"}, false},
		"the site itself":        {"POST", map[string]string{"Sec-Fetch-Site": "same-origin"}, false},
		"a form elsewhere":       {"POST", map[string]string{"Sec-Fetch-Site": "cross-site"}, true},
		"a neighbour":            {"DELETE", map[string]string{"Sec-Fetch-Site": "same-site"}, true},
		"a page of a cluster":    {"POST", map[string]string{"Origin": "null"}, true},
		"an older browser":       {"PUT", map[string]string{"Origin": "https://evil.example"}, true},
		"a WebSocket elsewhere":  {"GET", map[string]string{"Upgrade": "websocket", "Origin": "https://evil.example"}, true},
		"a WebSocket, site said": {"GET", map[string]string{"Upgrade": "websocket", "Sec-Fetch-Site": "cross-site"}, true},
	} {
		r := httptest.NewRequest(one.method, "https://hub.example/plant/api", nil)
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
		for field, value := range one.fields {
			r.Header.Set(field, value)
		}
		_, err := a.Authenticate(r.WithContext(WithCertificates(t.Context())), kubeurl.URL{})
		if denied := err != nil && wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeDenied; denied != one.denied || err != nil && !denied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// certificate issues a certificate; without an authority's key it signs itself.
func certificate(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey, name pkix.Name) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: name, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: ca == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if caKey == nil {
		ca, caKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, key
}

// TestNames holds which names somebody may have in a cluster.
func TestNames(t *testing.T) {
	t.Parallel()
	n := Names{UserPrefix: "oidc:", GroupPrefix: "oidc:", Reserved: []string{"system:", "", "kubernetes-admin"}}
	i, dropped, err := n.User("system:admin", []string{"system:masters"})
	if err != nil || i.User != "oidc:system:admin" || len(dropped) != 0 || i.Groups[0] != "oidc:system:masters" {
		t.Errorf("%+v, %v, %v", i, dropped, err)
	}
	n.UserPrefix, n.GroupPrefix = "", ""
	if _, _, err := n.User("kubernetes-admin", nil); wire.AsFailure(err, wire.LegUnknown) == nil {
		t.Error("a reserved name is possible")
	}
	n.UserPrefix = "sys" // a prefix must not make one
	if _, _, err := n.User("tem:admin", nil); wire.AsFailure(err, wire.LegUnknown) == nil {
		t.Error("a prefix makes a reserved name possible")
	}
	if i := n.Robot("ci"); i.User != "postern:robot:ci" || len(i.Groups) != 2 {
		t.Errorf("%+v", i)
	}
	told := tell(i, identity.Principal{Kind: identity.KindRobot, Name: "ci"}, "")
	if diff := cmp.Diff(map[string][]string{ExtraPrincipal: {"robot:ci"}}, told.Extra); diff != "" {
		t.Error(diff)
	}
}
