package login

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func noEnv(string) string { return "" }

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "postern")
	s, err := Open(func(name string) string { return map[string]string{"POSTERN_CONFIG_DIR": dir}[name] })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhereContextsAreKept(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		want string
	}{
		"own":      {map[string]string{"POSTERN_CONFIG_DIR": "/a", "XDG_CONFIG_HOME": "/b", "HOME": "/c"}, "/a"},
		"xdg":      {map[string]string{"XDG_CONFIG_HOME": "/b", "HOME": "/c"}, "/b/postern"},
		"home":     {map[string]string{"HOME": "/c"}, "/c/.config/postern"},
		"relative": {map[string]string{"XDG_CONFIG_HOME": "b", "HOME": "/c"}, ""},
		"nowhere":  {nil, ""},
	} {
		s, err := Open(func(name string) string { return tt.env[name] })
		if tt.want == "" && err == nil || tt.want != "" && (err != nil || s.Dir() != tt.want) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func TestContexts(t *testing.T) {
	s := newStore(t)
	if all, err := s.Contexts(); err != nil || len(all.Contexts) != 0 {
		t.Fatalf("from the start: %+v, %v", all, err)
	}
	work := Context{Name: "work", Hub: "https://hub.example.org:4222", CAPin: "sha256:aa", Organization: "acme", User: "ann"}
	for _, one := range []Context{{Name: "home", Hub: "https://home.example.org"}, work} {
		if err := s.ChangeContexts(t.Context(), func(all *Contexts) error { return all.Save(one) }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Contexts()
	if err != nil {
		t.Fatal(err)
	}
	got, err := all.Find("")
	if diff := cmp.Diff(&work, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if _, err := all.Find("other"); err == nil {
		t.Error("a context that is none was found")
	}
	if err := all.Delete("work"); err != nil || all.Current != "" || len(all.Contexts) != 1 {
		t.Errorf("deleted: %+v, %v", all, err)
	}
	for _, name := range []string{"", "-x", "a b", "a/b", strings.Repeat("x", 101)} {
		if err := all.Save(Context{Name: name, Hub: "https://x"}); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	for name, text := range map[string]string{
		"unknown key": "currant: x\n", "no hub": "contexts: [{name: a}]\n", "bad name": "contexts: [{name: 'a b', hub: 'https://x'}]\n", "no YAML": "{",
	} {
		if err := os.WriteFile(filepath.Join(s.Dir(), contextsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := s.Contexts(); err == nil {
			t.Errorf("%s: %+v", name, all)
		}
	}
}

// TestTokensArePrivate: the file is nobody else's, and made so again if it is not.
func TestTokensArePrivate(t *testing.T) {
	s := newStore(t)
	if err := s.SaveTokens(t.Context(), "work", &Tokens{Session: "secret"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.Dir(), tokensFile)
	mode := func() os.FileMode {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if mode() != 0o600 {
		t.Errorf("mode %o", mode())
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := s.Tokens("work"); err != nil || !ok || got.Session != "secret" || mode() != 0o600 {
		t.Errorf("after it was opened to others: %v, %v, mode %o", ok, err, mode())
	}
	if err := os.WriteFile(file, []byte(`{"work": "secret`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Tokens("work"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a broken file: %v", err)
	}
}

// provider is a fake identity provider with a token endpoint, and a fake hub.
type provider struct {
	*oidctest.Issuer
	t *testing.T

	mu        sync.Mutex
	code      string // that the token endpoint takes
	challenge string
	nonce     string
	refresh   string // the one that is good now
	n         int
	fail      string // error to answer with
	polls     int
	sessions  []url.Values
	hubFails  int // status
}

func newProvider(t *testing.T) *provider {
	p := &provider{Issuer: oidctest.New(t), t: t}
	p.Mux.HandleFunc("POST /token", p.token)
	p.Mux.HandleFunc("POST /device", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"device_code": "dc", "user_code": "ABCD", "verification_uri": p.URL + "/enter", "expires_in": 60, "interval": 1,
		})
	})
	p.Mux.HandleFunc("POST /v1/token", p.session)
	return p
}

func (p *provider) info() api.SignIn {
	return api.SignIn{Issuer: p.URL, ClientID: "postern", CA: string(p.CA), Scopes: []string{"openid", "groups", "offline_access"}}
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	refuse := func(code string) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": "because\x1b[31m"})
	}
	fail := p.fail
	switch r.FormValue("grant_type") {
	case "authorization_code":
		if r.FormValue("code") != p.code || api.NonceOf(r.FormValue("code_verifier")) != p.challenge {
			fail = "invalid_grant"
		}
	case "refresh_token":
		if r.FormValue("refresh_token") != p.refresh {
			fail = "invalid_grant"
		}
	case "urn:ietf:params:oauth:grant-type:device_code":
		if p.polls++; p.polls == 1 && fail == "" {
			fail = "authorization_pending"
		}
	}
	if fail != "" {
		refuse(fail)
		return
	}
	p.n++
	p.refresh = fmt.Sprint("refresh-", p.n)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": "a", "token_type": "Bearer", "refresh_token": p.refresh,
		"id_token": p.Sign(p.t, p.Claims(time.Now(), "postern", map[string]any{"nonce": p.nonce})),
	})
}

// session is the hub's token endpoint.
func (p *provider) session(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if p.hubFails != 0 {
		w.WriteHeader(p.hubFails)
		_ = json.NewEncoder(w).Encode(api.TokenError{Code: "x", Description: "the hub says no"})
		return
	}
	_ = r.ParseForm()
	p.sessions = append(p.sessions, r.Form)
	_ = json.NewEncoder(w).Encode(api.Session{AccessToken: fmt.Sprint("session-", len(p.sessions)), ExpiresIn: 3600, SessionID: "one", User: "ann"})
}

func (p *provider) open() *Provider {
	p.t.Helper()
	one, err := NewProvider(p.t.Context(), p.info(), noEnv)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(one.Close)
	return one
}

// answer is what a browser does that was shown an address: it comes back with some
// parameters, {} standing for the right state.
func (p *provider) answer(address string, queries ...string) {
	u, err := url.Parse(address)
	if err != nil {
		p.t.Error(err)
		return
	}
	q := u.Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("response_type") != "code" || q.Get("client_id") != "postern" || q.Get("prompt") != "consent" {
		p.t.Errorf("address: %s", address)
	}
	p.mu.Lock()
	p.code, p.challenge, p.nonce = "code", q.Get("code_challenge"), q.Get("nonce")
	p.mu.Unlock()
	for _, query := range queries {
		res, err := http.Get(q.Get("redirect_uri") + "?" + strings.ReplaceAll(query, "{}", q.Get("state")))
		if err != nil {
			p.t.Error(err)
			return
		}
		_ = res.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestBrowser(t *testing.T) {
	p := newProvider(t)
	proof, err := p.open().Browser(t.Context(), func(address string) {
		go p.answer(address, "code=evil&state=x", "error=access_denied&state=", "code=code&state={}&iss="+url.QueryEscape(p.URL))
	})
	if err != nil || proof.IDToken == "" || proof.Refresh != "refresh-1" || api.NonceOf(proof.Nonce) != p.nonce {
		t.Fatalf("%+v, %v", proof, err)
	}
	for name, tt := range map[string]struct {
		query string
		code  wire.Code
		want  string
	}{
		"denied":           {"error=access_denied&state={}", wire.CodeDenied, "denied"},
		"no code":          {"state={}", wire.CodeUnreachable, "no code"},
		"another issuer":   {"code=code&state={}&iss=https%3A%2F%2Fevil", wire.CodeDenied, "another provider"},
		"wrong code":       {"code=other&state={}", wire.CodeUnauthenticated, "does not let"},
		"unknown mistakes": {"error=server_error&error_description=%1b%5b31mred&state={}", wire.CodeUnauthenticated, "server_error ([31mred)"},
	} {
		_, err := p.open().Browser(t.Context(), func(address string) { go p.answer(address, tt.query) })
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != tt.code || !strings.Contains(f.Text, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDevice(t *testing.T) {
	p := newProvider(t)
	shown := ""
	proof, err := p.open().Device(t.Context(), func(uri, _, code string, _ time.Time) { shown = uri + " " + code })
	if err != nil || proof.IDToken == "" || shown != p.URL+"/enter ABCD" || p.polls < 2 {
		t.Errorf("%+v, %v, shown %q, %d polls", proof, err, shown, p.polls)
	}
	for code, want := range map[string]wire.Code{"access_denied": wire.CodeDenied, "expired_token": wire.CodeTimeout} {
		p.fail = code
		_, err := p.open().Device(t.Context(), func(string, string, string, time.Time) {})
		if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != want {
			t.Errorf("%s: %v", code, err)
		}
	}
	p.Set("device_authorization_endpoint", nil)
	if _, err := p.open().Device(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "no device codes") {
		t.Errorf("without device codes: %v", err)
	}
}

// TestRenewal: half way through a session's life it is renewed, once, whoever asks.
func TestRenewal(t *testing.T) {
	p, s := newProvider(t), newStore(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, p.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	where := Context{Name: "work", Hub: p.URL, CAFile: ca}
	if err := s.ChangeContexts(t.Context(), func(all *Contexts) error { return all.Save(where) }); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	session := &Session{Store: s, Context: "work", Getenv: noEnv, Now: func() time.Time { return now }}
	begin := func() {
		t.Helper()
		p.refresh, p.hubFails, p.sessions = "refresh-0", 0, nil
		tokens := Tokens{
			Session: "session-0", ID: "one", Issued: now, Expires: now.Add(time.Hour), Refresh: "refresh-0", Nonce: "n",
			Issuer: p.URL, IssuerCA: string(p.CA), ClientID: "postern", Hub: p.URL,
		}
		if err := s.SaveTokens(t.Context(), "work", &tokens); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, token string) {
		t.Helper()
		if got, kind, err := session.SubjectToken(t.Context()); got != token || kind != api.TokenTypeJWT || err != nil {
			t.Errorf("%s: %s %s, %v; want %s", what, got, kind, err, token)
		}
	}
	wantEnd := func(what, text string) {
		t.Helper()
		_, _, err := session.SubjectToken(t.Context())
		if f := wire.AsFailure(err, wire.LegUnknown); f == nil || !strings.Contains(f.Text, text) {
			t.Errorf("%s: %v; want %q", what, err, text)
		}
	}
	wantEnd("nobody signed in", "no session")
	begin()
	want("fresh", "session-0")
	now = now.Add(31 * time.Minute)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { want("half way", "session-1") })
	}
	wg.Wait()
	if len(p.sessions) != 1 || p.sessions[0].Get("session") != "one" || p.sessions[0].Get("nonce_secret") != "n" {
		t.Errorf("renewed with %v", p.sessions)
	}

	begin()
	now = now.Add(31 * time.Minute)
	p.hubFails = http.StatusServiceUnavailable
	want("the hub is down, and the session lasts", "session-0")
	if kept, _, err := s.Tokens("work"); err != nil || kept.Refresh == "refresh-0" {
		t.Errorf("the new refresh token was not kept: %v", err)
	}
	now = now.Add(time.Hour)
	wantEnd("the hub is down, and the session is over", "the hub says no")
	begin()
	now = now.Add(31 * time.Minute)
	p.hubFails = http.StatusUnauthorized
	wantEnd("revoked", "the hub says no")

	begin()
	now = now.Add(31 * time.Minute)
	p.refresh = "another"
	want("the provider refuses, and the session lasts", "session-0")
	now = now.Add(time.Hour)
	wantEnd("the provider has refused, and the session is over", "does not renew")

	begin()
	now = now.Add(31 * time.Minute)
	p.Down(true)
	want("the provider is down, and the session lasts", "session-0")
	p.Down(false)

	begin()
	where.Hub = "https://other.example.org"
	if err := s.ChangeContexts(t.Context(), func(all *Contexts) error { return all.Save(where) }); err != nil {
		t.Fatal(err)
	}
	now = now.Add(31 * time.Minute)
	wantEnd("the context is another hub's", "now for https://other.example.org")
}

// FuzzContexts reads files that somebody may have written.
func FuzzContexts(f *testing.F) {
	f.Add([]byte("current: a\ncontexts:\n- name: a\n  hub: https://x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Store{t.TempDir()}
		if err := os.WriteFile(filepath.Join(s.dir, contextsFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := s.Contexts()
		for _, c := range all.Contexts {
			if err == nil && (!validContext.MatchString(c.Name) || !strings.HasPrefix(c.Hub, "https://")) {
				t.Errorf("context %+v", c)
			}
		}
	})
}
