package api_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a Client of a server that answers as f does.
func client(t *testing.T, f http.HandlerFunc) *api.Client {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return &api.Client{BaseURL: s.URL, HTTP: s.Client(), Token: "secret"}
}

func TestErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		kind, body string
		code       wire.Code
		text, hint string
	}{
		"problem": {
			403, api.TypeProblem, `{"title":"Forbidden","status":403,"detail":"no","hint":"ask"}`, wire.CodeDenied, "no", "ask",
		},
		"OAuth":            {401, api.TypeJSON, `{"error":"invalid_grant","error_description":"bad","hint":"new"}`, wire.CodeUnauthenticated, "bad", "new"},
		"broken problem":   {400, api.TypeProblem, `{"title":`, wire.CodeBadRequest, "400 Bad Request", ""},
		"something else":   {502, "text/html", "<html>", wire.CodeInternal, "not a hub's", "check that the URL is a hub's"},
		"redirect":         {302, "text/html", "", wire.CodeInternal, "302 Found", "check"},
		"captive portal":   {200, "text/html", "<html>", wire.CodeProtocol, "could not be read", "is a hub"},
		"too many":         {429, api.TypeJSON, `{"error":"slow_down"}`, wire.CodeOverloaded, "429", ""},
		"time out":         {504, api.TypeProblem, `{}`, wire.CodeTimeout, "504", ""},
		"lying status":     {404, api.TypeProblem, `{"status":200,"detail":"gone"}`, wire.CodeBadRequest, "gone", ""},
		"teapot, no words": {418, api.TypeJSON, `null`, wire.CodeBadRequest, "418", ""},
	} {
		c := client(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer secret" {
				t.Errorf("%s: Authorization %q", name, r.Header.Get("Authorization"))
			}
			w.Header().Set("Content-Type", tc.kind)
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(tc.status)
			_, _ = w.Write([]byte(tc.body))
		})
		c.HTTP.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		_, err := c.Organizations(t.Context())
		var f *wire.Failure
		if !errors.As(err, &f) || f.Leg != wire.LegHub || f.Code != tc.code || !strings.Contains(f.Text, tc.text) || !strings.Contains(f.Hint, tc.hint) {
			t.Errorf("%s: %v", name, err)
		}
		var p *api.Problem
		if errors.As(err, &p) && (p.Status != tc.status || p.RetryAfter != 7*time.Second || p.HubTime.IsZero()) {
			t.Errorf("%s: problem %+v", name, p)
		}
	}
}

func TestTransportFailures(t *testing.T) {
	block := make(chan struct{})
	c := client(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(block) })
	wantCode := func(what string, err error, leg wire.Leg, code wire.Code) {
		t.Helper()
		var f *wire.Failure
		if !errors.As(err, &f) || f.Leg != leg || f.Code != code {
			t.Errorf("%s: %v", what, err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.HubVersion(late)
	wantCode("time-out", err, wire.LegHub, wire.CodeTimeout)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.HubVersion(ended)
	wantCode("canceled", err, wire.LegHub, wire.CodeCanceled)

	c.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("broken") })}
	_, err = c.Exchange(t.Context(), api.TokenRequest{SubjectToken: "secret"})
	wantCode("broken", err, wire.LegHub, wire.CodeLost)
	if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), c.BaseURL) {
		t.Errorf("error says too much: %v", err)
	}
	c.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return nil, wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "wrong pin")
	})}
	_, err = c.HubVersion(t.Context())
	wantCode("leg of the uplink", err, wire.LegTLS, wire.CodeWrongPeer)
	c.BaseURL = "https://a b"
	_, err = c.HubVersion(t.Context())
	wantCode("bad URL", err, wire.LegHub, wire.CodeBadRequest)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLongAnswerIsNotRead(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 1<<20)
		for range 32 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if _, err := c.CA(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error %v", err)
	}
}

func TestPathsAreEscaped(t *testing.T) {
	var got []string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.EscapedPath()+"?"+r.URL.RawQuery)
		w.Header().Set("Content-Type", api.TypeJSON)
		_, _ = w.Write([]byte("{}"))
	})
	ctx := t.Context()
	_ = c.DeleteOrganization(ctx, "../a", true)
	_ = c.DeleteRobotToken(ctx, "o", "r/x", "t?y")
	_, _ = c.Agent(ctx, "a&b", "x y")
	want := []string{
		"DELETE /v1/organizations/..%2Fa?force=true", "DELETE /v1/organizations/o/robots/r%2Fx/tokens/t%3Fy?", "GET /v1/agents/x%20y?organization=a%26b",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}
