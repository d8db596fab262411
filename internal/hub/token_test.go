package hub_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

const busKey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"

// request returns a token request that the hub grants, for a token.
func tokenRequest(t testing.TB, token string) api.TokenRequest {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return api.TokenRequest{
		SubjectToken: token, SubjectTokenType: api.TokenTypeJWT, Organization: "default", Role: "agent", Name: "edge", Replica: "r1",
		CSR: string(csr), BusKey: busKey, Version: "test",
	}
}

func TestExchange(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	for name, token := range map[string]string{"robot": f.robot("default", "bot").Token, "administrator": f.adminToken()} {
		req := tokenRequest(t, token)
		res, err := f.client("").Exchange(ctx, req)
		if err != nil {
			t.Fatal(name, err)
		}
		certs, err := identity.ParseCertificates([]byte(res.AccessToken))
		if err != nil {
			t.Fatal(name, err)
		}
		id, err := identity.CertificateID(certs[0])
		want := identity.ID{TrustDomain: f.state.TrustDomain(), Organization: "default", Role: identity.RoleAgent, Name: "edge", Replica: "r1"}
		if err != nil || id != want {
			t.Errorf("%s: ID %v, %v", name, id, err)
		}
		if life := time.Until(certs[0].NotAfter); life < 59*time.Minute || life > time.Hour {
			t.Errorf("%s: life of %s", name, life)
		}
		if back := time.Since(certs[0].NotBefore); back < time.Minute || back > 3*time.Minute {
			t.Errorf("%s: begins %s ago", name, back)
		}
		if res.BusToken != "default "+busKey+" agent edge r1 1h0m0s" || res.ExpiresIn != 3600 || res.TokenType != "N_A" ||
			res.IssuedTokenType != api.TokenTypeCredentials || res.CABundle != string(f.state.Authority().CertificatePEM()) ||
			res.TrustDomain != f.state.TrustDomain() || time.Since(res.HubTime).Abs() > 5*time.Second {
			t.Errorf("%s: response %+v", name, res)
		}
		if strings.Contains(f.log.String(), token) {
			t.Errorf("%s: the log holds the token", name)
		}
	}
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	used, err := f.admin.RobotTokens(ctx, "default", "bot")
	if err != nil || used[0].LastUsed.IsZero() {
		t.Errorf("last use not noted: %+v, %v", used, err)
	}
}

func TestExchangeRefused(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	good := f.robot("default", "bot").Token
	revoked := f.robot("default", "gone").Token
	if err := f.admin.DeleteRobot(ctx, "default", "gone"); err != nil {
		t.Fatal(err)
	}
	otherSigner, err := identity.NewTokenSigner("other.test")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := otherSigner.SignRobot(identity.RobotClaims{Organization: "default", Robot: "bot", AccessID: "1", IssuedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	unregistered, err := f.state.Tokens().SignRobot(identity.RobotClaims{Organization: "default", Robot: "bot", AccessID: "1", IssuedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	short, err := f.admin.CreateRobotToken(ctx, "default", "bot", api.CreateToken{Name: "short", ExpiresIn: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*api.TokenRequest)
		code   wire.Code
		text   string
	}{
		"no token":      {func(r *api.TokenRequest) { r.SubjectToken = "" }, wire.CodeUnauthenticated, "no token was sent"},
		"truncated":     {func(r *api.TokenRequest) { r.SubjectToken = good[:len(good)-10] }, wire.CodeUnauthenticated, "token"},
		"other hub's":   {func(r *api.TokenRequest) { r.SubjectToken = foreign }, wire.CodeUnauthenticated, "issued by another hub: other.test"},
		"revoked":       {func(r *api.TokenRequest) { r.SubjectToken = revoked }, wire.CodeUnauthenticated, "was revoked"},
		"unregistered":  {func(r *api.TokenRequest) { r.SubjectToken = unregistered }, wire.CodeUnauthenticated, "was revoked"},
		"expired":       {func(r *api.TokenRequest) { r.SubjectToken = short.Token; f.advance(2 * time.Minute) }, wire.CodeUnauthenticated, "by the hub's clock it is"},
		"type":          {func(r *api.TokenRequest) { r.SubjectTokenType = "urn:x" }, wire.CodeBadRequest, "type is missing or unknown"},
		"other org":     {func(r *api.TokenRequest) { r.Organization = "acme" }, wire.CodeDenied, "one of organization default and not of acme"},
		"no org":        {func(r *api.TokenRequest) { r.Organization = "" }, wire.CodeBadRequest, "organization"},
		"admin, no org": {func(r *api.TokenRequest) { r.SubjectToken = f.adminToken(); r.Organization = "none" }, wire.CodeDenied, "no organization none"},
		"hub role":      {func(r *api.TokenRequest) { r.Role = "hub" }, wire.CodeBadRequest, `role \"hub\"`},
		"bad name":      {func(r *api.TokenRequest) { r.Name = "a.b" }, wire.CodeBadRequest, "agent ID"},
		"wildcard":      {func(r *api.TokenRequest) { r.Replica = ">" }, wire.CodeBadRequest, "replica"},
		"no csr":        {func(r *api.TokenRequest) { r.CSR = "" }, wire.CodeBadRequest, "certificate request"},
		"bus checksum":  {func(r *api.TokenRequest) { r.BusKey = busKey[:55] + "5" }, wire.CodeBadRequest, "bus"},
		"long previous": {func(r *api.TokenRequest) { r.Previous = strings.Repeat("a", 41) }, wire.CodeBadRequest, "serial number"},
		"no serial":     {func(r *api.TokenRequest) { r.Previous = "../x" }, wire.CodeBadRequest, "serial number"},
		"bad bus key":   {func(r *api.TokenRequest) { r.BusKey = "A" + busKey[1:] }, wire.CodeBadRequest, "bus"},
	} {
		req := tokenRequest(t, good)
		tc.change(&req)
		_, err := f.client("").Exchange(ctx, req)
		wantFailure(t, name, err, tc.code, strings.ReplaceAll(tc.text, `\"`, `"`))
		f.advance(time.Minute) // the limit on failures is another test's
	}
	log := f.log.String()
	for name, secret := range map[string]string{"good": good, "revoked": revoked, "foreign": foreign, "unregistered": unregistered, "short": short.Token} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds the %s token", name)
		}
	}
	if !strings.Contains(log, "token refused") || !strings.Contains(log, "was revoked") {
		t.Errorf("refusals are not in the log:\n%s", log)
	}
}

func TestTokenFormErrors(t *testing.T) {
	f := newFixture(t)
	form := url.Values{
		"grant_type": {api.GrantTypeExchange}, "subject_token": {"secret-token"}, "subject_token_type": {api.TokenTypeJWT},
		"audience": {"default"}, "role": {"agent"}, "name": {"edge"}, "replica": {"r1"},
	}
	with := func(key string, values ...string) string {
		c := maps.Clone(form)
		c[key] = values
		return c.Encode()
	}
	for name, tc := range map[string]struct {
		path, kind, body string
		status           int
		code, text       string
	}{
		"not a form":   {"/v1/token", api.TypeJSON, "{}", 400, api.ErrorInvalidRequest, "not application/x-www-form-urlencoded"},
		"in the URL":   {"/v1/token?subject_token=secret-token", api.TypeForm, form.Encode(), 400, api.ErrorInvalidRequest, "ends up in logs"},
		"bad escape":   {"/v1/token", api.TypeForm, "subject_token=secret-token%zz", 400, api.ErrorInvalidRequest, "does not parse"},
		"twice":        {"/v1/token", api.TypeForm, with("audience", "default", "acme"), 400, api.ErrorInvalidRequest, "given twice"},
		"grant":        {"/v1/token", api.TypeForm, with("grant_type", "password"), 400, api.ErrorUnsupportedGrant, "token exchange"},
		"requested":    {"/v1/token", api.TypeForm, with("requested_token_type", "x"), 400, api.ErrorInvalidRequest, "only credentials"},
		"empty":        {"/v1/token", api.TypeForm, "", 400, api.ErrorUnsupportedGrant, ""},
		"long":         {"/v1/token", api.TypeForm, "x=" + strings.Repeat("y", 70<<10), 413, api.ErrorInvalidRequest, "longer than"},
		"wrong":        {"/v1/token", api.TypeForm, form.Encode(), 401, api.ErrorInvalidGrant, "malformed"},
		"admin prefix": {"/v1/token", api.TypeForm, with("subject_token", "postern-admin-x"), 401, api.ErrorInvalidGrant, "is switched off"},
	} {
		res, body := f.do("POST", tc.path, tc.kind, tc.body)
		var e api.TokenError
		if err := json.Unmarshal([]byte(body), &e); err != nil || res.StatusCode != tc.status || e.Code != tc.code ||
			!strings.Contains(e.Description+e.Hint, tc.text) || e.Leg != "hub" || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s, want %d %s with %q", name, res.StatusCode, body, tc.status, tc.code, tc.text)
		}
		if strings.Contains(body, "secret-token") || strings.Contains(f.log.String(), "secret-token") {
			t.Errorf("%s: the token is in the answer or the log", name)
		}
	}
}

func TestFailedAttemptsAreLimited(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	good := f.robot("default", "bot").Token
	bad := tokenRequest(t, "aa.bb.cc")
	limited := 0
	for range 30 {
		_, err := f.client("").Exchange(ctx, bad)
		var p *api.Problem
		if !asProblem(err, &p) {
			t.Fatal(err)
		}
		if p.Status == 429 {
			limited++
			if p.RetryAfter <= 0 || p.Code != api.ErrorSlowDown {
				t.Errorf("problem %+v", p)
			}
		}
	}
	if limited < 15 || limited > 20 {
		t.Errorf("%d of 30 failures were limited", limited)
	}
	if n := strings.Count(f.log.String(), "token refused"); n > 15 {
		t.Errorf("%d lines in the log", n)
	}
	if _, err := f.client("").Exchange(ctx, tokenRequest(t, good)); err != nil {
		t.Errorf("a good token from the same address: %v", err)
	}
	if _, err := f.client("wrong").Organizations(ctx); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("the API has another limit: %v", err)
	}
	f.advance(time.Minute)
	_, err := f.client("").Exchange(ctx, bad)
	wantFailure(t, "a minute later", err, wire.CodeUnauthenticated, "malformed")
}

func FuzzTokenRequest(f *testing.F) {
	f.Add("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c&audience=default")
	f.Add("a=1&a=2")
	f.Add("%zz")
	f.Add("")
	fix := newFixture(f)
	f.Fuzz(func(t *testing.T, body string) {
		w, r := recorded("POST", "/v1/token", api.TypeForm, body, netip.MustParseAddr("192.0.2.1"))
		fix.api.ServeHTTP(w, r)
		var e api.TokenError
		if w.Code < 400 || w.Code >= 500 || json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Code == "" {
			t.Fatalf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}
