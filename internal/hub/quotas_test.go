package hub_test

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

func TestLimitsAPI(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.SetLimits(ctx, "acme", api.LevelOrganization, "", limit.Limits{Streams: 5, Connections: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.SetLimits(ctx, "acme", api.LevelProxy, "ci", limit.Limits{Streams: 3}); err != nil {
		t.Fatal(err)
	}
	got, err := f.admin.SetLimits(ctx, "acme", api.LevelProxy, "ci", limit.Limits{Opens: limit.Unlimited}) // streams stay
	want := []api.PartyLimits{
		{
			Organization: "acme", Level: "organization", Set: limit.Limits{Streams: 5, Connections: 9},
			Limits: limit.Limits{Streams: 5, Agents: 1000, Connections: 9}, Connections: 7,
		},
		{
			Organization: "acme", Level: "proxy", Name: "ci", Set: limit.Limits{Streams: 3, Opens: limit.Unlimited},
			Limits: limit.Limits{Streams: 3, Opens: limit.Unlimited},
		},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, difference:\n%s", err, diff)
	}
	if f.bounds[len(f.bounds)-1] != "acme 9" {
		t.Errorf("the bus was told %q", f.bounds)
	}
	var d orders.Document
	f.quotas.Order("acme", "edge", &d)
	if text := `{"agent":{},"proxy":{"streams":10},"proxies":{"ci":{"streams":3,"opensPerSecond":"unlimited"}}}`; string(d.Limits) != text {
		t.Errorf("orders %s", d.Limits)
	}

	// A hub that starts again finds what was set; another organization has nothing of it.
	again := hub.NewQuotas(hub.QuotasConfig{Registry: f.reg, Bus: f})
	if err := errors.Join(again.Open(ctx, "acme"), again.Open(ctx, "default")); err != nil {
		t.Fatal(err)
	}
	if l := again.Book().Limits(limit.Key{Level: limit.Proxy, Organization: "acme", Name: "ci"}); l != want[1].Set {
		t.Errorf("after a restart: %+v", l)
	}
	if all := again.Book().Usage("default"); len(all) != 1 || all[0].Own != (limit.Limits{}) {
		t.Errorf("the other organization: %+v", all)
	}

	if err := f.admin.RemoveLimits(ctx, "acme", api.LevelProxy, "ci"); err != nil {
		t.Fatal(err)
	}
	if got, err := f.admin.Limits(ctx, "acme"); err != nil || len(got) != 1 {
		t.Errorf("after the removal: %+v, %v", got, err)
	}
	for name, tc := range map[string]struct {
		org, level, name string
		l                limit.Limits
		code             wire.Code
		text             string
	}{
		"organization": {"nowhere", api.LevelOrganization, "", limit.Limits{Streams: 1}, wire.CodeBadRequest, "not found"},
		"level":        {"acme", "robot", "x", limit.Limits{Streams: 1}, wire.CodeBadRequest, "want agent or proxy"},
		"name":         {"acme", api.LevelAgent, "No.Name", limit.Limits{Streams: 1}, wire.CodeBadRequest, "agent ID"},
		"nothing":      {"acme", api.LevelAgent, "x", limit.Limits{}, wire.CodeBadRequest, "no limit is given"},
		"kind":         {"acme", api.LevelAgent, "x", limit.Limits{Agents: 1}, wire.CodeBadRequest, "only an organization"},
		"value":        {"acme", api.LevelAgent, "x", limit.Limits{Bytes: 1}, wire.CodeBadRequest, "at least"},
	} {
		_, err := f.admin.SetLimits(ctx, tc.org, tc.level, tc.name, tc.l)
		wantFailure(t, name, err, tc.code, tc.text)
	}

	// An organization of the same name does not inherit.
	if err := f.admin.DeleteOrganization(ctx, "acme", true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if all, err := f.reg.Limits(ctx, "acme"); err != nil || len(all) != 0 {
		t.Errorf("a new organization has %+v, %v", all, err)
	}
}

// TestAgentsOfAnOrganizationAreBounded enrols one agent too many.
func TestAgentsOfAnOrganizationAreBounded(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.SetLimits(ctx, "default", api.LevelOrganization, "", limit.Limits{Agents: 2}); err != nil {
		t.Fatal(err)
	}
	token := f.robot("default", "bot").Token
	enrol := func(role, name string) error {
		req := tokenRequest(t, token)
		public, _, err := bus.NewUserKey()
		if err != nil {
			t.Fatal(err)
		}
		req.Role, req.Name, req.BusKey = role, name, public
		_, err = f.client("").Exchange(ctx, req)
		return err
	}
	for _, one := range [][2]string{{"agent", "a"}, {"agent", "b"}, {"agent", "a"}, {"proxy", "p"}} {
		if err := enrol(one[0], one[1]); err != nil {
			t.Fatal(one, err)
		}
	}
	err := enrol("agent", "c")
	wantFailure(t, "third agent", err, wire.CodeOverloaded, "organization default has reached its limit of 2 agents")
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != http.StatusTooManyRequests || p.RetryAfter <= 0 {
		t.Errorf("problem %+v", p)
	}
	if all, err := f.admin.Limits(ctx, "default"); err != nil || all[0].Agents != 2 || all[0].Refusals["agents"] != 1 {
		t.Errorf("told: %+v, %v", all, err)
	}
	// Whose credentials are revoked makes room.
	if err := f.admin.DeleteRobot(ctx, "default", "bot"); err != nil {
		t.Fatal(err)
	}
	token = f.robot("default", "next").Token
	if err := enrol("agent", "c"); err != nil {
		t.Errorf("after the revocation: %v", err)
	}
}

// TestExchangesArePaced asks for credentials as fast as it goes. Another organization
// does not notice.
func TestExchangesArePaced(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	n := 0
	issue := func(org string) error {
		n++
		return f.issued.Issue(ctx, hub.Issuance{
			Ground: registry.Ground{Organization: org, Kind: registry.GroundAdmin}, Serial: strconv.Itoa(n),
			ID: fmt.Sprintf("spiffe://hub.test/org/%s/proxy/p/r%d", org, n), BusKey: "U" + strconv.Itoa(n), Expires: f.now().Add(time.Hour),
		})
	}
	issued := 0
	var err error
	for err == nil && issued < 20_000 {
		if err = issue("acme"); err == nil {
			issued++
		}
	}
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != http.StatusTooManyRequests || issued < 1000 {
		t.Fatalf("after %d: %v", issued, err)
	}
	if err := issue("default"); err != nil {
		t.Errorf("another organization: %v", err)
	}
	f.advance(time.Second)
	if err := issue("acme"); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

// TestAdministratorsCannotFillTheRegistry makes tokens until there are enough.
func TestAdministratorsCannotFillTheRegistry(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	f.robot("default", "bot")
	var err error
	for i := 0; err == nil && i < 200; i++ {
		_, err = f.admin.CreateRobotToken(ctx, "default", "bot", api.CreateToken{Name: "t" + strconv.Itoa(i)})
	}
	wantFailure(t, "tokens", err, wire.CodeBadRequest, "there are 100 already")
}

// TestLimitsAreAudited: the audit log names the party whose limits were changed.
func TestLimitsAreAudited(t *testing.T) {
	f := newFixture(t)
	if _, err := f.admin.SetLimits(t.Context(), "default", api.LevelAgent, "edge", limit.Limits{Streams: 5}); err != nil {
		t.Fatal(err)
	}
	f.wantRecord("the change", func(r audit.Record) bool { return r.Action == audit.Change && r.OK && r.Object == "limit:agent/edge" })
}
