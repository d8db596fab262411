package kubestatus

import (
	"encoding/json"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/wire"
)

func TestAnswer(t *testing.T) {
	t.Parallel()
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/api", nil)
	r.Header["Accept"] = []string{"application/json, */*"}
	Of(wire.Fail(wire.LegAgent, wire.CodeDraining, `replica "a" is <shutting> down`).WithHint("try again")).Answer(w, r)
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "reason": "ServiceUnavailable",
		"message": `agent: replica "a" is <shutting> down (try again)`, "details": map[string]any{"retryAfterSeconds": 1.0}, "code": 503.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if w.Code != 503 || w.Header().Get("Retry-After") != "1" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d, %v", w.Code, w.Header())
	}
}

// TestAnswerToDiscovery: what a client of client-go shows to people when it begins.
func TestAnswerToDiscovery(t *testing.T) {
	t.Parallel()
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/api", nil)
	r.Header["Accept"] = []string{"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"}
	Of(wire.Fail(wire.LegAgent, wire.CodeOverloaded, "<too> much").WithHint("wait")).Answer(w, r)
	h := w.Header()
	if w.Code != 429 || w.Body.String() != "agent: <too> much (wait)\n" || h.Get("Content-Type") != "text/plain; charset=utf-8" ||
		h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Retry-After") != "1" {
		t.Errorf("got %d, %v, %s", w.Code, h, w.Body)
	}
}

// TestCodes holds the codes that clients tell failures apart by.
func TestCodes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		leg    wire.Leg
		code   wire.Code
		want   int
		reason string
	}{
		{wire.LegClient, wire.CodeBadRequest, 400, "BadRequest"},
		{wire.LegHub, wire.CodeUnauthenticated, 401, "Unauthorized"},
		{wire.LegPolicy, wire.CodeDenied, 403, "Forbidden"},
		{wire.LegDNS, wire.CodeNameNotFound, 404, "NotFound"},
		{wire.LegHub, wire.CodeOverloaded, 429, "TooManyRequests"},
		{wire.LegHub, wire.CodeInternal, 500, "InternalError"},
		{wire.LegTarget, wire.CodeInternal, 502, ""},
		{wire.LegTCP, wire.CodeRefused, 502, ""},
		{wire.LegRelay, wire.CodeLost, 502, ""},
		{wire.LegHub, wire.CodeNoAgent, 503, "ServiceUnavailable"},
		{wire.LegTCP, wire.CodeTimeout, 504, "Timeout"},
		{wire.LegUnknown, wire.Code(9999), 502, ""},
	} {
		s := Of(wire.Fail(tt.leg, tt.code, "x"))
		if s.Code != tt.want || reason(s.Code) != tt.reason {
			t.Errorf("%s, %s: got %d %q, want %d %q", tt.leg, tt.code, s.Code, reason(s.Code), tt.want, tt.reason)
		}
	}
}
