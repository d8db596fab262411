package hub_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
)

// openRoutes are those that strangers may use, and why.
var openRoutes = map[string]string{
	"POST /v1/token":  "who asks proves himself in the body",
	"POST /v1/join":   "who joins shows the secret of a join string in the body",
	"GET /v1/ca":      "public",
	"GET /v1/version": "public",
	"GET /v1/sign-in": "how people sign in, before they have",
	"GET /healthz":    "a bare yes",
	"GET /readyz":     "a bare yes or no",
}

// ownRoutes answer a robot about its own organization, when it names no other.
var ownRoutes = []string{"GET /v1/agents", "GET /v1/agents/{id}"}

// selfRoutes answer everybody who has a token, about himself and what is his.
var selfRoutes = []string{"GET /v1/organizations", "GET /v1/whoami"}

// TestAttackRoutes asks every route of the API: without a token, with one that is
// none, and with that of a robot of another organization.
func TestAttackRoutes(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	for _, org := range []string{"acme", "evil"} {
		if _, err := f.admin.CreateOrganization(ctx, org); err != nil {
			t.Fatal(err)
		}
	}
	f.robot("acme", "secret-robot")
	mallory := f.robot("evil", "bot").Token
	key := f.registered("acme").Public()
	state := func() any {
		robots, err := f.admin.Robots(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := f.admin.RobotTokens(ctx, "acme", "secret-robot")
		if err != nil {
			t.Fatal(err)
		}
		agents, err := f.admin.Registrations(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		orgs, err := f.admin.Organizations(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return []any{robots, tokens, agents, orgs}
	}
	before := state()
	ask := func(pattern, org, token string) (int, string) {
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{org}", org, "{robot}", "secret-robot", "{token}", "one", "{agent}", "edge", "{id}", "edge", "{key}", key.ID(),
			"{pin}", f.state.Authority().Pin()).Replace(path)
		if strings.HasPrefix(path, "/v1/agents") {
			path += "?organization=" + org
		}
		for strings.Contains(path, "{") { // a part that this test does not know by name
			a, rest, _ := strings.Cut(path, "{")
			_, b, _ := strings.Cut(rest, "}")
			path = a + "x" + b
		}
		var header []string
		if token != "" {
			header = []string{"Authorization", "Bearer " + token}
		}
		res, body := f.do(method, path, api.TypeJSON, `{}`, header...)
		f.advance(10 * time.Minute) // the limit on failures is another test's
		return res.StatusCode, body
	}
	if status, body := ask("GET /v1/organizations/{org}/robots", "acme", f.adminToken()); status != 200 || !strings.Contains(body, "secret-robot") {
		t.Fatalf("the administrator: %d %s", status, body)
	}
	patterns := f.api.Patterns()
	if len(patterns) < 20 {
		t.Fatalf("there are %d routes only", len(patterns))
	}
	for _, pattern := range patterns {
		if _, open := openRoutes[pattern]; open {
			if status, body := ask(pattern, "acme", ""); status == http.StatusUnauthorized || strings.Contains(body, "acme") {
				t.Errorf("%s is not open, or says too much: %d %s", pattern, status, body)
			}
			continue
		}
		for name, token := range map[string]string{"nobody": "", "a bad token": "e30.e30.e30", "the word Bearer": "Bearer"} {
			if status, body := ask(pattern, "acme", token); status != http.StatusUnauthorized || strings.Contains(body, "secret-robot") {
				t.Errorf("%s answers %s with %d %s", pattern, name, status, body)
			}
		}
		status, body := ask(pattern, "acme", mallory)
		if slices.Contains(selfRoutes, pattern) {
			if strings.Contains(body, "acme") || strings.Contains(body, "secret") {
				t.Errorf("%s tells another organization's robot of the victim: %s", pattern, body)
			}
			continue
		}
		if status != http.StatusForbidden || strings.Contains(body, key.ID()) {
			t.Errorf("%s answers another organization's robot with %d %s", pattern, status, body)
		}
		// What it says does not tell whether there is such an organization.
		none, noBody := ask(pattern, "nowhere", mallory)
		if none != status || strings.ReplaceAll(noBody, "nowhere", "acme") != body {
			t.Errorf("%s tells which organizations there are: %d %s, and %d %s", pattern, status, body, none, noBody)
		}
		if slices.Contains(ownRoutes, pattern) {
			if status, _ := ask(pattern, "evil", mallory); status == http.StatusForbidden {
				t.Errorf("%s does not answer a robot about its own organization", pattern)
			}
		}
	}
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("the victim's records changed (-before +after):\n%s", diff)
	}
	for pattern := range openRoutes {
		if !slices.Contains(patterns, pattern) {
			t.Errorf("there is no route %s any more", pattern)
		}
	}
}

// TestAttackPaths asks for the victim's records by other names of the same path, and
// with fields that some servers heed.
func TestAttackPaths(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	for _, org := range []string{"acme", "evil"} {
		if _, err := f.admin.CreateOrganization(ctx, org); err != nil {
			t.Fatal(err)
		}
	}
	f.robot("acme", "secret-robot")
	mallory := f.robot("evil", "bot").Token
	raw := func(request string) string {
		c, err := net.Dial("tcp", f.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, request)
		b, _ := io.ReadAll(c)
		f.advance(10 * time.Minute)
		return string(b)
	}
	get := func(token, method, path string, fields ...string) string {
		return raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer %s\r\n%s\r\n", method, path, token, strings.Join(fields, "")))
	}
	robots := "/v1/organizations/acme/robots"
	if body := get(f.adminToken(), "GET", robots); !strings.HasPrefix(body, "HTTP/1.1 200") || !strings.Contains(body, "secret-robot") {
		t.Fatal(body)
	}
	for _, path := range []string{
		robots, robots + "/", "/" + robots, "/v1//organizations/acme/robots", "/v1/./organizations/acme/robots", "/v1/x/../organizations/acme/robots",
		"/V1/organizations/acme/robots", "/v1/Organizations/acme/robots", "/v1/organizations/%61cme/robots", "/v1/organizations/acme%2frobots",
		"/v1/organizations/evil/../acme/robots", "/v1/organizations/evil%2f..%2facme/robots", "/v1/organizations/evil%2F%2E%2E%2Facme/robots",
		"/v1/organizations/evil/%2e%2e/acme/robots", "/v1/organizations/acme;evil/robots", "/v1/organizations/acme%00/robots", "/v1/organizations/acme%20/robots",
		"/v1/organizations/acme%09/robots", "/v1/organizations/ACME/robots", "/v1/organizations/acme./robots", "/v1/organizations/*/robots", "/v1/organizations/%3e/robots",
		"/v1/organizations//robots", "/v1/organizations/%2e/robots", "/%2e/v1/organizations/acme/robots", "/v1%2forganizations/acme/robots", "/v1/organizations/acme/robots?x=/v1/version",
		"/v1/version/../organizations/acme/robots", "/healthz/../v1/organizations/acme/robots", "/healthz%2f..%2fv1/organizations/acme/robots",
		"http://hub" + robots, "http://other" + robots, "https://u:p@hub" + robots, "*", "/v1/agents?organization=evil&organization=acme",
		"/v1/agents?organization=acme", "/v1/agents?organization=acme&organization=evil", "/v1/agents?Organization=acme", "/v1/agents?organization=acme%00",
		"/v1/agents?organization=acme%0a", "/v1/agents;organization=acme", "/v1/agents?;organization=acme",
		"/v1/connect/../organizations/acme/robots", "/v1/connect" + robots,
	} {
		for _, method := range []string{"GET", "HEAD", "get", "CONNECT", "OPTIONS", "TRACE", "PROPFIND"} {
			body := get(mallory, method, path)
			if strings.Contains(body, "secret-robot") || strings.HasPrefix(body, "HTTP/1.1 2") && strings.Contains(path, "robots") {
				t.Errorf("%s %s: %.200q", method, path, body)
			}
			if location := field(body, "Location"); strings.Contains(location, "//") {
				t.Errorf("%s %s leads to %q", method, path, location)
			}
		}
	}
	for _, fields := range []string{
		"X-HTTP-Method-Override: DELETE\r\n", "X-HTTP-Method: DELETE\r\n", "X-Method-Override: DELETE\r\n", "X-Original-URL: /v1/organizations/acme/robots\r\n",
		"X-Rewrite-URL: " + robots + "\r\n", "X-Forwarded-User: administrator\r\n", "X-Remote-User: admin\r\n", "X-Forwarded-For: 127.0.0.1\r\n",
		"X-Organization: acme\r\n", "Authorization: Bearer " + f.adminToken()[:8] + "\r\n", "Cookie: token=admin\r\n",
		"Host: localhost\r\n", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n",
	} {
		for _, path := range []string{robots, "/v1/organizations/acme/robots/secret-robot", "/v1/organizations"} {
			for _, method := range []string{"GET", "POST", "DELETE"} {
				body := get(mallory, method, path, fields)
				done := strings.HasPrefix(body, "HTTP/1.1 2") && (method != "GET" || strings.Contains(body, "acme"))
				if done || strings.Contains(body, "secret-robot\"") {
					t.Errorf("%s %s with %q: %.200q", method, path, fields, body)
				}
			}
		}
	}
	if robots, err := f.admin.Robots(ctx, "acme"); err != nil || len(robots) != 1 {
		t.Errorf("the victim has the robots %v, %v", robots, err)
	}
}

// field returns a header field of a raw answer.
func field(answer, name string) string {
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
	if err != nil {
		return ""
	}
	_ = res.Body.Close()
	return res.Header.Get(name)
}

// TestAttackBodies sends bodies that cost a parser more than they cost the sender.
func TestAttackBodies(t *testing.T) {
	f := newFixture(t)
	admin := []string{"Authorization", "Bearer " + f.adminToken()}
	for name, body := range map[string]string{
		"deep":        strings.Repeat("[", 60_000),
		"deep object": strings.Repeat(`{"name":`, 8000),
		"long":        `{"name":"` + strings.Repeat("a", 70<<10) + `"}`,
		"many":        `{"name":"a"` + strings.Repeat(`,"name":"a"`, 5500) + `,"x":1}`,
		"numbers":     `{"name":` + strings.Repeat("9", 60_000) + `}`,
		"escapes":     `{"name":"` + strings.Repeat(`\ud800`, 9000) + `"}`,
		"NULs":        `{"name":"` + strings.Repeat(`\u0000`, 1000) + `"}`,
		"not UTF-8":   "{\"name\":\"\xff\xfe\"}",
		"two":         `{"name":"a"}{"name":"b"}`,
	} {
		begin := time.Now()
		res, answer := f.do("POST", api.PathOrganizations, api.TypeJSON, body, admin...)
		if res.StatusCode < 400 || res.StatusCode >= 500 || len(answer) > 4<<10 {
			t.Errorf("%s: %d with %d bytes", name, res.StatusCode, len(answer))
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
	for name, form := range map[string]string{
		"many parameters": strings.Repeat("a=b&", 16_000), "a long one": "subject_token=" + strings.Repeat("a", 60<<10),
		"escapes": strings.Repeat("%41", 20_000), "semicolons": strings.Repeat(";", 60_000),
		"a token of many parts": "grant_type=" + api.GrantTypeExchange + "&subject_token_type=" + api.TokenTypeJWT + "&subject_token=" + strings.Repeat("e30.", 15_000),
	} {
		if res, answer := f.do("POST", api.PathToken, api.TypeForm, form); res.StatusCode < 400 || res.StatusCode >= 500 || len(answer) > 4<<10 {
			t.Errorf("%s: %d with %d bytes", name, res.StatusCode, len(answer))
		}
	}
	if orgs, err := f.admin.Organizations(t.Context()); err != nil || len(orgs) != 1 {
		t.Errorf("there are organizations %v, %v", orgs, err)
	}
}
