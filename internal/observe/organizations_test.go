package observe

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestReadyOfSeveral asks a process with two organizations, one of which fails, in
// every way.
func TestReadyOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		get := func(query string) (r Readiness, status int) {
			t.Helper()
			time.Sleep(checkMaxAge)
			res := httptest.NewRecorder()
			h.Handler().ServeHTTP(res, httptest.NewRequest("GET", "/readyz"+query, nil))
			if res.Code != http.StatusNotFound {
				if err := json.Unmarshal(res.Body.Bytes(), &r); err != nil {
					t.Fatal(err)
				}
			}
			return r, res.Code
		}
		want := func(query string, want int) {
			t.Helper()
			if r, got := get(query); got != want {
				t.Errorf("/readyz%s: %d, want %d: %+v", query, got, want, r)
			}
		}
		good := func(context.Context) error { return nil }
		acme, globex := h.Organization("acme"), h.Organization("globex")
		if h.Organization("acme") != acme {
			t.Error("an organization has two healths")
		}
		want("", 503) // both are starting
		acme.Register("bus", good)
		globex.Register("membership", func(context.Context) error { return errors.New("revoked") })
		r, status := get("")
		if diff := cmp.Diff(Readiness{Ready: true, Checks: []CheckResult{}, Organizations: []Readiness{
			{Organization: "acme", Ready: true, Checks: []CheckResult{{"bus", true, "", "0s"}}},
			{Organization: "globex", Checks: []CheckResult{{"membership", false, "revoked", "0s"}}},
		}}, r); diff != "" || status != 200 {
			t.Errorf("%d, (-want +got):\n%s", status, diff)
		}
		want("?organization=acme", 200)
		want("?organization=globex", 503)
		want("?organization=initech", 404)
		want("?all", 503)

		globex.Unregister("membership", "unknown")
		want("?organization=globex", 503) // starting
		globex.Register("bus", good)
		want("?all", 200)

		acme.Drain()
		want("", 200)
		want("?all", 503)
		h.Drain()
		want("", 503)
	})
}

// TestRegistryOf serves the same set for two organizations.
func TestRegistryOf(t *testing.T) {
	r := NewRegistry("agent", "v1")
	for i, name := range []string{"acme", "globex"} {
		of := r.Of(name)
		m := NewMembership(of)
		m.Failed()
		if i == 0 {
			m.Served()
		}
		NewStreams(of).Opened(nil, time.Millisecond)
		NewPipes(of).Watch(func() int { return 3 }, func() int { return 4 + i })
		for _, m := range of.Metrics() {
			if len(m.Labels) == 0 || m.Labels[0] != "organization" {
				t.Errorf("%s is described with the labels %q", m.Name, m.Labels)
			}
		}
	}
	var none *Membership
	none.Failed()
	none.Served()
	res := httptest.NewRecorder()
	r.Handler().ServeHTTP(res, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`postern_organization_failed{organization="acme"} 0`,
		`postern_organization_failed{organization="globex"} 1`,
		`postern_organization_failures_total{organization="acme"} 1`,
		`postern_stream_opens_total{code="ok",leg="none",organization="globex"} 1`,
		`postern_pipes{organization="acme",state="busy"} 4`,
		`postern_pipes{organization="globex",state="busy"} 5`,
	} {
		if !strings.Contains(res.Body.String(), want+"\n") {
			t.Errorf("%s is missing:\n%s", want, res.Body)
		}
	}
}
