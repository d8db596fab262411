package hub_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/wire"
)

const identityURL = "https://id.example.org"

// openIdentity opens the issuer of a fixture.
func openIdentity(t testing.TB, f *fixture) *issuer.Issuer {
	t.Helper()
	keys, err := issuer.OpenKeys(issuer.Place{Own: f.state.Path("issuer")})
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuer.Open(issuer.Config{
		URL: identityURL, Keys: keys, Schedule: issuer.Schedule{Ahead: time.Hour}, Type: issuer.ECDSAP256, Now: f.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// jwks returns the keys of the fixture's issuer, as a relying party sees them.
func (f *fixture) jwks() []byte {
	f.t.Helper()
	w := &recorder{header: http.Header{}}
	r, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "/.well-known/jwks", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	f.identity.ServeHTTP(w, r)
	return w.body
}

type recorder struct {
	header http.Header
	body   []byte
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Write(b []byte) (int, error) { r.body = append(r.body, b...); return len(b), nil }

// TestIdentityTokens asks for tokens as an operator does, and verifies them.
func TestIdentityTokens(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	robot := f.robot("default", "operator")
	c := f.client(robot.Token)
	ask := api.CreateIdentityToken{ControlPlane: "prod-1", Provider: "provider-aws", Audiences: []string{"sts.amazonaws.com"}}
	_, err := c.CreateIdentityToken(ctx, "default", ask)
	wantFailure(t, "without the right", err, wire.CodeDenied, "robot:operator may not speak for control plane prod-1, for none")
	if !strings.Contains(err.Error(), "postern robot identity-for operator prod-1 -a default") {
		t.Errorf("no hint: %v", err)
	}
	if r, err := f.admin.SetIdentityFor(ctx, "default", "operator", []string{"prod-*", "eu/main/*"}); err != nil || !slices.Equal(r.IdentityFor, []string{"prod-*", "eu/main/*"}) {
		t.Fatal(r, err)
	}
	token, err := c.CreateIdentityToken(ctx, "default", ask)
	if err != nil {
		t.Fatal(err)
	}
	if token.Subject != "mcp:default/prod-1:provider:provider-aws" || token.Expires.Sub(token.IssuedAt) != time.Hour {
		t.Errorf("%+v", token)
	}
	v := oidc.NewVerifier(oidc.Options{Now: f.now})
	claims, err := v.Verify(ctx, oidc.Issuer{URL: identityURL, Audiences: ask.Audiences, Keys: f.jwks()}, token.Token)
	if err != nil || claims.Subject != token.Subject || claims.ID != token.ID {
		t.Errorf("%+v, %v", claims, err)
	}
	ask.ControlPlane = "eu/main/prod-2"
	if token, err = c.CreateIdentityToken(ctx, "default", ask); err != nil || token.Subject != "mcp:default/eu/main/prod-2:provider-aws" {
		t.Errorf("%+v, %v", token, err)
	}
	// What was made is recorded: for whom, and never the token.
	f.wantRecord("the token", func(r audit.Record) bool {
		return r.OK && r.Organization == "default" && r.Actor.String() == "robot:operator" && r.Object == "identity-token:"+token.ID &&
			strings.Contains(r.What, token.Subject) && strings.Contains(r.What, "sts.amazonaws.com")
	})
	f.wantRecord("the refusal", func(r audit.Record) bool {
		return !r.OK && r.Code == "denied" && r.Object == "identity-token" && strings.Contains(r.What, "prod-1")
	})
	f.wantRecord("the right", func(r audit.Record) bool { return r.OK && r.What == "may speak for prod-*, eu/main/*" })
	f.mu.Lock()
	for _, r := range f.records {
		if strings.Contains(r.What+r.Object+r.Reason, token.Token[:40]) {
			t.Errorf("a token is recorded: %+v", r)
		}
	}
	f.mu.Unlock()
	if strings.Contains(f.log.String(), token.Token[:40]) {
		t.Error("a token is in the log")
	}
	// The right goes, and so do tokens.
	if _, err := f.admin.SetIdentityFor(ctx, "default", "operator", nil); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateIdentityToken(ctx, "default", ask)
	wantFailure(t, "after the right went", err, wire.CodeDenied, "may not speak for")
	if all, err := f.admin.Robots(ctx, "default"); err != nil || len(all) != 1 || all[0].IdentityFor != nil {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestIdentityTokenRefusals asks as everybody who shall not have one.
func TestIdentityTokenRefusals(t *testing.T) {
	p := newPeopled(t, nil)
	f, ctx := p.fixture, t.Context()
	for _, org := range []string{"acme", "evil"} {
		if _, err := f.admin.CreateOrganization(ctx, org); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.admin.CreateRobot(ctx, "acme", api.CreateRobot{Name: "operator", IdentityFor: []string{"prod"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.CreateRobot(ctx, "evil", api.CreateRobot{Name: "operator", IdentityFor: []string{"*", "*/*/*"}}); err != nil {
		t.Fatal(err)
	}
	robot, mallory := f.robot("acme", "operator").Token, f.robot("evil", "operator").Token
	p.grant("acme", "owner", "user:ann@example.org")
	good := api.CreateIdentityToken{ControlPlane: "prod", Provider: "aws"}
	if _, err := f.client(robot).CreateIdentityToken(ctx, "acme", good); err != nil {
		t.Fatal(err)
	}
	for name, one := range map[string]struct {
		token, org string
		change     func(*api.CreateIdentityToken)
		code       wire.Code
	}{
		"administrator":          {f.adminToken(), "acme", nil, wire.CodeDenied},
		"an owner":               {p.user("ann@example.org").Token, "acme", nil, wire.CodeDenied},
		"of another tenant":      {mallory, "acme", nil, wire.CodeDenied},
		"for another tenant":     {robot, "evil", nil, wire.CodeDenied},
		"for no tenant":          {robot, "nowhere", nil, wire.CodeDenied},
		"another control plane":  {robot, "acme", func(q *api.CreateIdentityToken) { q.ControlPlane = "prod2" }, wire.CodeDenied},
		"the scoped form":        {robot, "acme", func(q *api.CreateIdentityToken) { q.ControlPlane = "a/b/prod" }, wire.CodeDenied},
		"a smuggled provider":    {robot, "acme", func(q *api.CreateIdentityToken) { q.ControlPlane = "prod:provider:admin" }, wire.CodeBadRequest},
		"a smuggled scope":       {robot, "acme", func(q *api.CreateIdentityToken) { q.Provider = "a:b" }, wire.CodeBadRequest},
		"a smuggled path":        {robot, "acme", func(q *api.CreateIdentityToken) { q.Provider = "a/b" }, wire.CodeBadRequest},
		"a pattern":              {robot, "acme", func(q *api.CreateIdentityToken) { q.ControlPlane = "pro*" }, wire.CodeBadRequest},
		"no provider":            {robot, "acme", func(q *api.CreateIdentityToken) { q.Provider = "" }, wire.CodeBadRequest},
		"an audience with space": {robot, "acme", func(q *api.CreateIdentityToken) { q.Audiences = []string{"a b"} }, wire.CodeBadRequest},
	} {
		q := good
		if one.change != nil {
			one.change(&q)
		}
		_, err := f.client(one.token).CreateIdentityToken(ctx, one.org, q)
		wantFailure(t, name, err, one.code, "")
	}
	// Who may not administer gives nobody the right.
	viewer := p.user("viewer@example.org").Token
	p.grant("acme", "operator", "user:viewer@example.org")
	for name, token := range map[string]string{"a robot itself": robot, "an operator": viewer, "another tenant's robot": mallory} {
		_, err := f.client(token).SetIdentityFor(ctx, "acme", "operator", []string{"*"})
		wantFailure(t, name, err, wire.CodeDenied, "")
	}
	for _, bad := range []string{"**", "a:b", "a/b", "A", ""} {
		_, err := f.admin.SetIdentityFor(ctx, "acme", "operator", []string{bad})
		wantFailure(t, bad, err, wire.CodeBadRequest, "")
		_, err = f.admin.CreateRobot(ctx, "acme", api.CreateRobot{Name: "other", IdentityFor: []string{bad}})
		wantFailure(t, bad, err, wire.CodeBadRequest, "")
	}
	if _, err := f.admin.SetIdentityFor(ctx, "acme", "nobody", []string{"a"}); !api.IsNotFound(err) {
		t.Errorf("of no robot: %v", err)
	}
	// An owner's own organization is his.
	if _, err := f.client(p.user("ann@example.org").Token).SetIdentityFor(ctx, "acme", "operator", []string{"prod", "dev"}); err != nil {
		t.Error(err)
	}
	_, err := f.client(p.user("ann@example.org").Token).IssuerKeys(ctx)
	wantFailure(t, "an owner, about the issuer's keys", err, wire.CodeDenied, "")
}

// TestIdentityTokensArePaced: a robot that asks again and again waits, and no other.
func TestIdentityTokensArePaced(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	for _, name := range []string{"eager", "calm"} {
		if _, err := f.admin.CreateRobot(ctx, "default", api.CreateRobot{Name: name, IdentityFor: []string{"a"}}); err != nil {
			t.Fatal(err)
		}
	}
	eager, calm := f.client(f.robot("default", "eager").Token), f.client(f.robot("default", "calm").Token)
	q := api.CreateIdentityToken{ControlPlane: "a", Provider: "p"}
	f.api.SpendIdentityTokens("default/eager")
	_, err := eager.CreateIdentityToken(ctx, "default", q)
	var problem *api.Problem
	if wantFailure(t, "too often", err, wire.CodeOverloaded, "too often"); !errors.As(err, &problem) || problem.Status != 429 || problem.RetryAfter < time.Second {
		t.Errorf("%+v", problem)
	}
	if _, err := calm.CreateIdentityToken(ctx, "default", q); err != nil {
		t.Errorf("another robot: %v", err)
	}
	f.advance(time.Minute)
	if _, err := eager.CreateIdentityToken(ctx, "default", q); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

// TestIssuerKeysAPI rotates and withdraws as an operator does.
func TestIssuerKeysAPI(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	first, err := f.admin.IssuerKeys(ctx)
	if err != nil || len(first) != 1 || first[0].Phase != "signing" || first[0].Type != "ecdsa-p256" || !first[0].Ends.IsZero() {
		t.Fatalf("%+v, %v", first, err)
	}
	keys, err := f.admin.RotateIssuer(ctx, api.RotateIssuer{})
	if err != nil || len(keys) != 2 || keys[0].ID != first[0].ID || keys[1].Phase != "published" || keys[0].Ends.IsZero() {
		t.Fatalf("%+v, %v", keys, err)
	}
	_, err = f.admin.RotateIssuer(ctx, api.RotateIssuer{})
	wantFailure(t, "twice", err, wire.CodeBadRequest, "published already")
	keys, err = f.admin.RotateIssuer(ctx, api.RotateIssuer{AtOnce: true})
	if err != nil || len(keys) != 2 || keys[1].ID != first[0].ID || keys[1].Phase != "retiring" {
		t.Fatalf("%+v, %v", keys, err)
	}
	if err := f.admin.WithdrawIssuerKey(ctx, first[0].ID[:8]); err != nil {
		t.Fatal(err)
	}
	if err := f.admin.WithdrawIssuerKey(ctx, first[0].ID); err == nil {
		t.Error("withdrawn twice")
	}
	if strings.Contains(string(f.jwks()), first[0].ID) {
		t.Error("the withdrawn key is shown")
	}
	f.wantRecord("the withdrawal", func(r audit.Record) bool {
		return r.OK && r.Organization == "" && r.Object == "issuer/key:"+first[0].ID && r.What == "withdraw"
	})
	f.wantRecord("the rotation", func(r audit.Record) bool {
		return r.OK && r.Organization == "" && r.Object == "issuer" && r.What == "rotate"
	})
}

// TestNoIssuer: a hub without an issuer says how to have one.
func TestNoIssuer(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	hub.WithoutIssuer(f.api)
	c := f.client(f.robot("default", "operator").Token)
	_, err := c.CreateIdentityToken(ctx, "default", api.CreateIdentityToken{ControlPlane: "a", Provider: "p"})
	if wantFailure(t, "a token", err, wire.CodeBadRequest, "issues no identity tokens"); !strings.Contains(err.Error(), "--issuer-url") {
		t.Errorf("no hint: %v", err)
	}
	_, err = f.admin.IssuerKeys(ctx)
	wantFailure(t, "keys", err, wire.CodeBadRequest, "issues no identity tokens")
	_, err = f.admin.RotateIssuer(ctx, api.RotateIssuer{})
	wantFailure(t, "rotate", err, wire.CodeBadRequest, "issues no identity tokens")
	wantFailure(t, "withdraw", f.admin.WithdrawIssuerKey(ctx, "abcdefgh"), wire.CodeBadRequest, "issues no identity tokens")
}
