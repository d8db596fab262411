package hub_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

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
