package hubtest_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/oidc/oidctest"
)

// TestGatewayIssuers: ID tokens of further issuers are good at the gateway, in one
// organization, under names of their own, where access grants let them in; and every
// token that is not good is refused with a reason.
func TestGatewayIssuers(t *testing.T) {
	t.Parallel()
	people, machines := oidctest.New(t), oidctest.New(t)
	rules := func(issuer *oidctest.Issuer, client string) config.TokenRules {
		file := filepath.Join(t.TempDir(), "issuer.pem")
		writeFile(t, file, string(issuer.CA))
		return config.TokenRules{IssuerURL: issuer.URL, ClientID: client, Algorithms: []string{"ES256"}, CAFile: file, ReservedPrefixes: []string{"system:"}}
	}
	w := newWorld(t, func(h *config.Hub) {
		h.SignIn.TokenRules = rules(people, "postern")
		h.AdminUsers = []string{"root@example.org"}
		kubernetes := rules(people, "kubernetes") // another client of the same provider
		kubernetes.UsernameClaim, kubernetes.UsernamePrefix, kubernetes.GroupsClaim, kubernetes.GroupsPrefix = "email", "-", "groups", "-"
		ci := rules(machines, "clusters")
		ci.UsernameClaim, ci.UsernamePrefix, ci.GroupsClaim, ci.GroupsPrefix = "sub", "ci:", "groups", "ci:"
		ci.RequiredClaims = []string{"ref=refs/heads/main"}
		h.GatewayIssuers = []config.Issuer{{Organization: config.DefaultOrganization, TokenRules: kubernetes}, {Organization: "acme", TokenRules: ci}}
	})
	ctx := t.Context()
	if _, err := w.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	plant, theirs := newKube(t), newKube(t)
	token := w.robot("acme", "machines")
	w.agent("a", plant.of("plant"))
	w.agent("b", func(a *config.Agent) {
		theirs.of("plant")(a)
		a.Organization, a.TokenFile = "acme", token
	})
	w.serves(tokenIn(t, w.token), "plant")
	w.serves(tokenIn(t, token), "plant")

	sign := func(issuer *oidctest.Issuer, client string, claims map[string]any) string {
		all := map[string]any{"sub": "repo:shop", "ref": "refs/heads/main", "groups": []string{"deploy", "system:masters"}, "email": "ann@example.org", "email_verified": true}
		maps.Copy(all, claims)
		return issuer.Sign(t, issuer.Claims(time.Now(), client, all))
	}
	want := func(what, token, path string, code int, text string) {
		t.Helper()
		got, body := w.call(token, path)
		if got != code || !strings.Contains(body, text) || got >= 400 && !strings.Contains(body, `"kind":"Status"`) {
			t.Errorf("%s: %d %s; want %d %s", what, got, body, code, text)
		}
	}
	grant := func(org, to string) {
		t.Helper()
		if _, err := w.admin.GrantAccess(ctx, org, api.CreateAccessGrant{To: to, Agent: "plant", Targets: []string{"gateway"}}); err != nil {
			t.Fatal(err)
		}
	}
	comes := func(what, token, user string) {
		t.Helper()
		eventually(t, patience, func() error { // the agent has to hear of the grant
			if code, body := w.call(token, "/plant/api"); code != 200 || body != "hello "+user {
				return fmt.Errorf("%s: %d %s", what, code, body)
			}
			return nil
		})
	}

	// The issuer's organization and no other, whatever roles and grants there are elsewhere.
	ci := sign(machines, "clusters", nil)
	want("without a grant", ci, "/plant/api", 403, "postern access grant --to user:ci:repo:shop --agent plant --target gateway")
	grant("default", "user:ci:repo:shop")
	grant("acme", "group:deploy") // which is not ci:deploy
	want("with grants for others", ci, "/plant/api", 403, "--target gateway")
	grant("acme", "group:ci:deploy")
	comes("with a grant", ci, "ci:repo:shop")
	if one, _ := theirs.last(); !slices.Equal(one.Groups, []string{"ci:deploy", "ci:system:masters", "system:authenticated"}) {
		t.Errorf("in the groups %v", one.Groups)
	}
	want("elsewhere", ci, "/default:plant/api", 403, "is for organization acme")

	// The same provider for another client.
	ann := sign(people, "kubernetes", nil)
	grant("default", "user:ann@example.org")
	comes("of the same provider", ann, "ann@example.org")
	if one, _ := plant.last(); !slices.Equal(one.Groups, []string{"deploy", "system:authenticated"}) {
		t.Errorf("in the groups %v", one.Groups)
	}
	want("elsewhere", ann, "/acme:plant/api", 403, "is for organization default")
	root := sign(people, "kubernetes", map[string]any{"email": "root@example.org"})
	want("no administrator", root, "/acme:plant/api", 403, "is for organization default")

	// What is not good.
	for what, one := range map[string]struct {
		token string
		code  int
		text  string
	}{
		"wrong audience":        {sign(machines, "postern", nil), 401, "the token is for another audience"},
		"expired":               {sign(machines, "clusters", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), 401, "the token has expired"},
		"not yet":               {sign(machines, "clusters", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}), 401, "not valid yet"},
		"no required claim":     {sign(machines, "clusters", map[string]any{"ref": nil}), 403, "does not have the claim ref=refs/heads/main"},
		"another":               {sign(machines, "clusters", map[string]any{"ref": "refs/heads/x"}), 403, "does not have the claim ref=refs/heads/main"},
		"another's key":         {people.Sign(t, machines.Claims(time.Now(), "clusters", nil)), 401, "not signed with a key of its issuer"},
		"an unverified address": {sign(people, "kubernetes", map[string]any{"email_verified": false}), 403, "has not verified the user's email address"},
		"a reserved name":       {sign(people, "kubernetes", map[string]any{"email": "system:admin"}), 403, "is reserved"},
		"no name":               {sign(people, "kubernetes", map[string]any{"email": nil}), 403, `no claim \"email\"`},
		"a shared secret":       {hmacToken(t, machines.Claims(time.Now(), "clusters", nil)), 401, "none that this hub knows"},
		"an unknown issuer":     {sign(machines, "clusters", map[string]any{"iss": "https://evil.example"}), 401, "none that this hub knows"},
	} {
		want(what, one.token, "/plant/api", one.code, one.text)
	}

	// A user who is revoked at the hub is nobody, whoever vouches for him.
	if err := w.admin.RevokeUser(ctx, "ci:repo:shop"); err != nil {
		t.Fatal(err)
	}
	want("revoked", ci, "/plant/api", 401, "was revoked at this hub")

	// The issuer changes its key, then is away.
	machines.Rotate()
	till := sign(machines, "clusters", map[string]any{"sub": "repo:till"})
	comes("with a new key", till, "ci:repo:till")
	machines.Down(true)
	want("with a known key", till, "/plant/api", 200, "hello ci:repo:till")
}

// hmacToken returns a token that is signed with a shared secret.
func hmacToken(t *testing.T, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}
