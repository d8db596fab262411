package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// TestRequest follows one request: what the agent is told, what it gets, what the
// audit log holds.
func TestRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := make(chan *http.Request, 1)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		got <- r
		rw.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(rw, "made")
	})
	r := w.request("ann@example.org", "POST", "/acme:plant/api/v1/namespaces/shop/pods?token=secret", strings.NewReader("a pod"))
	r.Header.Set("Accept", "application/json;as=Table")
	res, body := w.do(r)
	if res.StatusCode != http.StatusCreated || body != "made" || res.ProtoMajor != 2 {
		t.Fatalf("%s %s: %s", res.Proto, res.Status, body)
	}
	claims := w.last()
	want := assertion.Claims{
		Organization: "acme", Agent: "plant", Method: "POST", URI: "/api/v1/namespaces/shop/pods?token=secret", Mode: assertion.ModeImpersonate,
		Principal: "user:ann@example.org", Groups: []string{"sre", "system:masters"}, Client: "127.0.0.1",
		Impersonate: assertion.Identity{
			User: "ann@example.org", Groups: []string{"sre", Authenticated},
			Extra: map[string][]string{ExtraPrincipal: {"user:ann@example.org"}, ExtraClient: {"127.0.0.1"}},
		},
	}
	claims.ID, claims.IssuedAt, claims.Expires = "", time.Time{}, time.Time{}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Error(diff)
	}
	in := <-got
	if in.Header.Get("Authorization") != "" || in.Header.Get("Accept") != "application/json;as=Table" {
		t.Errorf("the agent got %v", in.Header)
	}
	eventually(t, "recorded", func() bool { w.records.mu.Lock(); defer w.records.mu.Unlock(); return len(w.records.all) > 0 })
	one := w.records.take()[0]
	if one.Action != audit.Request || one.What != "create" || one.Object != "pods shop/" || one.User != "ann@example.org" || one.Status != 201 ||
		one.BytesIn != 4 || one.BytesOut != 5 || !one.OK || one.Organization != "acme" || one.Agent != "plant" || !strings.Contains(one.Reason, "system:masters") {
		t.Errorf("%+v", one)
	}
	if text := fmt.Sprintf("%+v", one); strings.Contains(text, "secret") {
		t.Errorf("the query is in the log: %s", text)
	}
	if n := w.metric("postern_gateway_requests_total", "hub", "create", "2xx"); n != 1 {
		t.Errorf("counted %v", n)
	}
	for range 20 {
		w.do(w.request("ann@example.org", "GET", "/plant/version", nil))
		<-got
	}
	if w.dials != 1 {
		t.Errorf("%d connections for 21 requests one after the other", w.dials)
	}
}

// TestRefusals holds how each refusal reads to kubectl, and that none reaches an agent.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Failed = nil })
	w.enter = func(e Entry) (func(), error) {
		switch e.Target.String() {
		case "gateway":
			if e.Caller.Principal.Name == "eve" {
				return nil, wire.Fail(wire.LegPolicy, wire.CodeDenied, "no grant").WithHint("postern access grant")
			}
			return func() {}, nil
		default:
			return nil, wire.Fail(wire.LegPolicy, wire.CodeDenied, "no grant for %s", e.Target)
		}
	}
	long := strings.Repeat("x", 2000)
	tests := []struct {
		user, path string
		header     map[string]string
		code       int
		reason     string
		text       string
		retry      string
	}{
		{"", "/plant/api", nil, 401, "Unauthorized", "no credential", ""},
		{"nobody", "/plant/api", nil, 401, "Unauthorized", "revoked", ""},
		{"", "/plant/api", map[string]string{"Authorization": "Bearer junk"}, 401, "Unauthorized", "none that this hub knows", ""},
		{"", "/plant/api", map[string]string{"Authorization": "Basic dXNlcjpwYXNz"}, 401, "Unauthorized", "no credential", ""},
		{"system:admin", "/plant/api", nil, 403, "Forbidden", "reserve", ""},
		{"cluster:x", "/plant/api", nil, 403, "Forbidden", "--gateway-user-prefix", ""},
		{"eve", "/plant/api", nil, 403, "Forbidden", "postern access grant", ""},
		{"ann", "/plant/api/v1/namespaces/shop/services/web:80/proxy-service/", nil, 403, "Forbidden", "service shop/web is not in the exposed services allowlist", ""},
		{"ann", "/plant/api/v1/namespaces/shop/services/web/proxy-service/", nil, 400, "BadRequest", "names no service", ""},
		{"ann", "/nowhere/api", nil, 404, "NotFound", "no cluster nowhere", ""},
		{"ann", "/other:plant/api", nil, 404, "NotFound", "no cluster plant", ""},
		{"ann", "/away/api", nil, 503, "ServiceUnavailable", "no replica", "5"},
		{"ann", "/plant/..%2fother/api", nil, 400, "BadRequest", "leads upwards", ""},
		{"ann", "/Plant/api", nil, 400, "BadRequest", "cluster", ""},
		{"ann", "/plant/api", map[string]string{"Impersonate-Group": "g"}, 400, "BadRequest", "names no user", ""},
		{"ann", "/plant/api", map[string]string{"Impersonate-User": long}, 400, "BadRequest", "bytes", ""},
		{"ann", "/plant/api", map[string]string{"Impersonate-User": "u", "Impersonate-Extra-%": "g"}, 400, "BadRequest", "extra", ""},
	}
	for _, tt := range tests {
		r := w.request(tt.user, "GET", tt.path, nil)
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		res, body := w.do(r)
		s := statusIn(t, body)
		if res.StatusCode != tt.code || s.Code != tt.code || s.Reason != tt.reason || !strings.Contains(s.Message, tt.text) || res.Header.Get("Retry-After") != tt.retry {
			t.Errorf("%s as %s: %s %v %q", tt.path, tt.user, res.Status, res.Header, body)
		}
		if tt.code == 401 != (res.Header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s as %s: %v", tt.path, tt.user, res.Header)
		}
	}
	if n := len(w.seen); n != 0 {
		t.Errorf("%d of them reached the agent", n)
	}
	for _, one := range w.records.take() {
		if one.OK || one.Actor.Kind == "" && (one.Action != audit.SignIn || one.Organization != "") || one.Actor.Kind != "" && one.Action != audit.Request {
			t.Errorf("recorded: %+v", one)
		}
	}
}

// TestFailuresAreLimited: who fails too often is told to wait.
func TestFailuresAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var codes []int
	for range 7 {
		res, _ := w.do(w.request("nobody", "GET", "/plant/api", nil))
		codes = append(codes, res.StatusCode)
	}
	if !slices.Equal(codes, []int{401, 401, 401, 401, 401, 429, 429}) {
		t.Error(codes)
	}
	if res, _ := w.do(w.request("ann", "GET", "/plant/api", nil)); res.StatusCode != 200 {
		t.Errorf("a good token from there: %s", res.Status)
	}
}

// TestImpersonation: a caller's wish travels beside who he is, and the fields in which
// he made it do not.
func TestImpersonation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := make(chan http.Header, 1)
	w.set(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	r := w.request("ann", "GET", "/plant/api", nil)
	r.Header["Impersonate-User"], r.Header["Impersonate-Group"], r.Header["Impersonate-Uid"] = []string{"bob"}, []string{"a", "system:masters"}, []string{"7"}
	r.Header["Impersonate-Extra-Example.org%2fscope"] = []string{"x", "y"}
	w.do(r)
	want := assertion.Identity{User: "bob", UID: "7", Groups: []string{"a", "system:masters"}, Extra: map[string][]string{"example.org/scope": {"x", "y"}}}
	if diff := cmp.Diff(want, w.last().As); diff != "" {
		t.Error(diff)
	}
	if w.last().Impersonate.User != "ann" {
		t.Errorf("he became %+v", w.last().Impersonate)
	}
	for field := range <-got {
		if strings.HasPrefix(field, "Impersonate") {
			t.Errorf("%s got there", field)
		}
	}
}

// TestCut: a request that runs ends when what let it in does, and says why where it can.
func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	cuts, left := make(chan func(*wire.Failure), 1), make(chan struct{}, 1)
	w.enter = func(e Entry) (func(), error) {
		cuts <- e.Cut
		return func() { left <- struct{}{} }, nil
	}
	begun := make(chan struct{}, 1)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.RequestURI, "silent") {
			_, _ = io.WriteString(rw, "first\n")
			_ = http.NewResponseController(rw).Flush()
		}
		begun <- struct{}{}
		<-r.Context().Done()
	})
	revoked := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the session was revoked")

	res, err := w.client.Do(w.request("ann", "GET", "/plant/api/v1/pods?watch=1", nil))
	if err != nil {
		t.Fatal(err)
	}
	cut := <-cuts
	<-begun
	cut(revoked)
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("a watch that was cut ended well: %q", b)
	}
	_ = res.Body.Close()
	<-left
	eventually(t, "recorded", func() bool { w.records.mu.Lock(); defer w.records.mu.Unlock(); return len(w.records.all) == 2 })
	all := w.records.take()
	if !all[0].OK || all[0].Reason != recordBegins || all[1].OK || !strings.Contains(all[1].Reason, "revoked") {
		t.Errorf("recorded: %+v", all)
	}

	go func() {
		cut := <-cuts
		<-begun
		cut(revoked)
	}()
	res, body := w.do(w.request("ann", "GET", "/plant/silent", nil))
	if s := statusIn(t, body); res.StatusCode != 401 || !strings.Contains(s.Message, "revoked") {
		t.Errorf("%s %s", res.Status, body)
	}
	<-left
	if n := w.metric("postern_gateway_requests_running"); n != 0 {
		t.Errorf("%v requests run", n)
	}
}

// TestCutUpgraded: a connection that goes on with another protocol is cut as well, also
// while its client neither reads nor writes.
func TestCutUpgraded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	cuts := make(chan func(*wire.Failure), 1)
	left := make(chan struct{})
	w.enter = func(e Entry) (func(), error) {
		cuts <- e.Cut
		return func() { close(left) }, nil
	}
	w.set(func(rw http.ResponseWriter, _ *http.Request) {
		conn, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = brw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		_ = brw.Flush()
		junk := make([]byte, 64<<10)
		for { // until nothing goes any more
			if _, err := conn.Write(junk); err != nil {
				return
			}
		}
	})
	conn, in := w.raw()
	_, _ = io.WriteString(conn, "POST /plant/api/v1/namespaces/a/pods/b/exec?command=x HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer token-of-ann\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n")
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%v, %v", res, err)
	}
	(<-cuts)(wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "revoked"))
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
}

// TestLimits: a caller has so many requests at once, others theirs.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Limits = Limits{Short: 2, Long: 1, Total: 5} })
	release := make(chan struct{})
	begun := make(chan struct{}, 10)
	w.set(func(http.ResponseWriter, *http.Request) { begun <- struct{}{}; <-release })
	ended := make(chan int, 10)
	start := func(user, path string) {
		go func() {
			res, err := w.client.Do(w.request(user, "GET", path, nil))
			if err != nil {
				ended <- 0
				return
			}
			_ = res.Body.Close()
			ended <- res.StatusCode
		}()
		<-begun
	}
	refused := func(user, path, text string) {
		t.Helper()
		res, body := w.do(w.request(user, "GET", path, nil))
		if s := statusIn(t, body); res.StatusCode != 429 || s.Reason != "TooManyRequests" || !strings.Contains(s.Message, text) || res.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %s %s", user, path, res.Status, body)
		}
	}
	start("ann", "/plant/api")
	start("ann", "/plant/api")
	refused("ann", "/plant/api", "--gateway-requests-per-user")
	start("ann", "/plant/api/v1/pods?watch=1")
	refused("ann", "/plant/api/v1/pods?watch=1", "--gateway-streams-per-user")
	start("bob", "/plant/api")
	start("bob", "/plant/api")
	refused("eve", "/plant/api", "5 requests")
	close(release)
	for range 5 {
		if code := <-ended; code != 200 {
			t.Errorf("one ended with %d", code)
		}
	}
	eventually(t, "all are forgotten", func() bool {
		w.gateway.inflight.mu.Lock()
		defer w.gateway.inflight.mu.Unlock()
		return w.gateway.inflight.total == 0 && len(w.gateway.inflight.by) == 0
	})
}

// TestStill: a request by a credential whose revocation nobody tells ends soon after
// somebody asks, and not because the answer is late; also one of which nobody knew that it
// would last.
func TestStill(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"/api/v1/pods?watch=1", "/events"} {
		synctest.Test(t, func(t *testing.T) {
			answers := []error{nil, errors.New("cannot tell"), wire.Fail(wire.LegHub, wire.CodeOverloaded, "busy"), wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "gone")}
			ctx, cancel := context.WithCancelCause(t.Context())
			c := &call{ctx: ctx, cancel: cancel, answer: &answer{ResponseWriter: httptest.NewRecorder()}, what: kubeurl.Describe("GET", target)}
			c.caller.Still = func(context.Context) error { return nil }
			begin, asked := time.Now(), 0
			c.watch(func(context.Context) error { asked++; return answers[asked-1] })
			<-ctx.Done()
			if f := wire.AsFailure(context.Cause(ctx), wire.LegUnknown); f.Text != "gone" || time.Since(begin) != 4*stillEvery {
				t.Errorf("%s: ended after %s: %v", target, time.Since(begin), f)
			}
			c.left()
		})
	}
	synctest.Test(t, func(t *testing.T) { // nothing goes on behind one that has ended, also while it is asked
		for _, lasts := range []time.Duration{stillEvery / 2, stillEvery + time.Second} {
			ctx, cancel := context.WithCancelCause(t.Context())
			c := &call{ctx: ctx, cancel: cancel, answer: &answer{ResponseWriter: httptest.NewRecorder()}}
			c.caller.Still = func(context.Context) error { return nil }
			var asking atomic.Bool
			c.watch(func(ctx context.Context) error {
				asking.Store(true)
				<-ctx.Done()
				asking.Store(false)
				return ctx.Err()
			})
			time.Sleep(lasts)
			if asking.Load() != (lasts > stillEvery) {
				t.Errorf("after %s: %t", lasts, asking.Load())
			}
			c.left()
			if asking.Load() || ctx.Err() != nil {
				t.Errorf("after the end of %s: %t, %v", lasts, asking.Load(), context.Cause(ctx))
			}
			cancel(nil)
		}
	})
}

// TestClose: watches end at once, others have their time.
func TestClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	begun, release := make(chan struct{}, 2), make(chan struct{})
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).Flush()
		begun <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-release:
			_, _ = io.WriteString(rw, "done")
		}
	})
	watch, err := w.client.Do(w.request("ann", "GET", "/plant/api/v1/pods?watch=1", nil))
	if err != nil {
		t.Fatal(err)
	}
	get, err := w.client.Do(w.request("ann", "GET", "/plant/api/v1/pods", nil))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	<-begun
	closed := make(chan struct{})
	go func() { w.gateway.Close(t.Context()); close(closed) }()
	if _, err := io.ReadAll(watch.Body); err == nil {
		t.Error("the watch ended well")
	}
	res, body := w.do(w.request("ann", "GET", "/plant/api", nil))
	if s := statusIn(t, body); res.StatusCode != 503 || !strings.Contains(s.Message, "shutting down") {
		t.Errorf("%s %s", res.Status, body)
	}
	close(release)
	if b, err := io.ReadAll(get.Body); err != nil || string(b) != "done" {
		t.Errorf("%q, %v", b, err)
	}
	<-closed
	_, _ = watch.Body.Close(), get.Body.Close()
	w.gateway = New(w.gateway.c) // for the world to close
}
