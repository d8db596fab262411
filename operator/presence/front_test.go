package presence

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/wire"
)

// patient is a Front that waits longer than a busy machine takes.
func patient(address string) *Front {
	f := NewFront(address)
	f.client.Timeout = time.Minute
	return f
}

// TestFront asks proxies, and what is none.
func TestFront(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var seen atomic.Value
	serve := func(status int, proxyStatus string) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
			seen.Store(strings.Join([]string{r.Method, r.RequestURI, user, password}, " "))
			w.Header().Set("Proxy-Status", proxyStatus)
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(status)
		}))
		s.Config.DisableGeneralOptionsHandler = true
		s.Start()
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	for _, c := range []struct {
		status int
		says   string
		want   wire.Code
	}{
		{204, "postern", 0},
		{407, "postern; error=http_request_denied", wire.CodeUnauthenticated},
		{503, "postern; error=connection_limit_reached", wire.CodeOverloaded},
		{200, "", wire.CodeProtocol},
		{407, "", wire.CodeProtocol},
		{204, "posterns", wire.CodeProtocol},
		{302, "postern", wire.CodeOverloaded},
	} {
		err := patient(serve(c.status, c.says)).Takes(t.Context(), "lab", "pass:word")
		if f := wire.AsFailure(err, wire.LegUnknown); err == nil && c.want != 0 || err != nil && f.Code != c.want {
			t.Errorf("%d %q: %v", c.status, c.says, err)
		}
		if seen.Load() != "OPTIONS * lab pass:word" {
			t.Errorf("it was asked %q", seen.Load())
		}
	}

	// One that does not answer is left alone for a while; one that refuses is not.
	now := time.Now()
	f := patient(serve(503, "postern"))
	f.now = func() time.Time { return now }
	asked.Store(0)
	for _, want := range []int32{1, 1, 2} {
		if err := f.Takes(t.Context(), "lab", "x"); err == nil || asked.Load() != want {
			t.Errorf("asked %d times, want %d: %v", asked.Load(), want, err)
		}
		now = now.Add(frontPause - time.Nanosecond)
	}
	f = patient(serve(407, "postern"))
	asked.Store(0)
	for range 3 {
		_ = f.Takes(t.Context(), "lab", "x")
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("one that refuses was asked %d times", n)
	}
}

// TestFrontThatIsNotThere asks where nobody listens, where somebody is silent, and for no time.
func TestFrontThatIsNotThere(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := NewFront(ln.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := silent.Takes(ctx, "lab", "x"); err == nil || silent.err != nil {
		t.Errorf("%v, remembered %v", err, silent.err)
	}
	silent.client.Timeout = 50 * time.Millisecond
	if f := wire.AsFailure(silent.Takes(t.Context(), "lab", "x"), wire.LegUnknown); f.Code != wire.CodeUnreachable || strings.Contains(f.Error(), "Options") {
		t.Errorf("silent: %v", f)
	}
	_ = ln.Close()
	if f := wire.AsFailure(patient(ln.Addr().String()).Takes(t.Context(), "lab", "x"), wire.LegUnknown); f.Code != wire.CodeUnreachable || !strings.Contains(f.Error(), "refused") {
		t.Errorf("nobody: %v", f)
	}
}
