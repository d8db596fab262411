package hub_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

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
