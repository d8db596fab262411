package hubtest_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/oidc/oidctest"
)

// TestGatewayPeople: people reach clusters by sessions and ID tokens, with a role and a
// grant; the cluster sees them and their groups, but no reserved ones; what ends their
// right ends what runs.
func TestGatewayPeople(t *testing.T) {
	t.Parallel()
	issuer := oidctest.New(t)
	w := newWorld(t, func(h *config.Hub) {
		file := filepath.Join(t.TempDir(), "issuer.pem")
		writeFile(t, file, string(issuer.CA))
		h.IssuerURL, h.ClientID, h.Algorithms, h.SignIn.CAFile = issuer.URL, "postern", []string{"ES256"}, file
		h.ReservedPrefixes = nil // the gateway has its own
	})
	ctx := t.Context()
	if _, err := w.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	k := newKube(t)
	w.agent("a", k.of("plant"))
	theirs := w.robot("acme", "machines")
	w.agent("b", func(a *config.Agent) {
		k.of("plant")(a)
		a.Organization, a.TokenFile = "acme", theirs
	})
	w.serves(tokenIn(t, w.token), "plant")
	w.serves(tokenIn(t, theirs), "plant")

	idToken := func(email string, claims map[string]any) string {
		all := map[string]any{"sub": "id-of-" + email, "email": email, "email_verified": true, "groups": []string{"sre", "system:masters"}}
		maps.Copy(all, claims)
		return issuer.Sign(t, issuer.Claims(time.Now(), "postern", all))
	}
	client := &api.Client{BaseURL: w.uplink.BaseURL(), HTTP: w.uplink.HTTPClient()}
	session, err := client.OpenSession(ctx, api.SessionRequest{
		IDToken: idToken("ann@example.org", map[string]any{"nonce": api.NonceOf("s")}), NonceSecret: "s", Client: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	ann := session.AccessToken
	want := func(what, token, path string, code int, text string) {
		t.Helper()
		if got, body := w.call(token, path); got != code || !strings.Contains(body, text) {
			t.Errorf("%s: %d %s", what, got, body)
		}
	}
	role := func(org string) {
		t.Helper()
		if _, err := w.admin.GrantRole(ctx, org, api.GrantRole{Role: "viewer", Principal: "user:ann@example.org"}); err != nil {
			t.Fatal(err)
		}
	}
	want("nowhere", ann, "/plant/api", 403, "has no role in any organization")
	want("nowhere", ann, "/default:plant/api", 403, "permission")
	role("default")
	listed := func(verdict string) {
		t.Helper()
		all, err := (&api.Client{BaseURL: w.uplink.BaseURL(), HTTP: w.uplink.HTTPClient(), Token: ann}).Agents(ctx, "default")
		if err != nil || len(all) != 1 || all[0].Gateway != verdict {
			t.Errorf("the list says %+v, %v; want that it is %s", all, err, verdict)
		}
	}
	listed(api.VerdictRefused)
	want("without a grant", ann, "/plant/api", 403, "postern access grant --to user:ann@example.org --agent plant --target gateway")
	grant, err := w.admin.GrantAccess(ctx, "default", api.CreateAccessGrant{To: "group:sre", Agent: "plant", Targets: []string{"gateway"}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error { // the agent has to hear of it
		if code, body := w.call(ann, "/plant/api"); code != 200 || body != "hello ann@example.org" {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	listed(api.VerdictAllowed)
	if one, _ := k.last(); !slices.Equal(one.Groups, []string{"sre", "system:authenticated"}) || one.Header.Get("Impersonate-Extra-Postern.dev/principal") == "" &&
		!slices.ContainsFunc(slices.Collect(maps.Keys(one.Header)), func(f string) bool { return strings.HasPrefix(f, "Impersonate-Extra-Postern.dev") }) {
		t.Errorf("in the groups %v, with %v", one.Groups, one.Header)
	}
	want("an ID token", idToken("ann@example.org", nil), "/plant/api", 200, "hello ann@example.org")
	want("somebody else's", idToken("bob@example.org", nil), "/plant/api", 403, "has no role")
	want("for another client", idToken("ann@example.org", map[string]any{"aud": "other"}), "/plant/api", 401, "audience")
	want("an expired one", idToken("ann@example.org", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), "/plant/api", 401, "expired")
	want("a reserved name", idToken("system:admin", map[string]any{"email_verified": true}), "/plant/api", 403, "reserve")
	role("acme")
	want("in two", ann, "/plant/api", 400, "/acme:plant/")
	want("in two", ann, "/default:plant/api", 200, "hello ann")
	want("in two", ann, "/acme:plant/api", 403, "--target gateway")

	// Each end of a right ends a watch.
	watch := func(what string, end func() error) {
		t.Helper()
		conn, in := w.dial()
		fmt.Fprintf(conn, "GET /default:plant/api/v1/pods?watch=1 HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\n\r\n", ann)
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v, %v", what, res, err)
		}
		begin := time.Now()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); err == nil || time.Since(begin) > slack+time.Second {
			t.Errorf("%s: after %s: %v", what, time.Since(begin), err)
		}
	}
	again := api.CreateAccessGrant{To: "user:ann@example.org", Agent: "plant", Targets: []string{"gateway"}}
	watch("the grant", func() error { return w.admin.RevokeAccess(ctx, "default", grant.ID) })
	if _, err := w.admin.GrantAccess(ctx, "default", again); err != nil {
		t.Fatal(err)
	}
	granted := func() error {
		if code, body := w.call(ann, "/default:plant/api"); code != 200 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	}
	eventually(t, patience, granted)
	watch("the role", func() error {
		return w.admin.RevokeRole(ctx, "default", api.GrantRole{Role: "viewer", Principal: "user:ann@example.org"})
	})
	role("default")
	eventually(t, patience, granted)
	watch("the user", func() error { return w.admin.RevokeUser(ctx, "ann@example.org") })
	want("a revoked user", ann, "/default:plant/api", 401, "revoked")
	want("a revoked user's ID token", idToken("ann@example.org", nil), "/default:plant/api", 401, "revoked")
}
