package hub_test

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// peopled is a fixture with an identity provider.
type peopled struct {
	*fixture
	issuer *oidctest.Issuer
}

func newPeopled(t testing.TB, change func(*config.SignIn)) *peopled {
	t.Helper()
	p := &peopled{issuer: oidctest.New(t)}
	cfg := config.DefaultHub().SignIn
	cfg.IssuerURL, cfg.ClientID, cfg.Algorithms = p.issuer.URL, "postern", []string{"ES256"}
	cfg.AdminGroups, cfg.AdminUsers = []string{"platform"}, []string{"root@example.org"}
	cfg.CAFile = filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(cfg.CAFile, p.issuer.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	p.fixture = newFixtureWith(t, func(f *fixture) *hub.SignIn {
		verifier := oidc.NewVerifier(oidc.Options{Now: f.now})
		t.Cleanup(verifier.Close)
		s, err := hub.NewSignIn(cfg, hub.SignInOptions{Verifier: verifier, Now: f.now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	return p
}

// idToken returns an ID token of a user whose address is verified.
func (p *peopled) idToken(email string, claims map[string]any) string {
	all := map[string]any{"sub": "id-of-" + email, "email": email, "email_verified": true, "nonce": api.NonceOf("secret")}
	maps.Copy(all, claims)
	return p.issuer.Sign(p.t, p.issuer.Claims(p.now(), "postern", all))
}

func (p *peopled) open(token string) (*api.Session, error) {
	return p.client("").OpenSession(p.t.Context(), api.SessionRequest{IDToken: token, NonceSecret: "secret", Client: "test"})
}

// user returns a client of somebody who is signed in, with some groups.
func (p *peopled) user(email string, groups ...string) *api.Client {
	p.t.Helper()
	s, err := p.open(p.idToken(email, map[string]any{"groups": groups}))
	if err != nil {
		p.t.Fatal(err)
	}
	return p.client(s.AccessToken)
}

func (p *peopled) grant(org, which, to string) {
	p.t.Helper()
	if _, err := p.admin.GrantRole(p.t.Context(), org, api.GrantRole{Role: which, Principal: to}); err != nil {
		p.t.Fatal(err)
	}
}

func TestSignIn(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	info, err := p.client("").SignIn(ctx)
	if err != nil || info.Issuer != p.issuer.URL || info.ClientID != "postern" || !slices.Contains(info.Scopes, "openid") || info.CA != string(p.issuer.CA) {
		t.Errorf("sign-in: %+v, %v", info, err)
	}
	idToken := p.idToken("ann@example.org", map[string]any{"groups": []string{"sre", "dev", "sre"}})
	s, err := p.open(idToken)
	if err != nil {
		t.Fatal(err)
	}
	if s.User != "ann@example.org" || !slices.Equal(s.Groups, []string{"dev", "sre"}) || s.ExpiresIn != 3600 || s.TokenType != "Bearer" {
		t.Errorf("session: %+v", s)
	}
	p.wantRecord("the sign-in", func(r audit.Record) bool {
		return r.Action == audit.SignIn && r.OK && r.Actor.String() == "user:ann@example.org" && r.Object == "session:"+s.SessionID && r.Organization == ""
	})
	ann := p.client(s.AccessToken)
	me, err := ann.WhoAmI(ctx)
	want := api.WhoAmI{Principal: "user:ann@example.org", Groups: []string{"dev", "sre"}, Roles: nil, Session: s.SessionID, Expires: me.Expires}
	if diff := cmp.Diff(want, me); diff != "" || err != nil || me.Expires.Before(p.now().Add(59*time.Minute)) {
		t.Error(err, diff)
	}
	_, err = p.open(idToken)
	wantFailure(t, "a second time", err, wire.CodeUnauthenticated, "used already")
	p.wantRecord("the refusal", func(r audit.Record) bool { return r.Action == audit.SignIn && !r.OK && r.Code == "unauthenticated" })

	// Renewed, the session is the same, and the token before is good for one more round.
	again, err := p.client("").OpenSession(ctx, api.SessionRequest{
		IDToken: p.idToken("ann@example.org", map[string]any{"nonce": nil, "groups": []string{"sre"}}), Session: s.SessionID,
	})
	if err != nil || again.SessionID != s.SessionID || again.AccessToken == s.AccessToken {
		t.Fatalf("renewed: %+v, %v", again, err)
	}
	if me, err := ann.WhoAmI(ctx); err != nil || !slices.Equal(me.Groups, []string{"sre"}) {
		t.Errorf("with the token before: %+v, %v", me, err)
	}
	if _, err := p.client("").OpenSession(ctx, api.SessionRequest{IDToken: p.idToken("ann@example.org", nil), NonceSecret: "secret", Session: s.SessionID}); err != nil {
		t.Error(err)
	}
	_, err = ann.WhoAmI(ctx)
	wantFailure(t, "with the token before last", err, wire.CodeUnauthenticated, "ended or was revoked")

	// Somebody else's session is not renewed, but a new one opened.
	bob, err := p.client("").OpenSession(ctx, api.SessionRequest{IDToken: p.idToken("bob@example.org", nil), NonceSecret: "secret", Session: s.SessionID})
	if err != nil || bob.SessionID == s.SessionID || bob.User != "bob@example.org" {
		t.Errorf("another's session: %+v, %v", bob, err)
	}
	p.advance(61 * time.Minute)
	_, err = p.client(again.AccessToken).WhoAmI(ctx)
	wantFailure(t, "an hour later", err, wire.CodeUnauthenticated, "session ended at")
	if log := p.log.String(); strings.Contains(log, s.AccessToken) || strings.Contains(log, idToken) {
		t.Error("the log holds a token")
	}
}

func TestSignInRefuses(t *testing.T) {
	p := newPeopled(t, func(c *config.SignIn) { c.RequiredClaims = []string{"hd=example.org"} })
	groups := make([]string, identity.MaxGroups+1)
	for i := range groups {
		groups[i] = strings.Repeat("g", i+1)
	}
	with := func(claims map[string]any) map[string]any {
		all := map[string]any{"hd": "example.org"}
		maps.Copy(all, claims)
		return all
	}
	now := p.now()
	for _, tt := range []struct {
		name, email string
		claims      map[string]any
		code        wire.Code
		want        string
	}{
		{"required claim", "ann@example.org", map[string]any{"hd": "evil.org"}, wire.CodeDenied, "hd=example.org"},
		{"audience", "ann@example.org", with(map[string]any{"aud": "grafana"}), wire.CodeUnauthenticated, "audience"},
		{"azp", "ann@example.org", with(map[string]any{"azp": "grafana"}), wire.CodeUnauthenticated, "another client"},
		{"audiences without azp", "ann@example.org", with(map[string]any{"aud": []string{"postern", "x"}}), wire.CodeUnauthenticated, "another client"},
		{"nonce", "ann@example.org", with(map[string]any{"nonce": api.NonceOf("other")}), wire.CodeUnauthenticated, "another sign-in"},
		{"old", "ann@example.org", with(map[string]any{"iat": now.Add(-time.Hour).Unix()}), wire.CodeUnauthenticated, "not of this sign-in"},
		{"no time", "ann@example.org", with(map[string]any{"iat": nil}), wire.CodeUnauthenticated, "not of this sign-in"},
		{"expired", "ann@example.org", with(map[string]any{"exp": now.Add(-time.Hour).Unix()}), wire.CodeUnauthenticated, "expired"},
		{"unverified", "ann@example.org", with(map[string]any{"email_verified": false}), wire.CodeDenied, "its subject looks like one"},
		{"reserved user", "system:admin", with(nil), wire.CodeDenied, "reserved"},
		{"reserved group", "ann@example.org", with(map[string]any{"groups": []string{"system:masters"}}), wire.CodeDenied, "reserved"},
		{"many groups", "ann@example.org", with(map[string]any{"groups": groups}), wire.CodeDenied, "in 65 groups"},
		{"bad group", "ann@example.org", with(map[string]any{"groups": []string{"a\nb"}}), wire.CodeDenied, "printable"},
		{"long name", strings.Repeat("a", 300), with(nil), wire.CodeDenied, "300 bytes"},
	} {
		_, err := p.open(p.idToken(tt.email, tt.claims))
		wantFailure(t, tt.name, err, tt.code, tt.want)
		p.advance(10 * time.Second) // so that the limit of failures does not answer in its place
	}
	s, err := p.open(p.idToken("x", with(map[string]any{"email": nil, "sub": "4711", "groups": "sre"})))
	if err != nil || s.User != "4711" || !slices.Equal(s.Groups, []string{"sre"}) {
		t.Errorf("without an address: %+v, %v", s, err)
	}
	p.advance(5 * time.Second)
	p.issuer.Down(true)
	p.advance(25 * time.Hour)
	_, err = p.open(p.idToken("ann@example.org", with(nil)))
	wantFailure(t, "provider down", err, wire.CodeOverloaded, "cannot be asked")
	if _, err := p.admin.Organizations(t.Context()); err != nil {
		t.Errorf("the hub without its provider: %v", err)
	}
}

func TestSignInNames(t *testing.T) {
	p := newPeopled(t, func(c *config.SignIn) {
		c.UsernameClaim, c.UsernamePrefix, c.GroupsClaim, c.GroupsPrefix = "preferred_username", "oidc:", "roles", "-"
	})
	s, err := p.open(p.idToken("ann@example.org", map[string]any{"preferred_username": "ann", "roles": []any{"a", 1, "b"}}))
	if err != nil || s.User != "oidc:ann" || !slices.Equal(s.Groups, []string{"a", "b"}) {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = p.open(p.idToken("ann@example.org", nil))
	wantFailure(t, "claim missing", err, wire.CodeDenied, "preferred_username")

	none := newFixture(t)
	if info, err := none.client("").SignIn(t.Context()); err != nil || info.Issuer != "" {
		t.Errorf("without settings: %+v, %v", info, err)
	}
	_, err = none.client("").OpenSession(t.Context(), api.SessionRequest{IDToken: "x"})
	wantFailure(t, "without settings", err, wire.CodeDenied, "--oidc-issuer-url")
}

// TestEveryRoute has users of each role, and others, take every route of the API.
// Whoever lacks the permission is refused, and whoever holds it is not.
func TestEveryRoute(t *testing.T) {
	p := newPeopled(t, nil)
	for _, org := range []string{"acme", "other"} {
		if _, err := p.admin.CreateOrganization(t.Context(), org); err != nil {
			t.Fatal(err)
		}
	}
	type taker struct {
		name  string
		token string
		holds func(org string, need role.Permission) bool
	}
	robot := p.robot("acme", "bot").Token
	takers := []taker{
		{"robot", robot, func(string, role.Permission) bool { return false }},
		{"user without a role", p.user("none@example.org").Token, func(string, role.Permission) bool { return false }},
		{"administrator of the hub", p.user("boss@example.org", "platform").Token, func(string, role.Permission) bool { return true }},
		{"named administrator", p.user("root@example.org").Token, func(string, role.Permission) bool { return true }},
	}
	for i, r := range role.Roles() {
		email, group := string(r)+"@example.org", "group-of-"+string(r)
		to := "user:" + email
		if i%2 == 0 {
			to = "group:" + group
		}
		p.grant("acme", string(r), to)
		takers = append(takers, taker{string(r), p.user(email, group).Token, func(org string, need role.Permission) bool { return org == "acme" && r.Holds(need) }})
	}
	// Routes that decide by themselves, with what is tested where: whoever adds one
	// here says why nobody needs a permission for it.
	own := map[string]string{
		"GET /v1/version": "open to all", "GET /v1/sign-in": "open to all",
		"POST /v1/join": "TestJoinStringRefusals", "POST /v1/organizations/{org}/identity-tokens": "TestIdentityTokenRefusals",
		"GET /v1/agents": "TestAgentsOfUsers", "GET /v1/agents/{id}": "TestAgentsOfUsers",
		"GET /v1/whoami": "about the caller", "GET /v1/organizations": "TestOrganizationsOfUsers",
		"GET /v1/sessions": "TestSessionsOfUsers", "DELETE /v1/sessions/{session}": "TestSessionsOfUsers",
	}
	fill := func(pattern, org string) (method, path string) {
		method, path, _ = strings.Cut(pattern, " ")
		return method, strings.NewReplacer("{org}", org, "{robot}", "no-such", "{token}", "no-such", "{agent}", "no-such", "{key}", "00000000",
			"{user}", "nobody", "{role}", "viewer", "{principal}", "user:nobody", "{session}", "no-such", "{id}", "no-such", "{pin}", "no-such",
			"{join}", "no-such", "{trust}", "no-such",
			"{level}", "proxy", "{party}", "proxy", "{name}", "no-such", "{grant}", "no-such").Replace(path)
	}
	for _, r := range p.api.Routes() {
		if r.Need == "" {
			if own[r.Pattern] == "" {
				t.Errorf("%s needs no permission, and no test says why", r.Pattern)
			}
			if r.Known {
				method, path := fill(r.Pattern, "acme")
				if status := p.status(method, path, ""); status != http.StatusUnauthorized {
					t.Errorf("nobody: %s: %d", r.Pattern, status)
				}
			}
			continue
		}
		if !strings.HasPrefix(r.Pattern, "GET ") && (r.Need == role.Read || r.Need == role.Audit) {
			t.Errorf("%s changes something, and who may only read may take it", r.Pattern)
		}
		// What would change the world for the next route is asked of those who may not.
		destructive := r.Pattern == "POST /v1/admin-token" || r.Pattern == "DELETE /v1/admin-token" || r.Pattern == "DELETE /v1/organizations/{org}" ||
			strings.Contains(r.Pattern, "authorities")
		for _, org := range []string{"acme", "other", "no-such"} {
			if org != "acme" && !strings.Contains(r.Pattern, "{org}") {
				continue
			}
			method, path := fill(r.Pattern, org)
			if strings.ContainsAny(path, "{}") {
				t.Fatalf("%s has a parameter that this test does not know", r.Pattern)
			}
			if status := p.status(method, path, ""); status != http.StatusUnauthorized {
				t.Errorf("nobody: %s in %s: %d", r.Pattern, org, status)
			}
			p.advance(20 * time.Second) // the limit of failures
			for _, who := range takers {
				allowed := who.holds(org, r.Need)
				if allowed && destructive {
					continue
				}
				status := p.status(method, path, who.token)
				if denied := status == http.StatusForbidden; denied == allowed || status == http.StatusUnauthorized || status >= 500 {
					t.Errorf("%s: %s in %s: %d, and allowed is %v", who.name, r.Pattern, org, status, allowed)
				}
			}
		}
		p.mu.Lock()
		p.clock = 0 // the sessions are to last
		p.mu.Unlock()
	}
}

// status makes a request without a body and returns its status.
func (p *peopled) status(method, path, token string) int {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.server.URL+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := p.server.Client().Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func TestRoles(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	p.grant("default", "owner", "user:ann@example.org")
	p.grant("default", "viewer", "group:sre")
	ann, bob := p.user("ann@example.org"), p.user("bob@example.org", "sre")
	if _, err := ann.GrantRole(ctx, "default", api.GrantRole{Role: "operator", Principal: "user:bob@example.org"}); err != nil {
		t.Fatal(err)
	}
	_, err := ann.GrantRole(ctx, "default", api.GrantRole{Role: "operator", Principal: "user:bob@example.org"})
	wantFailure(t, "twice", err, wire.CodeBadRequest, "exists already")
	for principal, want := range map[string]string{"robot:bot": "neither a user nor a group", "bob": "want KIND:NAME", "user:": "0 bytes", "admin:break-glass": "neither"} {
		_, err := ann.GrantRole(ctx, "default", api.GrantRole{Role: "viewer", Principal: principal})
		wantFailure(t, principal, err, wire.CodeBadRequest, want)
	}
	for _, which := range []string{"hub", "root", "", "Owner"} {
		_, err := ann.GrantRole(ctx, "default", api.GrantRole{Role: which, Principal: "user:ann@example.org"})
		wantFailure(t, which, err, wire.CodeBadRequest, "want one of")
	}
	if me, err := bob.WhoAmI(ctx); err != nil || !slices.Equal(me.Roles["default"], []string{"operator", "viewer"}) {
		t.Errorf("bob: %+v, %v", me, err)
	}
	all, err := bob.RoleBindings(ctx, "default")
	if err != nil || len(all) != 3 || all[0].Role != "owner" || all[1].By != "user:ann@example.org" || all[2].Principal != "group:sre" {
		t.Errorf("bindings: %+v, %v", all, err)
	}
	_, err = bob.GrantRole(ctx, "default", api.GrantRole{Role: "viewer", Principal: "user:eve"})
	wantFailure(t, "operator", err, wire.CodeDenied, "permission to own")

	wantFailure(t, "last owner", ann.RevokeRole(ctx, "default", api.GrantRole{Role: "owner", Principal: "user:ann@example.org"}), wire.CodeBadRequest, "last owner")
	if err := ann.RevokeRole(ctx, "default", api.GrantRole{Role: "owner", Principal: "user:zoe"}); !api.IsNotFound(err) {
		t.Errorf("a binding that is none: %v", err)
	}
	p.grant("default", "owner", "group:platform")
	if err := ann.RevokeRole(ctx, "default", api.GrantRole{Role: "owner", Principal: "user:ann@example.org"}); err != nil {
		t.Error(err)
	}
	_, err = ann.RoleBindings(ctx, "default")
	wantFailure(t, "no role left", err, wire.CodeDenied, "postern role grant")

	// A new organization of the same name does not inherit who may what.
	if _, err := p.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	p.grant("acme", "owner", "user:ann@example.org")
	if err := p.admin.DeleteOrganization(ctx, "acme", true); err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	_, err = ann.RoleBindings(ctx, "acme")
	wantFailure(t, "another organization of that name", err, wire.CodeDenied, "permission to read")
}

func TestOrganizationsOfUsers(t *testing.T) {
	p := newPeopled(t, nil)
	for _, org := range []string{"acme", "other"} {
		if _, err := p.admin.CreateOrganization(t.Context(), org); err != nil {
			t.Fatal(err)
		}
	}
	p.grant("acme", "viewer", "group:sre")
	p.grant("default", "auditor", "user:ann@example.org")
	for name, tt := range map[string]struct {
		client *api.Client
		want   []string
	}{
		"two roles": {p.user("ann@example.org", "sre"), []string{"acme", "default"}},
		"none":      {p.user("eve@example.org"), []string{}},
		"hub":       {p.user("boss@example.org", "platform"), []string{"acme", "default", "other"}},
	} {
		all, err := tt.client.Organizations(t.Context())
		names := []string{}
		for _, o := range all {
			names = append(names, o.Name)
		}
		if err != nil || !slices.Equal(names, tt.want) {
			t.Errorf("%s: %v, %v", name, names, err)
		}
	}
}

func TestAgentsOfUsers(t *testing.T) {
	p := newPeopled(t, nil)
	p.grant("default", "viewer", "group:sre")
	if _, err := p.user("ann@example.org", "sre").Agents(t.Context(), "default"); err != nil {
		t.Error(err)
	}
	_, err := p.user("eve@example.org").Agents(t.Context(), "default")
	wantFailure(t, "no role", err, wire.CodeDenied, "permission to read")
	if _, err := p.user("root@example.org").Agents(t.Context(), "default"); err != nil {
		t.Error(err)
	}
}

func TestSessionsOfUsers(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	ann, bob, root := p.user("ann@example.org"), p.user("bob@example.org"), p.user("root@example.org")
	p.user("ann@example.org")
	all, err := ann.Sessions(ctx, "")
	if err != nil || len(all) != 2 || all[0].User != "ann@example.org" || all[0].Source != "127.0.0.1" || all[0].Client != "test" {
		t.Fatalf("ann's: %+v, %v", all, err)
	}
	if all, err := root.Sessions(ctx, ""); err != nil || len(all) != 4 {
		t.Errorf("all: %d, %v", len(all), err)
	}
	_, err = bob.Sessions(ctx, "ann@example.org")
	wantFailure(t, "another's", err, wire.CodeDenied, "its own sessions only")
	_, err = p.client(p.robot("default", "bot").Token).Sessions(ctx, "")
	wantFailure(t, "robot", err, wire.CodeDenied, "its own sessions only")
	if err := bob.RevokeSession(ctx, all[0].ID); !api.IsNotFound(err) {
		t.Errorf("another's: %v", err)
	}
	for _, s := range all {
		if err := ann.RevokeSession(ctx, s.ID); err != nil && s.ID == all[0].ID {
			t.Error(err)
		}
	}
	_, err = ann.WhoAmI(ctx)
	wantFailure(t, "signed out", err, wire.CodeUnauthenticated, "ended or was revoked")

	// Users: revoked, they are out at once, and allowed again they have to sign in.
	if err := root.RevokeUser(ctx, "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	_, err = bob.WhoAmI(ctx)
	wantFailure(t, "revoked", err, wire.CodeUnauthenticated, "ended or was revoked")
	_, err = p.open(p.idToken("bob@example.org", nil))
	wantFailure(t, "revoked, and again", err, wire.CodeUnauthenticated, "was revoked at this hub")
	wantFailure(t, "oneself", root.RevokeUser(ctx, "root@example.org"), wire.CodeBadRequest, "revoke yourself")
	if err := root.RevokeUser(ctx, "never@example.org"); err != nil {
		t.Error(err)
	}
	users, err := root.Users(ctx)
	if err != nil || len(users) != 4 || users[1].Revoked.IsZero() || users[2].Name != "never@example.org" || !users[0].Revoked.IsZero() {
		t.Errorf("users: %+v, %v", users, err)
	}
	if err := root.AllowUser(ctx, "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	_, err = bob.WhoAmI(ctx)
	wantFailure(t, "allowed, with a session of before", err, wire.CodeUnauthenticated, "ended or was revoked")
	p.user("bob@example.org")
	if err := root.AllowUser(ctx, "nobody"); !api.IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
}

// TestEnrolWithSession: a user is a proxy of organizations where the user has a role,
// no longer than the session lasts.
func TestEnrolWithSession(t *testing.T) {
	p := newPeopled(t, func(c *config.SignIn) { c.SessionTTL = 10 * time.Minute })
	ctx := t.Context()
	ann := p.user("ann@example.org", "sre", "dev")
	request := tokenRequest(t, ann.Token)
	request.Role, request.Name = "proxy", "laptop"
	_, err := p.client("").Exchange(ctx, request)
	wantFailure(t, "without a role", err, wire.CodeDenied, "permission to read")
	p.grant("default", "auditor", "group:sre")
	res, err := p.client("").Exchange(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	holder, err := identity.CertificateHolder(certs[0])
	want := identity.Holder{Principal: identity.Principal{Kind: identity.KindUser, Name: "ann@example.org"}, Groups: []string{"dev", "sre"}}
	if diff := cmp.Diff(want, holder); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if res.ExpiresIn > 600 || certs[0].NotAfter.After(p.now().Add(10*time.Minute)) {
		t.Errorf("the certificate outlives the session: %d s, %s", res.ExpiresIn, certs[0].NotAfter)
	}
	agent := request
	agent.Role = "agent"
	_, err = p.client("").Exchange(ctx, agent)
	wantFailure(t, "agent", err, wire.CodeDenied, "enrols proxies only")
	hubs := request
	hubs.Name = "hub"
	_, err = p.client("").Exchange(ctx, hubs)
	wantFailure(t, "the hub's name", err, wire.CodeDenied, "hub's own")
	boss := request
	boss.SubjectToken = p.user("boss@example.org", "platform").Token
	boss.Role = "agent"
	_, err = p.client("").Exchange(ctx, boss)
	wantFailure(t, "agent, by an administrator", err, wire.CodeDenied, "enrols proxies only")

	serial := identity.Serial(certs[0])
	if p.issued.Revoked(serial) {
		t.Fatal("revoked before its time")
	}
	if err := p.admin.RevokeRole(ctx, "default", api.GrantRole{Role: "auditor", Principal: "group:sre"}); err != nil {
		t.Fatal(err)
	}
	if !p.issued.Revoked(serial) {
		t.Error("the last role is gone, and the certificate is good")
	}
}

// TestVouchingForUsers: a robot's certificate cannot be moved to a user's ground, nor
// the other way round, to escape a revocation.
func TestVouchingForUsers(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	p.grant("default", "viewer", "group:sre")
	enrol := func(token, previous string) string {
		t.Helper()
		request := tokenRequest(t, token)
		request.Role, request.Name, request.Previous = "proxy", "laptop", previous
		res, err := p.client("").Exchange(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := identity.ParseCertificates([]byte(res.AccessToken))
		if err != nil {
			t.Fatal(err)
		}
		return identity.Serial(certs[0])
	}
	robots := enrol(p.robot("default", "bot").Token, "")
	users := enrol(p.user("ann@example.org", "sre").Token, robots)
	others := enrol(p.user("bob@example.org", "sre").Token, users)
	if err := p.admin.DeleteRobot(ctx, "default", "bot"); err != nil {
		t.Fatal(err)
	}
	if err := p.admin.RevokeUser(ctx, "ann@example.org"); err != nil {
		t.Fatal(err)
	}
	if !p.issued.Revoked(robots) || !p.issued.Revoked(users) || p.issued.Revoked(others) {
		t.Errorf("revoked: %v, %v, %v; want true, true, false", p.issued.Revoked(robots), p.issued.Revoked(users), p.issued.Revoked(others))
	}
}

func TestAdminToken(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	old := p.adminToken()
	res, err := p.client("").Exchange(ctx, tokenRequest(t, old))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := p.admin.RotateAdminToken(ctx)
	if err != nil || fresh.Token == old || fresh.Token != p.adminToken() {
		t.Fatalf("rotated: %v", err)
	}
	_, err = p.admin.Organizations(ctx)
	wantFailure(t, "the old one", err, wire.CodeUnauthenticated, "was replaced")
	if !p.issued.Revoked(identity.Serial(certs[0])) {
		t.Error("what was issued on the old one is good")
	}
	admin, root := p.client(fresh.Token), p.user("root@example.org")
	wantFailure(t, "by itself", admin.DisableAdminToken(ctx), wire.CodeBadRequest, "cannot switch itself off")
	wantFailure(t, "by a user", p.user("ann@example.org").DisableAdminToken(ctx), wire.CodeDenied, "administer the hub")
	if err := root.DisableAdminToken(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = admin.Organizations(ctx)
	wantFailure(t, "switched off", err, wire.CodeUnauthenticated, "switched off")
	if log := p.log.String(); !strings.Contains(log, `level=WARN msg="the administrator's token was used"`) || strings.Contains(log, fresh.Token) {
		t.Error("the log does not tell of the token's use, or holds it")
	}
	again, err := root.RotateAdminToken(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.client(again.Token).Organizations(ctx); err != nil {
		t.Errorf("on again: %v", err)
	}
}
