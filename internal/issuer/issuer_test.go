package issuer

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testURL = "https://id.example.org"

func testSchedule() Schedule { return Schedule{Age: 30 * 24 * time.Hour, Ahead: 24 * time.Hour} }

// open opens an issuer on a folder.
func open(t testing.TB, dir string, change ...func(*Config)) *Issuer {
	t.Helper()
	folder, err := NewFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{URL: testURL, Keys: folder, Schedule: testSchedule(), Type: ECDSAP256}
	for _, f := range change {
		f(&c)
	}
	i, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// get asks for a document.
func get(t testing.TB, h http.Handler, method, path string, fields ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for n := 0; n < len(fields); n += 2 {
		r.Header.Set(fields[n], fields[n+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func bodyOf(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mint(t testing.TB, i *Issuer) Token {
	t.Helper()
	token, err := i.Mint(Request{
		Account: "my-org", ControlPlane: controlplane.Ref{Name: "prod1"}, Provider: "provider-aws", Audiences: []string{"sts.amazonaws.com"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// verify verifies a token with the keys that an issuer shows now.
func verify(t testing.TB, i *Issuer, token string, now time.Time) error {
	t.Helper()
	v := oidc.NewVerifier(oidc.Options{Now: func() time.Time { return now }})
	_, err := v.Verify(t.Context(), oidc.Issuer{
		URL: i.URL(), Audiences: []string{"sts.amazonaws.com"}, Keys: []byte(bodyOf(t, get(t, i, "GET", i.path+keysPath))),
	}, token)
	return err
}

// TestDocuments compares with the document's, to the letter.
func TestDocuments(t *testing.T) {
	i := open(t, t.TempDir(), func(c *Config) { c.Type = RSA2048 })
	res := get(t, i, "GET", "/.well-known/openid-configuration")
	want := `{"issuer":"https://id.example.org","jwks_uri":"https://id.example.org/.well-known/jwks","response_types_supported":["id_token"],` +
		`"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["RS256"],"claims_supported":["sub","aud","exp","iat","iss","jti","nbf"]}` + "\n"
	if diff := cmp.Diff(want, bodyOf(t, res)); diff != "" {
		t.Error(diff)
	}
	if got := res.Header; got.Get("Cache-Control") != "public, max-age=60" || got.Get("Content-Type") != "application/json" || got.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("header %v", got)
	}
	keys := get(t, i, "GET", "/.well-known/jwks")
	text := bodyOf(t, keys)
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal([]byte(text), &set); err != nil || len(set.Keys) != 1 {
		t.Fatal(text, err)
	}
	key := set.Keys[0]
	if key["kty"] != "RSA" || key["alg"] != "RS256" || key["use"] != "sig" || key["e"] != "AQAB" || key["kid"] != i.Keys()[0].ID || len(key) != 6 {
		t.Errorf("key %v", key)
	}
	if strings.Contains(text, `"d"`) || strings.Contains(text, `"p"`) {
		t.Error("the set holds a private key")
	}
	for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/jwks"} {
		etag := get(t, i, "GET", path).Header.Get("ETag")
		if res := get(t, i, "HEAD", path); res.StatusCode != 200 || bodyOf(t, res) != "" || res.Header.Get("Content-Length") == "" {
			t.Errorf("HEAD %s: %v", path, res)
		}
		if res := get(t, i, "GET", path, "If-None-Match", etag); res.StatusCode != 304 || bodyOf(t, res) != "" {
			t.Errorf("%s again: %v", path, res.Status)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} {
			if res := get(t, i, method, path); res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s %s: %v", method, path, res)
			}
		}
	}
	for _, path := range []string{"/", "/.well-known/jwks.json", "/.well-known/jwks/", "/.well-known/", "/issuer/.well-known/jwks"} {
		r := httptest.NewRequest("GET", path, nil)
		if res := get(t, i, "GET", path); res.StatusCode != 404 || i.Owns(r) {
			t.Errorf("%s: %v", path, res.Status)
		}
	}
}

// TestURLWithPath serves below the path of the URL, as the standard appends it.
func TestURLWithPath(t *testing.T) {
	i := open(t, t.TempDir(), func(c *Config) { c.URL = testURL + "/tenants/eu" })
	var d discovery
	if err := json.Unmarshal([]byte(bodyOf(t, get(t, i, "GET", "/tenants/eu/.well-known/openid-configuration"))), &d); err != nil {
		t.Fatal(err)
	}
	if d.Issuer != testURL+"/tenants/eu" || d.JWKSURI != testURL+"/tenants/eu/.well-known/jwks" || !slices.Equal(d.Algorithms, []string{"ES256"}) {
		t.Errorf("%+v", d)
	}
	if res := get(t, i, "GET", "/.well-known/openid-configuration"); res.StatusCode != 404 {
		t.Error(res.Status)
	}
	if err := verify(t, i, mint(t, i).Value, time.Now()); err != nil {
		t.Error(err)
	}
}

// TestToken compares a token with the document's, claim by claim.
func TestToken(t *testing.T) {
	for _, kind := range []KeyType{RSA2048, RSA3072, ECDSAP256} {
		now := time.Unix(1680120565, 999)
		i := open(t, t.TempDir(), func(c *Config) { c.Type, c.Now = kind, func() time.Time { return now } })
		token := mint(t, i)
		parts := strings.Split(token.Value, ".")
		var header map[string]string
		for n, into := range []any{&header} {
			b, err := base64.RawURLEncoding.DecodeString(parts[n])
			if err != nil || json.Unmarshal(b, into) != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(map[string]string{"alg": kind.Algorithm(), "kid": i.Keys()[0].ID, "typ": "JWT"}, header); diff != "" {
			t.Error(diff)
		}
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		want := `{"iss":"https://id.example.org","sub":"mcp:my-org/prod1:provider:provider-aws","aud":["sts.amazonaws.com"],` +
			`"exp":1680124165,"nbf":1680120565,"iat":1680120565,"jti":"` + token.ID + `"}`
		if diff := cmp.Diff(want, string(payload)); diff != "" {
			t.Error(diff)
		}
		if id, err := base64.StdEncoding.DecodeString(token.ID); err != nil || len(id) != 16 {
			t.Errorf("jti %q", token.ID)
		}
		if token.Expires.Sub(token.IssuedAt) != time.Hour || mint(t, i).ID == token.ID {
			t.Errorf("%+v", token)
		}
		for after, good := range map[time.Duration]bool{0: true, 59 * time.Minute: true, 62 * time.Minute: false} {
			if err := verify(t, i, token.Value, now.Add(after)); (err == nil) != good {
				t.Errorf("%s later: %v", after, err)
			}
		}
		other := open(t, t.TempDir())
		if err := verify(t, other, token.Value, now); !errors.Is(err, oidc.ErrSignature) {
			t.Errorf("another issuer's keys: %v", err)
		}
	}
}

func TestMintRefuses(t *testing.T) {
	i := open(t, t.TempDir())
	good := Request{Account: "acme", ControlPlane: controlplane.Ref{Name: "prod"}, Provider: "p"}
	token, err := i.Mint(good)
	if err != nil || !slices.Equal(token.Audiences, []string{testURL}) {
		t.Errorf("without an audience: %v, %v", token.Audiences, err)
	}
	for name, change := range map[string]func(*Request){
		"account":        func(q *Request) { q.Account = "a:b" },
		"control plane":  func(q *Request) { q.ControlPlane.Name = "prod:provider:admin" },
		"provider":       func(q *Request) { q.Provider = "p/q" },
		"empty audience": func(q *Request) { q.Audiences = []string{"a", ""} },
		"long audience":  func(q *Request) { q.Audiences = []string{strings.Repeat("a", 256)} },
		"two in one":     func(q *Request) { q.Audiences = []string{"a,b"} },
		"space":          func(q *Request) { q.Audiences = []string{"a b"} },
		"not ASCII":      func(q *Request) { q.Audiences = []string{"ä"} },
		"many audiences": func(q *Request) { q.Audiences = slices.Repeat([]string{"a"}, 9) },
		"half a scope":   func(q *Request) { q.ControlPlane.Space = "s" },
		"newline":        func(q *Request) { q.ControlPlane.Name = "prod\n" },
		"no account":     func(q *Request) { q.Account = "" },
		"no provider":    func(q *Request) { q.Provider = "" },
		"nothing at all": func(q *Request) { *q = Request{} },
	} {
		q := good
		change(&q)
		var f *wire.Failure
		if token, err := i.Mint(q); !errors.As(err, &f) || f.Code != wire.CodeBadRequest || token.Value != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeysSurviveRestarts opens an issuer again and again on one folder.
func TestKeysSurviveRestarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "issuer")
	now := time.Now().Truncate(time.Second)
	at := func(c *Config) { c.Now = func() time.Time { return now } }
	first := open(t, dir, at)
	token := mint(t, first).Value
	if info, err := os.Stat(filepath.Join(dir, keysFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	if err := first.Rotate(false); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, at)
	if diff := cmp.Diff(bodyOf(t, get(t, first, "GET", keysPath)), bodyOf(t, get(t, again, "GET", keysPath))); diff != "" {
		t.Error(diff)
	}
	if err := verify(t, again, token, now); err != nil {
		t.Error(err)
	}
	now = now.Add(24 * time.Hour)
	later := open(t, dir, at)
	if keys := later.Keys(); len(keys) != 2 || keys[0].ID == first.Keys()[0].ID || keys[1].Phase != Retiring || !later.Describe()[1].Ends.Equal(now.Add(linger)) {
		t.Errorf("%+v", keys)
	}
	// What another process changed is seen by those that run.
	if gone, err := later.Withdraw(later.Keys()[1].ID); err != nil || gone == "" {
		t.Fatal(err)
	}
	if err := again.step(); err != nil || len(again.Keys()) != 1 {
		t.Errorf("%v, %v", again.Keys(), err)
	}
	if err := verify(t, again, token, now.Add(-24*time.Hour)); !errors.Is(err, oidc.ErrSignature) {
		t.Errorf("a token of a withdrawn key: %v", err)
	}
}

// TestRunRotates lets a few hours pass.
func TestRunRotates(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		i := open(t, dir, func(c *Config) { c.Schedule = Schedule{Age: 4 * time.Hour, Ahead: time.Hour} })
		first := i.Keys()[0].ID
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { i.Run(ctx) })
		time.Sleep(3*time.Hour + 2*look)
		if keys := i.Keys(); len(keys) != 2 || keys[0].ID != first || keys[1].Phase != Published {
			t.Errorf("an hour before: %+v", keys)
		}
		time.Sleep(time.Hour)
		if keys := i.Keys(); len(keys) != 2 || keys[0].ID == first || keys[1].ID != first {
			t.Errorf("then: %+v", keys)
		}
		if i.signingAge() > time.Minute || i.counts()["retiring"] != 1 {
			t.Errorf("metrics: %s, %v", i.signingAge(), i.counts())
		}
		time.Sleep(linger + 2*look)
		if keys := i.Keys(); len(keys) != 1 || keys[0].ID == first {
			t.Errorf("at last: %+v", keys)
		}
		cancel()
		wg.Wait()
	})
}

// TestWithdrawAtOnce: the key that signs is withdrawn, and the next token has another.
func TestWithdrawAtOnce(t *testing.T) {
	i := open(t, t.TempDir())
	old, token := i.Keys()[0].ID, mint(t, i).Value
	if gone, err := i.Withdraw(old[:8]); err != nil || gone != old {
		t.Fatal(gone, err)
	}
	if keys := i.Keys(); len(keys) != 1 || keys[0].ID == old || keys[0].Phase != Signing {
		t.Errorf("%+v", keys)
	}
	if err := verify(t, i, token, time.Now()); !errors.Is(err, oidc.ErrSignature) {
		t.Errorf("a token of the withdrawn key: %v", err)
	}
	if err := verify(t, i, mint(t, i).Value, time.Now()); err != nil {
		t.Error(err)
	}
	var f *wire.Failure
	if _, err := i.Withdraw(old); !errors.As(err, &f) || f.Code != wire.CodeBadRequest || f.Hint == "" {
		t.Errorf("again: %v", err)
	}
	if err := i.Rotate(false); err != nil {
		t.Fatal(err)
	}
	if err := i.Rotate(false); !errors.As(err, &f) || !errors.Is(err, ErrRotating) || f.Hint == "" {
		t.Errorf("two at once: %v", err)
	}
	if err := i.Rotate(true); err != nil || len(i.Keys()) != 2 || i.Keys()[1].Phase != Retiring {
		t.Errorf("at once: %v, %+v", err, i.Keys())
	}
}

// TestManyAtOnce mints while keys change.
func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	i, other := open(t, dir), open(t, dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				token := mint(t, i)
				if _, err := jose.ParseSignedCompact(token.Value, []jose.SignatureAlgorithm{jose.ES256}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, one := range []*Issuer{i, other} {
		wg.Go(func() {
			for range 5 {
				if err := one.Rotate(true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := i.step(); err != nil || len(i.Keys()) != 11 {
		t.Errorf("%d keys, %v", len(i.Keys()), err)
	}
}

func TestFolderRefusals(t *testing.T) {
	dir := t.TempDir()
	i := open(t, dir)
	name := filepath.Join(dir, keysFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	tryOpen := func() error {
		folder, err := NewFolder(dir)
		if err != nil {
			return err
		}
		_, err = Open(Config{URL: testURL, Keys: folder, Schedule: testSchedule(), Type: ECDSAP256})
		return err
	}
	for what, content := range map[string]string{
		"empty": "", "not JSON": "x", "another format": `{"format":2}`, "no key": `{"format":1}`, "cut off": string(good[:len(good)/2]),
		"another ID":    strings.Replace(string(good), i.Keys()[0].ID[:8], "AAAAAAAA", 1),
		"another phase": strings.Replace(string(good), `"signing"`, `"dreaming"`, 1),
		"no private":    strings.Replace(string(good), "PRIVATE KEY", "PUBLIC KEY", 2),
		"long":          string(good) + strings.Repeat(" ", maxFile),
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := tryOpen(); !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.ReadFile(name); err != nil || string(after) != content {
			t.Errorf("%s: the file was changed", what)
		}
		if err := i.step(); err == nil || len(i.Keys()) != 1 { // one that runs goes on with what it knows
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "0644") {
		t.Errorf("readable by all: %v", err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(); err != nil {
		t.Error(err)
	}
}

// pemKey writes a key in one of the ways that people have them.
func pemKey(t testing.TB, kind string, k *rsa.PrivateKey) []byte {
	t.Helper()
	var der []byte
	var err error
	switch kind {
	case "RSA PRIVATE KEY":
		der = x509.MarshalPKCS1PrivateKey(k)
	case publicBlock:
		der, err = x509.MarshalPKIXPublicKey(&k.PublicKey)
	default:
		der, err = x509.MarshalPKCS8PrivateKey(k)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestMounted follows a Secret that somebody else rotates.
func TestMounted(t *testing.T) {
	var keys []*rsa.PrivateKey
	for range 2 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	// The kubelet swaps a link.
	dir := t.TempDir()
	version := 0
	mount := func(files map[string][]byte) {
		t.Helper()
		version++
		data := filepath.Join(dir, "..v"+string(rune('0'+version)))
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(data, name), b, 0o440); err != nil {
				t.Fatal(err)
			}
			_ = os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)) // may be there
		}
		if err := errors.Join(os.Symlink(data, filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
		links, _ := filepath.Glob(filepath.Join(dir, "*.pem"))
		for _, link := range links {
			if _, ok := files[filepath.Base(link)]; !ok {
				_ = os.Remove(link)
			}
		}
	}
	mount(map[string][]byte{signingFile: pemKey(t, "RSA PRIVATE KEY", keys[0]), "README": []byte("x")})
	i, err := Open(Config{URL: testURL, Keys: &Mounted{dir}, Schedule: testSchedule(), Type: RSA2048})
	if err != nil {
		t.Fatal(err)
	}
	token := mint(t, i).Value
	mount(map[string][]byte{signingFile: pemKey(t, privateBlock, keys[0]), "next.pem": pemKey(t, privateBlock, keys[1])})
	if err := i.step(); err != nil || len(i.Keys()) != 2 || i.Keys()[1].Phase != Published {
		t.Fatal(err, i.Keys())
	}
	mount(map[string][]byte{signingFile: pemKey(t, privateBlock, keys[1]), "next.pem": pemKey(t, privateBlock, keys[1]), "last.pem": pemKey(t, publicBlock, keys[0])})
	if err := i.step(); err != nil || len(i.Keys()) != 2 {
		t.Fatal(err, i.Keys())
	}
	for _, one := range []string{token, mint(t, i).Value} {
		if err := verify(t, i, one, time.Now()); err != nil {
			t.Error(err)
		}
	}
	if err := i.Rotate(true); !errors.Is(err, ErrReadOnly) {
		t.Errorf("rotate: %v", err)
	}
	if _, err := i.Withdraw(i.Keys()[0].ID); !errors.Is(err, ErrReadOnly) {
		t.Errorf("withdraw: %v", err)
	}
	for what, files := range map[string]map[string][]byte{
		"no signing.pem": {"a.pem": pemKey(t, privateBlock, keys[0])},
		"public only":    {signingFile: pemKey(t, publicBlock, keys[0])},
		"garbage":        {signingFile: []byte("x")},
		"a certificate":  {signingFile: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
	} {
		mount(files)
		if err := i.step(); !errors.Is(err, ErrCorrupt) || len(i.Keys()) != 2 {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Open(Config{URL: testURL, Keys: &Mounted{t.TempDir()}, Schedule: testSchedule(), Type: RSA2048}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestWeakKeysAreRefused(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Log(err) // the library refuses to make one: so much the better
		return
	}
	if _, err := parseKey(pemKey(t, privateBlock, k)); err == nil {
		t.Error("a key of 1024 bits passes")
	}
}

// FuzzKeys reads files of keys.
func FuzzKeys(f *testing.F) {
	dir := f.TempDir()
	open(f, dir)
	b, err := os.ReadFile(filepath.Join(dir, keysFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"keys":[{"id":"a","phase":"signing","key":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}]}`))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseKey(b); err == nil && (k.ID == "" || k.Type.Algorithm() == "" || k.public == nil) {
			t.Errorf("%q: half a key", b)
		}
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if len(r.keys) == 0 || r.check() != nil {
			t.Errorf("%q: %v", b, r)
		}
		if _, err := keysDocument(r.keys); err != nil {
			t.Errorf("%q: %v", b, err)
		}
	})
}
