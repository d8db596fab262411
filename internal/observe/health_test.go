package observe

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		var broken atomic.Bool
		var calls atomic.Int32
		h.Register("bus", func(context.Context) error {
			calls.Add(1)
			if broken.Load() {
				return errors.New("bus: not connected")
			}
			return nil
		})
		h.Register("data path", func(context.Context) error { time.Sleep(20 * time.Millisecond); return nil })

		get := func(path string, status int) (r Readiness) {
			t.Helper()
			res := httptest.NewRecorder()
			h.Handler().ServeHTTP(res, httptest.NewRequest("GET", path, nil))
			if res.Code != status {
				t.Errorf("%s answers %d: %s", path, res.Code, res.Body)
			}
			if path == "/readyz" {
				if err := json.Unmarshal(res.Body.Bytes(), &r); err != nil {
					t.Fatal(err)
				}
			}
			return r
		}
		want := Readiness{Ready: true, Checks: []CheckResult{{"bus", true, "", "0s"}, {"data path", true, "", "20ms"}}}
		if diff := cmp.Diff(want, get("/readyz", 200)); diff != "" {
			t.Errorf("ready (-want +got):\n%s", diff)
		}
		broken.Store(true)
		get("/readyz", 200) // a second has not passed
		if n := calls.Load(); n != 1 {
			t.Errorf("check ran %d times", n)
		}
		time.Sleep(checkMaxAge)
		want = Readiness{Checks: []CheckResult{{"bus", false, "bus: not connected", "0s"}, {"data path", true, "", "20ms"}}}
		if diff := cmp.Diff(want, get("/readyz", 503)); diff != "" {
			t.Errorf("not ready (-want +got):\n%s", diff)
		}
		get("/healthz", 200)
		broken.Store(false)
		time.Sleep(checkMaxAge)
		get("/readyz", 200)
		h.Drain()
		if r := get("/readyz", 503); !r.Draining {
			t.Errorf("draining: %+v", r)
		}
	})
}

func TestStarting(t *testing.T) {
	h := NewHealth()
	if r := h.Ready(t.Context()); r.Ready || !r.Starting {
		t.Errorf("without a check: %+v", r)
	}
	h.Register("x", func(context.Context) error { return nil })
	if r := h.Ready(t.Context()); !r.Ready || r.Starting {
		t.Errorf("with a check: %+v", r)
	}
}

func TestReadyTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		h.Register("stuck", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan Readiness, 1)
		go func() { done <- h.Ready(t.Context()) }()
		synctest.Wait()
		if r := h.Ready(impatient); r.Ready {
			t.Error("ready without a result")
		}
		if r := <-done; r.Ready || r.Checks[0].Duration != checkTimeout.String() {
			t.Errorf("ready = %+v", r)
		}
	})
}

func TestServer(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), l.Addr().String()); err == nil {
		t.Error("a busy port is no error")
	}
	reg := NewRegistry("agent", "v0")
	health := NewHealth()
	health.Register("x", func(context.Context) error { return nil })
	s := &Server{Listener: l, Registry: reg, Health: health, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, status := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200, "/": 404} {
		res, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Error(err)
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("%s answers %d, want %d", path, res.StatusCode, status)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
