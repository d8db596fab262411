package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func tcpAddr(s string) net.Addr {
	host, port, _ := net.SplitHostPort(s)
	n, _ := strconv.Atoi(port)
	return &net.TCPAddr{IP: net.ParseIP(host), Port: n}
}

func mustAccess(t *testing.T, config AccessConfig) *Access {
	t.Helper()
	a, err := NewAccess(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustUsers(t *testing.T, text string) *Users {
	t.Helper()
	u, err := ParseUsers(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// tokens is a VerifyFunc for tokens of the form ORG-token.
func tokens(calls *atomic.Int32) VerifyFunc {
	return func(_ context.Context, org, secret string) (Identity, error) {
		calls.Add(1)
		switch {
		case secret == "broken":
			return Identity{}, errors.New("the store does not answer")
		case secret != org+"-token":
			return Identity{}, unauthenticated("the token is not valid")
		}
		return Identity{Organization: org, Principal: identity.Principal{Kind: identity.KindRobot, Name: "ci"}}, nil
	}
}

func TestWhereCredentialsAreRequired(t *testing.T) {
	t.Parallel()
	users := mustUsers(t, "a:b")
	verify := tokens(new(atomic.Int32))
	for _, c := range []struct {
		access           *Access
		addr             string
		listen, required bool
	}{
		{nil, "127.0.0.1:1", true, false},
		{nil, "[::1]:1", true, false},
		{nil, "127.9.9.9:1", true, false},
		{nil, "0.0.0.0:1", false, false},
		{nil, "[::]:1", false, false},
		{nil, "10.0.0.1:1", false, false},
		{mustAccess(t, AccessConfig{}), "10.0.0.1:1", false, true},
		{mustAccess(t, AccessConfig{Verify: verify}), "127.0.0.1:1", true, false},
		{mustAccess(t, AccessConfig{Verify: verify}), "0.0.0.0:1", true, true},
		{mustAccess(t, AccessConfig{Verify: verify, Require: true}), "127.0.0.1:1", true, true},
		{mustAccess(t, AccessConfig{Users: users}), "127.0.0.1:1", true, true},
		{mustAccess(t, AccessConfig{Users: users}), "[::]:1", true, true},
	} {
		err := c.access.Listen(tcpAddr(c.addr))
		if (err == nil) != c.listen || c.access.requires(tcpAddr(c.addr)) != c.required {
			t.Errorf("%s: %v, required %v; want %v, %v", c.addr, err, c.access.requires(tcpAddr(c.addr)), c.listen, c.required)
		}
	}
	if _, err := NewAccess(AccessConfig{Require: true}); err == nil {
		t.Error("credentials can be required without there being any")
	}
	ln := listen(t, "0.0.0.0:0")
	defer ln.Close()
	if _, err := NewHTTP(ln, nil, frontConfig(nil)); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("NewHTTP: %v", err)
	}
	if _, err := NewSOCKS5(ln, nil, frontConfig(nil)); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("NewSOCKS5: %v", err)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	hash, err := bcrypt.GenerateFromPassword([]byte("hashed"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	users := mustUsers(t, "# people\nalice:secret\n\nbob:"+string(hash)+"\ncarol:pw agent=lab\n")
	anyone := mustUsers(t, "*:shared\nalice:secret")
	router := Router{Organization: "default", Organizations: true}
	of := func(org string, kind identity.PrincipalKind, name string) Identity {
		return Identity{Organization: org, Principal: identity.Principal{Kind: kind, Name: name}}
	}
	client := func(name string) Identity { return of("default", identity.KindClient, name) }
	ci := func(org string) Identity { return of(org, identity.KindRobot, "ci") }
	ref := func(org, agent string) AgentRef { return AgentRef{org, agent} }
	var calls atomic.Int32
	token := AccessConfig{Verify: tokens(&calls)}
	both := AccessConfig{Users: users, Verify: tokens(&calls)}
	for _, c := range []struct {
		config         AccessConfig
		user, password string
		want           grant
		code           wire.Code
	}{
		{AccessConfig{Users: users}, "alice", "secret", grant{client("alice"), ref("default", ""), false, nil}, 0},
		{AccessConfig{Users: users}, "alice", "Secret", grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: users}, "alice", "", grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: users}, "bob", "hashed", grant{client("bob"), ref("default", ""), false, nil}, 0},
		{AccessConfig{Users: users}, "bob", string(hash), grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: users}, "carol", "pw", grant{client("carol"), ref("default", "lab"), true, nil}, 0},
		{AccessConfig{Users: users}, "dave", "pw", grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: users}, "*", "pw", grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: anyone}, "lab", "shared", grant{client("*"), ref("default", "lab"), false, nil}, 0},
		{AccessConfig{Users: anyone}, "", "shared", grant{client("*"), ref("default", ""), false, nil}, 0},
		{AccessConfig{Users: anyone}, "acme/lab", "shared", grant{}, wire.CodeUnauthenticated},
		{AccessConfig{Users: anyone}, "alice", "shared", grant{}, wire.CodeUnauthenticated},
		{token, "lab", "default-token", grant{ci("default"), ref("default", "lab"), false, nil}, 0},
		{token, "acme/lab", "acme-token", grant{ci("acme"), ref("acme", "lab"), false, nil}, 0},
		{token, "acme/", "acme-token", grant{ci("acme"), ref("acme", ""), false, nil}, 0},
		{token, "", "default-token", grant{ci("default"), ref("default", ""), false, nil}, 0},
		{token, "acme/lab", "default-token", grant{}, wire.CodeUnauthenticated},
		{token, "lab", "acme-token", grant{}, wire.CodeUnauthenticated},
		{token, "lab", "broken", grant{}, wire.CodeInternal},
		{token, "UPPER", "default-token", grant{}, wire.CodeBadRequest},
		{both, "alice", "secret", grant{client("alice"), ref("default", ""), false, nil}, 0},
		{both, "alice", "default-token", grant{}, wire.CodeUnauthenticated},
		{both, "lab", "default-token", grant{ci("default"), ref("default", "lab"), false, nil}, 0},
	} {
		a := mustAccess(t, c.config)
		for range 2 { // the second time from memory
			got, err := a.login(t.Context(), true, Login{c.user, c.password, true}, router)
			if c.code != 0 {
				if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != c.code {
					t.Errorf("%q %q: %+v, %v; want %s", c.user, c.password, got, err, c.code)
				}
				continue
			}
			got.by = nil // TestLines looks at it
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(grant{})); diff != "" || err != nil {
				t.Errorf("%q %q: %s %v", c.user, c.password, diff, err)
			}
		}
	}
}

func TestForeignOrganizationIsRefused(t *testing.T) {
	t.Parallel()
	a := mustAccess(t, AccessConfig{Verify: func(context.Context, string, string) (Identity, error) {
		return Identity{Organization: "other", Principal: identity.Principal{Kind: identity.KindRobot, Name: "x"}}, nil
	}})
	if g, err := a.login(t.Context(), true, Login{"lab", "x", true}, Router{Organization: "default"}); err == nil {
		t.Errorf("a token of another organization passed: %+v", g)
	}
}

func TestRecentLogins(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	now := time.Unix(1000, 0)
	a := mustAccess(t, AccessConfig{Verify: tokens(&calls)})
	a.now = func() time.Time { return now }
	try := func(user, password string) {
		_, _ = a.login(t.Context(), true, Login{user, password, true}, Router{Organization: "default", Organizations: true})
	}
	for range 5 {
		try("lab", "default-token")
		try("other", "default-token") // the same token for another agent
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("checked %d times within moments", n)
	}
	now = now.Add(rememberFor)
	try("lab", "default-token")
	if n := calls.Load(); n != 2 {
		t.Errorf("checked %d times after the memory's time", n)
	}
	for range 5 {
		try("lab", "wrong")
	}
	if n := calls.Load(); n != 7 {
		t.Errorf("a wrong password was remembered: %d checks", n)
	}
	for i := range 3 * rememberMax {
		try("o"+strconv.Itoa(i)+"/lab", "o"+strconv.Itoa(i)+"-token")
	}
	if n := len(a.recent); n > rememberMax {
		t.Errorf("%d logins are remembered", n)
	}
}

// TestCheckingIsBounded checks that logins wait for a free slot, and give up.
func TestCheckingIsBounded(t *testing.T) {
	t.Parallel()
	a := mustAccess(t, AccessConfig{Verify: tokens(new(atomic.Int32))})
	for range maxVerifying {
		a.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.login(ctx, true, Login{"lab", "default-token", true}, Router{Organization: "default"})
	if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeOverloaded {
		t.Errorf("got %v", err)
	}
}

func TestHTTPLogin(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	access := mustAccess(t, AccessConfig{Users: mustUsers(t, "carol:pw agent=lab\nalice:secret"), Verify: tokens(&calls)})
	o := serveWeb(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the target sees the credentials")
		}
	})
	h := startHTTP(t, access, frontConfig(o))
	for _, c := range []struct {
		login  string
		host   string
		status int
	}{
		{"", "web", 407},
		{"Proxy-Authorization: Bearer x\r\n", "web", 407},
		{basic("alice", "wrong"), "web", 407},
		{basic("acme/lab", "default-token"), "web", 407},
		{basic("alice", "secret"), "web", 200},
		{basic("alice", "secret"), "web.lab.postern.internal", 200},
		{basic("lab", "default-token"), "web", 200},
		{basic("carol", "pw"), "web", 200},
		{basic("carol", "pw"), "web.lab.postern.internal", 200},
		{basic("carol", "pw"), "web.edge.postern.internal", 403},
		{basic("lab", "broken"), "web", 500},
	} {
		for _, request := range []string{"CONNECT " + c.host + ":80 HTTP/1.1\r\n", "GET http://" + c.host + "/ HTTP/1.1\r\nHost: x\r\n"} {
			conn := dialFront(t, h)
			if c.status == 200 && request[0] == 'C' {
				send(t, conn, request+c.login+"\r\n")
				expect(t, conn, established)
				conn.Close()
				continue
			}
			res, body := exchange(t, conn, request+c.login+"\r\n")
			if res.StatusCode != c.status || res.StatusCode == 407 != (res.Header.Get("Proxy-Authenticate") == challenge) {
				t.Errorf("%q %s: %d %s %v", request, c.login, res.StatusCode, body, res.Header)
			}
			if strings.Contains(body, "token") && !strings.Contains(body, "the token is not valid") || strings.Contains(body, "wrong\n") && strings.Contains(body, "alice") {
				t.Errorf("the body tells too much: %s", body)
			}
		}
	}
}

func TestUsersErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a:b agent=x/y/z":                "agent ID",
		"a:b agent=X/y":                  "organization",
		"a:b agent=x as=":                "client name",
		"a:b as=x":                       "only agent=NAME may follow",
		"a:b agent=x agent=y":            "only agent=NAME may follow",
		"a:b agent=x\na:c":               "line 2: user \"a\" is there twice",
		"a:c\na:b agent=x":               "line 2: user \"a\" is there twice",
		"alice":                          "line 1: want USER:PASSWORD",
		":pw":                            "want USER:PASSWORD",
		"a b:pw":                         "want USER:PASSWORD",
		"a:":                             "no password",
		"a:b\n\na:c":                     "line 3: user \"a\" is there twice",
		"a:b c":                          "only agent=NAME may follow",
		"a:b agent=Not_A_Name":           "agent ID",
		"a:$apr1$x$y":                    "htpasswd -B",
		"a:{SHA}xyz":                     "htpasswd -B",
		"a:$2y$05$damaged":               "damaged",
		"a:" + strings.Repeat("b", 2000): "at most 1024",
		"a:\xff":                         "UTF-8",
		strings.Repeat("#", 2<<20):       "more than",
	} {
		_, err := ParseUsers(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "$apr1$x") {
			t.Errorf("%.40q: the error has the secret: %v", text, err)
		}
	}
}

// TestManyHashesOfOneUser checks that all lines of a user cost no more than one of the highest cost
// may, and that an unknown name takes as long.
func TestManyHashesOfOneUser(t *testing.T) {
	t.Parallel()
	const fit = 16 // of cost 12
	text := "quick:pw\n"
	for i := range fit + 1 {
		text += fmt.Sprintf("lab:$2a$12$%053d agent=lab as=shop/%d\n", i, i)
	}
	users, bad, err := parseUsers(text + "last:pw\n")
	if err != nil || len(bad) != 1 || !strings.Contains(bad[0].Error(), "line 18: the bcrypt hashes of user \"lab\" cost more together than one of cost 16") {
		t.Fatal(err, bad)
	}
	if n := len(users.entries["lab"]); n != fit || users.size() != fit+2 {
		t.Errorf("%d lines of %d count", n, users.size())
	}
	if !slices.Equal(users.decoy, users.entries["lab"]) {
		t.Errorf("an unknown name is checked against %d lines", len(users.decoy))
	}
}

func TestLoadUsers(t *testing.T) {
	t.Parallel()
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"a:b", 0o600, ""},
		{"a:b", 0o400, ""},
		{"a:b", 0o640, "chmod 600"},
		{"a:b", 0o644, "chmod 600"},
		{"a:" + string(hash), 0o644, ""},
		{"a:" + string(hash), 0o666, "anybody may write"},
		{"nonsense", 0o600, ""},
		{"nonsense", 0o666, "anybody may write"},
	} {
		path := filepath.Join(t.TempDir(), "users")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, _, err := LoadUsers(path); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %o: %v, want %q", c.text, c.mode, err, c.want)
		}
	}
	if _, _, err := LoadUsers(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
