package hub_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// fixture is a hub's API over a registry in memory and a bus that is none.
type fixture struct {
	t        testing.TB
	state    *hub.State
	reg      *registry.Registry
	issued   *hub.Issued
	quotas   *hub.Quotas
	access   *hub.Access
	identity *issuer.Issuer
	api      *hub.API
	server   *httptest.Server
	admin    *api.Client
	log      *logBuffer
	mu       sync.Mutex
	running  map[string]bool
	broken   error // of start
	clock    time.Duration
	seen     []bus.Presence
	voided   []string // bus users that were revoked
	bounds   []string // of connections to the bus, as they were set
	records  []audit.Record
}

// Record implements audit.Recorder.
func (f *fixture) Record(r audit.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = append(f.records, r)
}

// wantRecord fails the test if none of what was recorded is as it should be.
func (f *fixture) wantRecord(what string, is func(audit.Record) bool) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.records, is) {
		f.t.Errorf("%s is not recorded: %+v", what, f.records)
	}
}

// logBuffer is a log that a test can read while others write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureWith(t, func(*fixture) *hub.SignIn { return nil })
}

// newFixtureWith makes a fixture in which people sign in.
func newFixtureWith(t testing.TB, newSignIn func(*fixture) *hub.SignIn) *fixture {
	t.Helper()
	f := &fixture{t: t, state: openState(t, t.TempDir(), hub.StateOptions{}), log: &logBuffer{}, running: map[string]bool{}}
	f.reg = registry.New(registry.NewMemory(), f.now)
	f.access = hub.NewAccess(f.reg, func(string) {}, slog.New(slog.DiscardHandler), f.now)
	orgs := hub.NewOrganizations(f.state, f.reg, f.start, f.stop)
	if err := orgs.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	health := observe.NewHealth()
	health.Register("test", func(context.Context) error { return nil })
	issued, err := hub.OpenIssued(t.Context(), registry.NewMemory(), f.reg, f, nil, f.now)
	if err != nil {
		t.Fatal(err)
	}
	f.issued = issued
	f.quotas = hub.NewQuotas(hub.QuotasConfig{
		Registry: f.reg, Bus: f, Log: slog.New(slog.NewTextHandler(f.log, nil)),
		Defaults: limit.Table{limit.Organization: {Streams: 100, Agents: 1000}, limit.Proxy: {Streams: 10}},
		Count:    func(org string) (agents, connections int) { return issued.Agents(org), 7 },
	})
	issued.Limit(f.quotas.Book())
	f.identity = openIdentity(t, f)
	signIn := newSignIn(f)
	issuers := oidc.NewVerifier(oidc.Options{Now: f.now})
	t.Cleanup(issuers.Close)
	f.api, err = hub.NewAPI(hub.APIOptions{
		State: f.state, Registry: f.reg, Authenticator: hub.NewAuthenticator(f.state, f.reg, signIn, f.now), Issuers: issuers, SignIn: signIn, Organizations: orgs, Issued: issued,
		Access: f.access, Quotas: f.quotas, Issuer: f.identity, Bus: f, Presence: f, Health: health, Version: "1.2.3", CredentialTTL: time.Hour,
		Log: slog.New(slog.NewTextHandler(f.log, nil)), Now: f.now, Audit: f, Flood: f,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewServer(f.api)
	t.Cleanup(f.server.Close)
	f.admin = f.client(f.adminToken())
	return f
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.clock)
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock += d
}

func (f *fixture) start(ctx context.Context, org string) error {
	if err := f.access.Open(ctx, org); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken == nil {
		f.running[org] = true
	}
	return f.broken
}

func (f *fixture) stop(org string) error {
	f.access.Forget(org)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.running, org)
	return nil
}

func (f *fixture) MintUser(org, userKey string, role identity.Role, name, replica string, ttl time.Duration) (string, error) {
	return fmt.Sprintf("%s %s %s %s %s %s", org, userKey, role, name, replica, ttl), nil
}

func (f *fixture) LimitConnections(org string, most int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bounds = append(f.bounds, fmt.Sprint(org, " ", most))
	return nil
}

func (f *fixture) RevokeUsers(_ string, keys ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.voided = append(f.voided, keys...)
	return nil
}

func (f *fixture) Presence(org string) []bus.Presence {
	if org != "default" {
		return nil
	}
	return f.seen
}

func (f *fixture) adminToken() string {
	f.t.Helper()
	b, err := os.ReadFile(f.state.AdminTokenFile())
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (f *fixture) client(token string) *api.Client {
	return &api.Client{BaseURL: f.server.URL, HTTP: f.server.Client(), Token: token}
}

// robot makes a robot with a token.
func (f *fixture) robot(org, robot string) api.NewToken {
	f.t.Helper()
	if _, err := f.admin.CreateRobot(f.t.Context(), org, api.CreateRobot{Name: robot}); err != nil && !api.IsExists(err) {
		f.t.Fatal(err)
	}
	tok, err := f.admin.CreateRobotToken(f.t.Context(), org, robot, api.CreateToken{Name: "one"})
	if err != nil {
		f.t.Fatal(err)
	}
	return tok
}

// wantFailure checks that an error is a failure of the hub's leg.
func wantFailure(t *testing.T, what string, err error, code wire.Code, text string) {
	t.Helper()
	var f *wire.Failure
	if !errors.As(err, &f) || f.Leg != wire.LegHub || f.Code != code || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v, want code %s and %q", what, err, code, text)
	}
}

func TestOrganizationsAPI(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if !f.running["acme"] || !f.running["default"] {
		t.Errorf("served: %v", f.running)
	}
	got, err := f.admin.Organizations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Organization{{Name: "acme"}, {Name: "default"}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(api.Organization{}, "Created")); diff != "" {
		t.Error(diff)
	}
	_, err = f.admin.CreateOrganization(ctx, "acme")
	wantFailure(t, "twice", err, wire.CodeBadRequest, "exists already")
	if !api.IsExists(err) {
		t.Errorf("IsExists(%v) is false", err)
	}
	_, err = f.admin.CreateOrganization(ctx, "Not A Name")
	wantFailure(t, "bad name", err, wire.CodeBadRequest, "1 to 63 characters")

	f.robot("acme", "bot")
	wantFailure(t, "with robots", f.admin.DeleteOrganization(ctx, "acme", false), wire.CodeBadRequest, "still has robots")
	wantFailure(t, "default", f.admin.DeleteOrganization(ctx, "default", false), wire.CodeBadRequest, "--force")
	if err := f.admin.DeleteOrganization(ctx, "acme", true); err != nil {
		t.Error(err)
	}
	if f.running["acme"] {
		t.Error("a deleted organization is served")
	}
	if err := f.admin.DeleteOrganization(ctx, "acme", true); !api.IsNotFound(err) {
		t.Errorf("delete again: %v", err)
	}

	f.broken = errors.New("secret detail")
	_, err = f.admin.CreateOrganization(ctx, "late")
	wantFailure(t, "bus broken", err, wire.CodeInternal, "see the hub's log")
	if strings.Contains(err.Error(), "secret detail") || !strings.Contains(f.log.String(), "secret detail") {
		t.Errorf("details of our errors belong into the log only: %v", err)
	}
	f.broken = nil
	if _, err = f.admin.CreateOrganization(ctx, "late"); err != nil {
		t.Errorf("create after a failure: %v", err)
	}
}

func TestRobotsAPI(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if all, err := f.admin.Robots(ctx, "default"); err != nil || all == nil || len(all) != 0 {
		t.Errorf("no robots: %v, %v", all, err)
	}
	_, err := f.admin.CreateRobot(ctx, "none", api.CreateRobot{Name: "bot"})
	if !api.IsNotFound(err) {
		t.Errorf("robot without organization: %v", err)
	}
	tok := f.robot("default", "bot")
	if tok.AccessID == "" || strings.Count(tok.Token, ".") != 2 {
		t.Errorf("token %+v", tok)
	}
	_, err = f.admin.CreateRobotToken(ctx, "default", "bot", api.CreateToken{Name: "one"})
	if !api.IsExists(err) {
		t.Errorf("token twice: %v", err)
	}
	_, err = f.admin.CreateRobotToken(ctx, "default", "bot", api.CreateToken{Name: "two", ExpiresIn: -1})
	wantFailure(t, "negative life", err, wire.CodeBadRequest, "at most ten years")
	_, err = f.admin.CreateRobot(ctx, "default", api.CreateRobot{Name: "x", Description: strings.Repeat("x", 2000)})
	wantFailure(t, "long description", err, wire.CodeBadRequest, "too long")

	got, err := f.admin.RobotTokens(ctx, "default", "bot")
	want := []api.RobotToken{{Organization: "default", Robot: "bot", Name: "one", AccessID: tok.AccessID}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(api.RobotToken{}, "Created")); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if err := f.admin.DeleteRobotToken(ctx, "default", "bot", "one"); err != nil {
		t.Error(err)
	}
	if err := f.admin.DeleteRobotToken(ctx, "default", "bot", "one"); !api.IsNotFound(err) {
		t.Errorf("delete again: %v", err)
	}
	if err := f.admin.DeleteRobot(ctx, "default", "bot"); err != nil {
		t.Error(err)
	}
	if strings.Contains(f.log.String(), tok.Token) {
		t.Error("the log holds a token")
	}
}

func TestOnlyTheAdministratorAdministrates(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	robot := f.client(f.robot("default", "bot").Token)
	for name, c := range map[string]*api.Client{"robot": robot, "nobody": f.client(""), "wrong": f.client("wrong")} {
		code := wire.CodeUnauthenticated
		if name == "robot" {
			code = wire.CodeDenied
		}
		_, err := c.Users(ctx)
		wantFailure(t, name, err, code, "token")
		_, err = c.CreateRobotToken(ctx, "default", "bot", api.CreateToken{Name: "more"})
		wantFailure(t, name, err, code, "token")
		wantFailure(t, name, c.DeleteOrganization(ctx, "default", true), code, "token")
	}
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if all, err := robot.Organizations(ctx); err != nil || len(all) != 1 || all[0].Name != "default" {
		t.Errorf("a robot sees organizations %v, %v; want its own", all, err)
	}
}

func TestAgentsAPI(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	since := time.Now().UTC().Truncate(time.Second)
	f.seen = []bus.Presence{
		{Agent: "edge", Replica: "b", State: bus.StateReady, Since: since, RTT: 1500 * time.Microsecond, Streams: 3},
		{Agent: "core", Replica: "a", State: bus.StateLost, Since: since},
		{Agent: "edge", Replica: "a", State: bus.StateDraining, Since: since, LastError: "tcp: refused", LastErrorAt: since},
	}
	want := []api.Agent{
		{ID: "core", Organization: "default", State: "lost", Replicas: []api.Replica{{Agent: "core", Name: "a", State: "lost", Since: since}}},
		{ID: "edge", Organization: "default", State: "ready", Replicas: []api.Replica{
			{Agent: "edge", Name: "a", State: "draining", Since: since, LastError: "tcp: refused", LastErrorAt: since},
			{Agent: "edge", Name: "b", State: "ready", Since: since, RTTMillis: 1.5, Streams: 3},
		}},
	}
	robot := f.client(f.robot("default", "bot").Token)
	for name, c := range map[string]*api.Client{"administrator": f.admin, "robot": robot} {
		for i := range want { // a new organization lets its robots in
			if want[i].Gateway = ""; name == "robot" {
				want[i].Gateway = api.VerdictAllowed
			}
		}
		got, err := c.Agents(ctx, "default")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		one, err := c.Agent(ctx, "default", "edge")
		if diff := cmp.Diff(want[1], one); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if _, err := c.Agent(ctx, "default", "none"); !api.IsNotFound(err) || !strings.Contains(err.Error(), "no agent none is connected") {
			t.Errorf("%s: unknown agent: %v", name, err)
		}
	}
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	_, err := robot.Agents(ctx, "acme")
	wantFailure(t, "other organization", err, wire.CodeDenied, `may not see organization "acme"`)
	if _, err := f.admin.Agents(ctx, "none"); !api.IsNotFound(err) {
		t.Errorf("unknown organization: %v", err)
	}
	if all, err := f.admin.Agents(ctx, "acme"); err != nil || len(all) != 0 {
		t.Errorf("empty organization: %v, %v", all, err)
	}
}

func TestOpenEndpoints(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	c := f.client("")
	ca, err := c.CA(ctx)
	if err != nil || !bytes.Equal(ca, f.state.Authority().CertificatePEM()) {
		t.Errorf("CA: %q, %v", ca, err)
	}
	v, err := c.HubVersion(ctx)
	if want := (api.HubVersion{Version: "1.2.3", API: "v1", TrustDomain: f.state.TrustDomain()}); err != nil || v != want {
		t.Errorf("version: %+v, %v", v, err)
	}
}

// do makes a raw request and returns its status, header and body.
func (f *fixture) do(method, path, kind, body string, header ...string) (*http.Response, string) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.server.URL+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := f.server.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return res, string(b)
}

func TestRawRequests(t *testing.T) {
	f := newFixture(t)
	bearer := "Bearer " + f.adminToken()
	orgs := api.PathOrganizations
	for name, tc := range map[string]struct {
		method, path, kind, body, auth string
		status                         int
		text                           string
	}{
		"no such path":    {"GET", "/v1/nothing", "", "", "", 404, "no such path"},
		"root":            {"GET", "/", "", "", "", 404, "no such path"},
		"wrong method":    {"PUT", orgs, "", "", bearer, 405, "GET, HEAD, POST"},
		"not JSON":        {"POST", orgs, "text/plain", "name", bearer, 415, "not application/json"},
		"broken JSON":     {"POST", orgs, api.TypeJSON, `{"name":`, bearer, 400, "cannot be read"},
		"unknown field":   {"POST", orgs, api.TypeJSON, `{"name":"a","extra":1}`, bearer, 400, "extra"},
		"two values":      {"POST", orgs, api.TypeJSON, `{"name":"a"}{}`, bearer, 400, "after its JSON"},
		"long body":       {"POST", orgs, api.TypeJSON, `{"name":"` + strings.Repeat("a", 70<<10) + `"}`, bearer, 413, "longer than 65536"},
		"basic auth":      {"GET", orgs, "", "", "Basic YTpi", 401, "no token"},
		"escaped slash":   {"DELETE", orgs + "/a%2Fb", "", "", bearer, 400, "1 to 63"},
		"health":          {"GET", "/healthz", "", "", "", 200, "ok"},
		"ready":           {"GET", "/readyz", "", "", "", 200, `"ready":true`},
		"ready, bad auth": {"GET", "/readyz", "", "", "Bearer x", 401, "JWT"},
	} {
		res, body := f.do(tc.method, tc.path, tc.kind, tc.body, "Authorization", tc.auth)
		if res.StatusCode != tc.status || !strings.Contains(body, tc.text) {
			t.Errorf("%s: %d %s, want %d with %q", name, res.StatusCode, body, tc.status, tc.text)
		}
		if tc.status < 400 {
			continue
		}
		var p api.Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil || res.Header.Get("Content-Type") != api.TypeProblem ||
			p.Status != tc.status || p.Leg != "hub" || p.Title == "" || p.Code == "" {
			t.Errorf("%s: not a problem: %s %s", name, res.Header.Get("Content-Type"), body)
		}
		if tc.status == 401 && res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", name)
		}
	}
}

func TestReadyTellsStrangersLittle(t *testing.T) {
	f := newFixture(t)
	health := observe.NewHealth()
	health.Register("store", func(context.Context) error { return errors.New("disk on fire") })
	var err error
	f.api, err = hub.NewAPI(hub.APIOptions{
		State: f.state, Registry: f.reg, Authenticator: hub.NewAuthenticator(f.state, f.reg, nil, nil), Health: health, CredentialTTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server.Config.Handler = f.api
	res, body := f.do("GET", "/readyz", "", "")
	if res.StatusCode != 503 || strings.Contains(body, "fire") {
		t.Errorf("stranger: %d %s", res.StatusCode, body)
	}
	res, body = f.do("GET", "/readyz", "", "", "Authorization", "Bearer "+f.adminToken())
	if res.StatusCode != 503 || !strings.Contains(body, "fire") {
		t.Errorf("administrator: %d %s", res.StatusCode, body)
	}
}

func asProblem(err error, p **api.Problem) bool { return errors.As(err, p) }

// recorded returns a recorder and a request as from addr.
func recorded(method, path, kind, body string, addr netip.Addr) (*httptest.ResponseRecorder, *http.Request) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", kind)
	r.RemoteAddr = netip.AddrPortFrom(addr, 1).String()
	return httptest.NewRecorder(), r
}
