package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/oidc/oidctest"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func newVerifier(t *testing.T) (*oidc.Verifier, *clock) {
	t.Helper()
	c := &clock{at: time.Now()}
	v := oidc.NewVerifier(oidc.Options{Now: c.now})
	t.Cleanup(v.Close)
	return v, c
}

func TestVerify(t *testing.T) {
	issuer := oidctest.New(t)
	v, clock := newVerifier(t)
	claims, err := v.Verify(t.Context(), issuer.Config("other", "postern"), issuer.Sign(t, issuer.Claims(clock.now(), "postern", map[string]any{
		"groups": []string{"sre", "dev"}, "email": "ann@example.org", "email_verified": true, "level": 3,
		"kubernetes.io": map[string]any{"namespace": "prod"},
	})))
	if err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != issuer.URL || claims.Subject != "subject" || claims.ID == "" || claims.Expires.IsZero() || claims.IssuedAt.IsZero() {
		t.Errorf("claims: %+v", claims)
	}
	if diff := cmp.Diff([]string{"sre", "dev"}, claims.Strings("groups")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ann@example.org"}, claims.Strings("email")); diff != "" {
		t.Error(diff)
	}
	for _, ok := range []bool{
		claims.Bool("email_verified"), claims.Match("true", "email_verified"), claims.Match("dev", "groups"), claims.Match("3", "level"),
		claims.Match("prod", "kubernetes.io", "namespace"), claims.String("email") == "ann@example.org",
		!claims.Bool("email"), !claims.Match("ops", "groups"), !claims.Match("prod", "kubernetes.io"), !claims.Match("", "missing"),
		claims.Strings("level") == nil, claims.String("kubernetes.io", "namespace", "deeper") == "",
	} {
		if !ok {
			t.Errorf("claims are not what was signed: %+v", claims)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	issuer := oidctest.New(t)
	v, clock := newVerifier(t)
	now := clock.now()
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	none := func(claims map[string]any) string {
		b, _ := json.Marshal(claims)
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(b) + "."
	}
	with := func(claims map[string]any) map[string]any { return issuer.Claims(now, "postern", claims) }
	good := issuer.Sign(t, with(nil))
	parts := strings.Split(good, ".")
	tests := []struct {
		name  string
		token string
		want  error
	}{
		{"empty", "", oidc.ErrMalformed},
		{"not a token", "abc", oidc.ErrMalformed},
		{"alg none", none(with(nil)), oidc.ErrMalformed},
		{"HS256 with the public key's ID", oidctest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: make([]byte, 32), KeyID: "key-1"}}, with(nil)), oidc.ErrMalformed},
		{"huge", issuer.Sign(t, with(map[string]any{"pad": strings.Repeat("x", oidc.MaxToken)})), oidc.ErrMalformed},
		{"another's key", oidctest.Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: stranger, KeyID: "key-1"}}, with(nil)), oidc.ErrSignature},
		{"a key nobody knows", oidctest.Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: stranger, KeyID: "key-9"}}, with(nil)), oidc.ErrSignature},
		{"changed payload", parts[0] + "." + strings.Split(issuer.Sign(t, with(map[string]any{"sub": "root"})), ".")[1] + "." + parts[2], oidc.ErrSignature},
		{"another issuer", issuer.Sign(t, with(map[string]any{"iss": "https://evil.example.org"})), oidc.ErrIssuer},
		{"issuer with a slash more", issuer.Sign(t, with(map[string]any{"iss": issuer.URL + "/"})), oidc.ErrIssuer},
		{"another audience", issuer.Sign(t, with(map[string]any{"aud": "grafana"})), oidc.ErrAudience},
		{"no audience", issuer.Sign(t, with(map[string]any{"aud": nil})), oidc.ErrAudience},
		{"audience that is no text", issuer.Sign(t, with(map[string]any{"aud": []int{1}})), oidc.ErrAudience},
		{"expired", issuer.Sign(t, with(map[string]any{"exp": now.Add(-2 * time.Minute).Unix()})), oidc.ErrExpired},
		{"not yet", issuer.Sign(t, with(map[string]any{"nbf": now.Add(2 * time.Minute).Unix()})), oidc.ErrEarly},
		{"from the future", issuer.Sign(t, with(map[string]any{"iat": now.Add(2 * time.Minute).Unix()})), oidc.ErrEarly},
		{"no expiry", issuer.Sign(t, with(map[string]any{"exp": nil})), oidc.ErrMalformed},
		{"expiry that is no time", issuer.Sign(t, with(map[string]any{"exp": "tomorrow"})), oidc.ErrMalformed},
		{"expiry out of bounds", issuer.Sign(t, with(map[string]any{"exp": 1e300})), oidc.ErrMalformed},
		{"no subject", issuer.Sign(t, with(map[string]any{"sub": nil})), oidc.ErrMalformed},
	}
	for _, tt := range tests {
		claims, err := v.Verify(t.Context(), issuer.Config("postern"), tt.token)
		if claims != nil && err == nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if f := oidc.Failure(err, now); f.Text == "" || strings.Contains(f.Text, "eyJ") {
			t.Errorf("%s: for people: %+v", tt.name, f)
		}
	}
	if _, err := v.Verify(t.Context(), issuer.Config("postern"), good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	within := issuer.Sign(t, with(map[string]any{"exp": now.Add(-30 * time.Second).Unix(), "nbf": now.Add(30 * time.Second).Unix()}))
	if _, err := v.Verify(t.Context(), issuer.Config("postern"), within); err != nil {
		t.Errorf("clocks that differ by half a minute: %v", err)
	}
	if _, err := v.Verify(t.Context(), issuer.Config(), good); err == nil {
		t.Error("a token was good for no audience")
	}
	for _, algorithm := range []string{"none", "HS256", "ES999"} {
		c := issuer.Config("postern")
		c.Algorithms = []string{algorithm}
		if _, err := v.Verify(t.Context(), c, good); err == nil {
			t.Errorf("algorithm %s can be chosen", algorithm)
		}
	}
}

// TestRotation has an issuer change its key: a token of the new one is good at
// once, one of the old one not any more, and strangers who name unknown keys do
// not make the hub ask all the time.
func TestRotation(t *testing.T) {
	issuer := oidctest.New(t)
	v, clock := newVerifier(t)
	verify := func(token string) error {
		_, err := v.Verify(t.Context(), issuer.Config("postern"), token)
		return err
	}
	old := issuer.Sign(t, issuer.Claims(clock.now(), "postern", nil))
	if err := verify(old); err != nil {
		t.Fatal(err)
	}
	clock.add(10 * time.Second)
	issuer.Rotate()
	if err := verify(old); err != nil {
		t.Errorf("while nobody asked for the new keys: %v", err)
	}
	if err := verify(issuer.Sign(t, issuer.Claims(clock.now(), "postern", nil))); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if err := verify(old); !errors.Is(err, oidc.ErrSignature) {
		t.Errorf("old key: %v", err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	before := issuer.Asked()
	for range 100 {
		clock.add(100 * time.Millisecond)
		token := oidctest.Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: stranger, KeyID: rand.Text()}},
			issuer.Claims(clock.now(), "postern", nil))
		if err := verify(token); !errors.Is(err, oidc.ErrSignature) {
			t.Fatalf("a stranger's: %v", err)
		}
	}
	if n := issuer.Asked() - before; n > 4 {
		t.Errorf("a stranger had the keys asked for %d times in ten seconds", n)
	}
}

// TestOutage has an issuer go away: keys that are known stay good for a day.
func TestOutage(t *testing.T) {
	issuer := oidctest.New(t)
	v, clock := newVerifier(t)
	verify := func() error {
		_, err := v.Verify(t.Context(), issuer.Config("postern"), issuer.Sign(t, issuer.Claims(clock.now(), "postern", nil)))
		return err
	}
	issuer.Down(true)
	if err := verify(); !errors.Is(err, oidc.ErrUnavailable) || !strings.Contains(err.Error(), "503") {
		t.Errorf("down from the start: %v", err)
	}
	issuer.Down(false)
	if err := verify(); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("at once after a failure: %v", err)
	}
	clock.add(5 * time.Second)
	if err := verify(); err != nil {
		t.Errorf("up again: %v", err)
	}
	issuer.Down(true)
	clock.add(2 * time.Hour)
	if err := verify(); err != nil {
		t.Errorf("down for two hours: %v", err)
	}
	clock.add(23 * time.Hour)
	if err := verify(); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("down for more than a day: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Discover(ctx, oidc.Issuer{URL: "https://127.0.0.1:1"}); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("who asked went away: %v", err)
	}
}

// TestHang: an issuer that does not answer keeps nobody waiting whose key is known, and
// the others for a while only.
func TestHang(t *testing.T) {
	issuer := oidctest.New(t)
	v, c := newVerifier(t)
	verify := func(v *oidc.Verifier, token string) error {
		_, err := v.Verify(t.Context(), issuer.Config("postern"), token)
		return err
	}
	old := issuer.Sign(t, issuer.Claims(c.now(), "postern", nil))
	if err := verify(v, old); err != nil {
		t.Fatal(err)
	}
	c.add(16 * time.Minute) // the keys are to be asked for again
	issuer.Rotate()
	rotated := issuer.Sign(t, issuer.Claims(c.now(), "postern", nil))
	release := issuer.Hang()
	defer release()
	before := issuer.Asked()
	waits := make(chan error, 1)
	go func() { waits <- verify(v, rotated) }()
	for issuer.Asked() == before { // until that one waits
		runtime.Gosched()
	}
	if err := verify(v, old); err != nil {
		t.Errorf("with a known key: %v", err)
	}
	hasty := oidc.NewVerifier(oidc.Options{Now: c.now, Patience: time.Millisecond})
	t.Cleanup(hasty.Close)
	for range 2 { // the second is not asked
		if err := verify(hasty, rotated); !errors.Is(err, oidc.ErrUnavailable) {
			t.Errorf("without keys: %v", err)
		}
	}
	release()
	if err := <-waits; err != nil {
		t.Errorf("when it answers: %v", err)
	}
}

func TestDiscoverRefuses(t *testing.T) {
	for _, tt := range []struct {
		member string
		value  any
		want   string
	}{
		{"issuer", "https://evil.example.org", "the same to the letter"},
		{"jwks_uri", nil, "jwks_uri"},
		{"jwks_uri", "http://127.0.0.1:1/keys", "not https"},
		{"token_endpoint", "file:///etc/passwd", "token_endpoint"},
	} {
		issuer := oidctest.New(t)
		issuer.Set(tt.member, tt.value)
		v, _ := newVerifier(t)
		if _, err := v.Discover(t.Context(), issuer.Config()); !errors.Is(err, oidc.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%v: %v", tt.member, tt.value, err)
		}
	}
	issuer := oidctest.New(t)
	v, _ := newVerifier(t)
	if m, err := v.Discover(t.Context(), issuer.Config()); err != nil || m.TokenEndpoint != issuer.URL+"/token" {
		t.Errorf("%+v, %v", m, err)
	}
	c := issuer.Config("postern")
	c.CA = nil
	if _, err := v.Discover(t.Context(), c); err == nil {
		t.Error("a certificate that nobody trusts was trusted")
	}
	c = issuer.Config("postern")
	c.Public = true
	if _, err := v.Discover(t.Context(), c); err == nil || !strings.Contains(err.Error(), "public Internet") {
		t.Errorf("an issuer on loopback: %v", err)
	}
}

func TestKeysWithoutAsking(t *testing.T) {
	issuer := oidctest.New(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := jose.JSONWebKey{Key: key, KeyID: "own"}
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]string{"kty": "unknown"}, own.Public()}})
	if err != nil {
		t.Fatal(err)
	}
	v, clock := newVerifier(t)
	c := oidc.Issuer{URL: "https://cluster.example.org", Audiences: []string{"postern"}, Keys: set}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	claims := issuer.Claims(clock.now(), "postern", map[string]any{"iss": c.URL})
	if _, err := v.Verify(t.Context(), c, oidctest.Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: own}, claims)); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), c, issuer.Sign(t, claims)); !errors.Is(err, oidc.ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	c.Keys = []byte(`{"keys":[]}`)
	if c.Validate() == nil {
		t.Error("no keys are keys")
	}
}

func TestValidateURL(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://accounts.example.org": true, "https://example.org/realms/a": true, "http://127.0.0.1:8080": true, "http://localhost:1/x": true,
		"http://example.org": false, "example.org": false, "https://": false, "https://a@example.org": false, "https://example.org?x=1": false,
		"https://example.org#x": false, "ftp://example.org": false, "https:opaque": false, "": false,
	} {
		if err := oidc.ValidateURL(url); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
}
