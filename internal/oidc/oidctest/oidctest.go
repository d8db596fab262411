// Package oidctest is an issuer of tokens for tests: it serves a discovery document
// and keys, and signs what a test wants.
package oidctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/oidc"
)

// Issuer is an issuer at an address of loopback, over https. Safe for concurrent
// use.
type Issuer struct {
	URL string
	CA  []byte         // PEM that its certificate is verified with
	Mux *http.ServeMux // for further endpoints

	mu       sync.Mutex
	n        int
	key      jose.JSONWebKey
	served   []jose.JSONWebKey
	metadata map[string]any
	down     bool
	hold     chan struct{} // nil unless it hangs
	asked    int
}

// New starts an issuer, which ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{Mux: http.NewServeMux()}
	server := httptest.NewTLSServer(i)
	t.Cleanup(server.Close)
	i.URL = server.URL
	i.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	i.metadata = map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/jwks", "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token",
		"device_authorization_endpoint": i.URL + "/device",
	}
	i.Rotate()
	return i
}

// Config returns what a Verifier needs to know of the issuer.
func (i *Issuer) Config(audiences ...string) oidc.Issuer {
	return oidc.Issuer{URL: i.URL, Audiences: audiences, CA: i.CA}
}

// Rotate signs with a new key from now on, and serves that one alone.
func (i *Issuer) Rotate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system draws no random numbers
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
	i.key = jose.JSONWebKey{Key: key, KeyID: fmt.Sprint("key-", i.n), Algorithm: string(jose.ES256), Use: "sig"}
	i.served = []jose.JSONWebKey{i.key.Public()}
}

// Set changes a member of the discovery document; nil removes it.
func (i *Issuer) Set(member string, value any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.metadata[member] = value
	if value == nil {
		delete(i.metadata, member)
	}
}

// Down has everything answered with an error, or not any more.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Hang has nothing answered until release, which the test must call.
func (i *Issuer) Hang() (release func()) {
	hold := make(chan struct{})
	i.mu.Lock()
	defer i.mu.Unlock()
	i.hold = hold
	return sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.hold = nil
		close(hold)
	})
}

// Asked returns how often the keys were asked for.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// Claims returns those of a token that is good for an hour, with the given ones
// in addition or instead; one with the value nil is left out.
func (i *Issuer) Claims(now time.Time, audience string, claims map[string]any) map[string]any {
	all := map[string]any{
		"iss": i.URL, "aud": audience, "sub": "subject", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": rand.Text(),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	return all
}

// Sign returns a token with some claims, signed with the current key.
func (i *Issuer) Sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	key := i.key
	i.mu.Unlock()
	return Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, claims)
}

// Sign returns a token with some claims, signed with any key.
func Sign(t testing.TB, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	down, hold := i.down, i.hold
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		answer = maps.Clone(i.metadata)
	case "/jwks":
		i.asked++
		answer = jose.JSONWebKeySet{Keys: i.served}
	}
	i.mu.Unlock()
	if hold != nil {
		<-hold
	}
	switch {
	case down:
		http.Error(w, "down", http.StatusServiceUnavailable)
	case answer != nil:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	default:
		i.Mux.ServeHTTP(w, r)
	}
}
