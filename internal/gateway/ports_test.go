package gateway

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/wire"
)

// shop is the service shop/web as an API server writes it.
const shop = `{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop"},"spec":{"type":"ClusterIP","ports":[` +
	`{"name":"dns","protocol":"UDP","port":53,"targetPort":53},{"name":"web","protocol":"TCP","port":8443,"targetPort":"https"},{"name":"admin","port":9000}]}}`

// TestPortNames: the port of a service may have a name. Grants are asked about its
// number, the agent is told the number, and whoever may not reach the service does not
// learn which names there are.
func TestPortNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var looked atomic.Int64
	var answer atomic.Pointer[http.HandlerFunc]
	says := func(code int, text string) {
		h := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(code); _, _ = io.WriteString(rw, text) })
		answer.Store(&h)
	}
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/shop/services/") {
			_, _ = io.WriteString(rw, "shop")
			return
		}
		if c := w.last(); c.Mode != assertion.ModeSelf || c.Principal != "hub:node" || r.Method != http.MethodGet {
			t.Errorf("asked as %+v", c)
		}
		looked.Add(1)
		(*answer.Load())(rw, r)
	})
	var judged []wire.Target
	w.enter = func(e Entry) (func(), error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		judged = append(judged, e.Target)
		if e.Target.Port != 8443 {
			return nil, wire.Fail(wire.LegPolicy, wire.CodeDenied, "no grant for %s", e.Target).WithHint("postern access grant")
		}
		return func() {}, nil
	}
	get := func(service, portName string) (int, string) {
		res, body := w.do(w.request("ann", http.MethodGet, "/plant/api/v1/namespaces/shop/services/"+service+":"+portName+"/proxy-service/a?b", nil))
		if res.StatusCode >= 400 {
			body = statusIn(t, body).Message
		}
		return res.StatusCode, body
	}

	says(http.StatusOK, shop)
	for range 3 {
		if code, body := get("web", "web"); code != http.StatusOK || body != "shop" {
			t.Fatalf("%d %s", code, body)
		}
	}
	if s := w.last().Service; looked.Load() != 1 || s == nil || s.Port != "8443" || s.Scheme != "https" || w.last().URI != "/a?b" {
		t.Errorf("asked %d times; the agent is told %+v", looked.Load(), w.last())
	}
	if !slices.Equal(judged, []wire.Target{{Kind: wire.KindTCP, Host: "web.shop.svc", Port: 8443}, judged[0], judged[0]}) {
		t.Errorf("judged: %v", judged)
	}
	eventually(t, "recorded", func() bool {
		return slices.ContainsFunc(w.records.take(), func(r audit.Record) bool { return r.Target == "tcp:web.shop.svc:8443" })
	})

	// One that is denied, one that is not there, and one of UDP look the same.
	code, denied := get("web", "admin")
	if code != http.StatusForbidden || !strings.Contains(denied, "service shop/web is not in the exposed services allowlist: it has no port named admin that user:ann may reach") ||
		strings.Contains(denied, "9000") {
		t.Errorf("denied: %d %s", code, denied)
	}
	for _, name := range []string{"none", "dns"} {
		if code, body := get("web", name); code != http.StatusForbidden || body != strings.ReplaceAll(denied, "admin", name) {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	says(http.StatusNotFound, `{"kind":"Status"}`)
	if code, body := get("nothing", "admin"); code != http.StatusForbidden || body != strings.NewReplacer("shop/web", "shop/nothing", "web.shop", "nothing.shop").Replace(denied) {
		t.Errorf("no service: %d %s", code, body)
	}

	// What goes wrong is told, and not remembered.
	before := looked.Load()
	for _, one := range []struct {
		code int
		text string
		want int
		why  string
	}{
		{403, `{"kind":"Status","message":"services \"b\" is forbidden"}`, 403, "let its service account get services"},
		{500, "", 502, "500 Internal Server Error"}, {200, "no JSON", 502, "is no Service"}, {200, `{"kind":"Secret"}`, 502, "is no Service"},
		{200, `{"kind":"Service","spec":{"ports":[{"name":"web","port":99999}]}}`, 502, "is no Service"},
	} {
		says(one.code, one.text)
		if code, body := get("broken", "web"); code != one.want || !strings.Contains(body, one.why) {
			t.Errorf("%d %s: %d %s", one.code, one.text, code, body)
		}
	}
	if n := looked.Load() - before; n != 5 {
		t.Errorf("asked %d times", n)
	}
	res, body := w.do(w.request("ann", http.MethodGet, "/away/api/v1/namespaces/shop/services/web:web/proxy-service/", nil))
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "no replica") {
		t.Errorf("away: %s %s", res.Status, body)
	}
}

// TestRecall: an answer is remembered for its time; the same question is asked once at a
// time, whoever gives up; and neither questions nor answers are without end.
func TestRecall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newRecall[int, int](2, 3, nil)
		asked := 0
		get := func(key int, keep time.Duration) int {
			n, err := m.get(t.Context(), "", key, time.Second, func(context.Context) (int, time.Duration, error) { asked++; return asked, keep, nil })
			if err != nil {
				t.Error(err)
			}
			return n
		}
		for i, want := range []int{1, 1, 1} {
			if n := get(1, time.Second); n != want {
				t.Errorf("answer %d is %d", i, n)
			}
		}
		for want := range 2 { // good for no time
			if n := get(2, 0); n != want+2 {
				t.Errorf("got %d, want %d", n, want+2)
			}
		}
		time.Sleep(time.Second)
		if get(1, time.Minute) != 4 {
			t.Error("an old answer")
		}
		for key := range 10 {
			get(key, time.Minute)
			if len(m.all) > 3 {
				t.Fatalf("%d are remembered", len(m.all))
			}
		}
		// Two questions hang; who waits for one of them may leave, and a third is one too many.
		answers := make(chan int, 3)
		hang := func(ctx context.Context) (int, time.Duration, error) { <-ctx.Done(); return 7, time.Minute, nil }
		for _, key := range []int{100, 101, 100} {
			go func() { n, _ := m.get(t.Context(), "", key, time.Minute, hang); answers <- n }()
			synctest.Wait()
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if _, err := m.get(gone, "", 100, time.Minute, hang); err == nil {
			t.Error("who has gone gets an answer")
		}
		if _, err := m.get(t.Context(), "", 102, time.Minute, hang); err != errBusy { //nolint:errorlint // it is that very one
			t.Errorf("a third: %v", err)
		}
		for range 3 {
			if n := <-answers; n != 7 {
				t.Errorf("got %d", n)
			}
		}
	})
}
