package hub_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/oidc/oidctest"
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
