package issuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/wire"
)

// syncBuffer is a log that a test can read while others write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// alone is an issuer that runs alone, on loopback, and a cluster whose tokens it takes.
type alone struct {
	url, dir string
	client   *http.Client
	cluster  *oidctest.Issuer
	log      *syncBuffer
	registry *observe.Registry
}

// certFiles makes a certificate for loopback.
func certFiles(t testing.TB, dir string) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "issuer"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return certFile, keyFile, pool
}

func startAlone(t testing.TB, path string) *alone {
	t.Helper()
	a := &alone{dir: t.TempDir(), cluster: oidctest.New(t), log: &syncBuffer{}, registry: observe.NewRegistry("issuer", "test")}
	caFile := filepath.Join(a.dir, "cluster-ca.crt")
	if err := os.WriteFile(caFile, a.cluster.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultStandaloneIssuer()
	cfg.Listen, cfg.Data, cfg.IssuerURL, cfg.KeyType = "127.0.0.1:0", filepath.Join(a.dir, "keys"), testURL+path, string(ECDSAP256)
	var pool *x509.CertPool
	cfg.TLSCertFile, cfg.TLSKeyFile, pool = certFiles(t, a.dir)
	entry := config.IdentityCaller{
		Name: "prod", Issuer: a.cluster.URL, Audiences: []string{"postern-issuer"}, CAFile: caFile, Account: "acme",
		Claims: []string{"sub=system:serviceaccount:postern-system:postern-operator"}, ControlPlanes: []string{"prod-*"},
	}
	other := entry
	other.Name, other.Claims, other.ControlPlanes, other.Account = "dev", []string{"sub=system:serviceaccount:dev:postern-operator"}, []string{"*", "*/*/*"}, "dev"
	cfg.Callers = []config.IdentityCaller{entry, other}
	addr := make(chan net.Addr, 1)
	server := NewServer(cfg, Options{
		Registry: a.registry, Health: observe.NewHealth(), Log: slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Started: func(at net.Addr) { addr <- at },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	a.client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case at := <-addr:
		a.url = "https://" + at.String()
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return a
}

// account returns a token of a service account of the cluster.
func (a *alone) account(t testing.TB, namespace string, change map[string]any) string {
	t.Helper()
	claims := a.cluster.Claims(time.Now(), "postern-issuer", map[string]any{"sub": "system:serviceaccount:" + namespace + ":postern-operator"})
	maps.Copy(claims, change)
	return a.cluster.Sign(t, claims)
}

func (a *alone) ask(ctx context.Context, token, org string, q api.CreateIdentityToken) (api.IdentityToken, error) {
	return (&api.Client{BaseURL: a.url, HTTP: a.client, Token: token}).CreateIdentityToken(ctx, org, q)
}

// TestAlone asks an issuer of its own process for a token, by that of a service account.
func TestAlone(t *testing.T) {
	a, ctx := startAlone(t, ""), t.Context()
	good := api.CreateIdentityToken{ControlPlane: "prod-1", Provider: "provider-aws", Audiences: []string{"sts.amazonaws.com"}}
	token, err := a.ask(ctx, a.account(t, "postern-system", nil), "acme", good)
	if err != nil || token.Subject != "mcp:acme/prod-1:provider:provider-aws" {
		t.Fatal(token.Subject, err)
	}
	if log := a.log.String(); !strings.Contains(log, token.ID) || !strings.Contains(log, "prod/system:serviceaccount:postern-system:postern-operator") || strings.Contains(log, token.Token[:40]) {
		t.Errorf("the log has the wrong things:\n%s", log)
	}
	for name, one := range map[string]struct {
		token, org string
		change     func(*api.CreateIdentityToken)
		code       wire.Code
	}{
		"nobody":                  {"", "acme", nil, wire.CodeUnauthenticated},
		"garbage":                 {"e30.e30.e30", "acme", nil, wire.CodeUnauthenticated},
		"another issuer":          {oidctest.New(t).Sign(t, map[string]any{"iss": "https://other.example.org", "sub": "x", "exp": time.Now().Add(time.Hour).Unix()}), "acme", nil, wire.CodeUnauthenticated},
		"another account":         {a.account(t, "default", nil), "acme", nil, wire.CodeUnauthenticated},
		"another audience":        {a.account(t, "postern-system", map[string]any{"aud": "other"}), "acme", nil, wire.CodeUnauthenticated},
		"expired":                 {a.account(t, "postern-system", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), "acme", nil, wire.CodeUnauthenticated},
		"good for a year":         {a.account(t, "postern-system", map[string]any{"exp": time.Now().Add(9000 * time.Hour).Unix()}), "acme", nil, wire.CodeUnauthenticated},
		"another organization":    {a.account(t, "postern-system", nil), "dev", nil, wire.CodeDenied},
		"another control plane":   {a.account(t, "postern-system", nil), "acme", func(q *api.CreateIdentityToken) { q.ControlPlane = "dev-1" }, wire.CodeDenied},
		"the other entry's right": {a.account(t, "dev", nil), "acme", nil, wire.CodeDenied},
		"smuggled":                {a.account(t, "dev", nil), "dev", func(q *api.CreateIdentityToken) { q.ControlPlane = "a:provider:b" }, wire.CodeBadRequest},
		"no provider":             {a.account(t, "dev", nil), "dev", func(q *api.CreateIdentityToken) { q.Provider = "" }, wire.CodeBadRequest},
		"its own token":           {token.Token, "acme", nil, wire.CodeUnauthenticated},
	} {
		q := good
		if one.change != nil {
			one.change(&q)
		}
		_, err := a.ask(ctx, one.token, one.org, q)
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != one.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range failureBurst {
		_, err = a.ask(ctx, "e30.e30.e30", "acme", good)
	}
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != http.StatusTooManyRequests || p.RetryAfter == 0 {
		t.Errorf("again and again: %v", err)
	}
	if _, err := a.ask(ctx, a.account(t, "postern-system", nil), "acme", good); err != nil {
		t.Errorf("a good one from the same address: %v", err)
	}
}

// TestAloneServes looks at what else an issuer of its own process serves, below a path.
func TestAloneServes(t *testing.T) {
	a := startAlone(t, "/id")
	do := func(method, path, body string) (int, string, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, a.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+a.account(t, "dev", nil))
		if body != "" {
			r.Header.Set("Content-Type", api.TypeJSON)
		}
		res, err := a.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b), res.Header
	}
	for _, one := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"GET", "/id/.well-known/openid-configuration", "", 200, `"issuer":"https://id.example.org/id"`},
		{"GET", "/id/.well-known/jwks", "", 200, `"kty":"EC"`},
		{"GET", "/.well-known/jwks", "", 404, ""},
		{"POST", "/id/.well-known/jwks", "", 405, ""},
		{"GET", "/healthz", "", 200, ""},
		{"GET", "/readyz", "", 200, ""},
		{"GET", "/", "", 404, ""},
		{"GET", "/metrics", "", 404, ""},
		{"GET", "/v1/organizations/dev/identity-tokens", "", 405, ""},
		{"POST", "/v1/organizations/dev/identity-tokens", `{"controlPlane":"a","provider":"b"}`, 201, `"subject":"mcp:dev/a:provider:b"`},
		{"POST", "/id/v1/organizations/dev/identity-tokens", `{"controlPlane":"s/g/a","provider":"b"}`, 201, `"subject":"mcp:dev/s/g/a:b"`},
		{"POST", "/v1/organizations/dev/identity-tokens", `{"controlPlane":"a","provider":"b","subject":"c"}`, 400, "unknown field"},
		{"POST", "/v1/organizations/dev/identity-tokens", `{"controlPlane":"a","provider":"b"}{}`, 400, "after its JSON"},
		{"POST", "/v1/organizations/dev/identity-tokens", ``, 415, "application/json"},
		{"POST", "/v1/organizations/dev/identity-tokens", `{"provider":"` + strings.Repeat("a", maxBody) + `"}`, 413, "longer than"},
	} {
		status, body, header := do(one.method, one.path, one.body)
		if status != one.status || !strings.Contains(body, one.has) || header.Get("Cache-Control") == "" {
			t.Errorf("%s %s %.80s: %d %s %v", one.method, one.path, one.body, status, body, header)
		}
		if status == 201 && header.Get("Cache-Control") != "no-store" {
			t.Errorf("a token may be cached: %v", header)
		}
	}
	if _, err := a.registry.Gatherer().Gather(); err != nil {
		t.Error(err)
	}
}

func TestServerRefusals(t *testing.T) {
	base := func() config.StandaloneIssuer {
		cfg := config.DefaultStandaloneIssuer()
		cfg.Listen, cfg.Data, cfg.IssuerURL, cfg.KeyType = "127.0.0.1:0", t.TempDir(), testURL, string(ECDSAP256)
		return cfg
	}
	for name, change := range map[string]func(*config.StandaloneIssuer){
		"port in use":       func(c *config.StandaloneIssuer) { c.Listen = busy(t) },
		"no certificate":    func(c *config.StandaloneIssuer) { c.TLSCertFile, c.TLSKeyFile = "nowhere", "nowhere" },
		"no such keys":      func(c *config.StandaloneIssuer) { c.KeysDir = t.TempDir() },
		"keys under a file": func(c *config.StandaloneIssuer) { c.Data = filepath.Join(os.Args[0], "x") },
		"no keys of a cluster": func(c *config.StandaloneIssuer) {
			c.Callers = []config.IdentityCaller{{Name: "a", JWKSFile: "nowhere"}}
		},
		"a bad rule": func(c *config.StandaloneIssuer) {
			c.Callers = []config.IdentityCaller{{Name: "a", Issuer: testURL, Audiences: []string{"a"}, Claims: []string{"sub=*"}}}
		},
	} {
		cfg := base()
		change(&cfg)
		started := false
		ctx, cancel := context.WithCancel(t.Context())
		err := NewServer(cfg, Options{Health: observe.NewHealth(), Log: slog.New(slog.DiscardHandler), Started: func(net.Addr) { started = true; cancel() }}).Run(ctx)
		cancel()
		if err == nil || started {
			t.Errorf("%s: it started, %v", name, err)
		}
	}
}

// busy returns an address that somebody listens on.
func busy(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// TestCertificateFollowsItsFiles reads the certificate again when it changes, and keeps
// the old one while the new one cannot be used.
func TestCertificateFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, _ := certFiles(t, dir)
	c, err := newCertificate(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	certFiles(t, dir)
	c.looked = time.Time{}
	second, err := c.get(nil)
	if err != nil || bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Errorf("the old one: %v", err)
	}
	if err := os.WriteFile(certFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.looked = time.Time{}
	if third, err := c.get(nil); err != nil || third != second {
		t.Errorf("a broken one: %v", err)
	}
}

// TestPace lets each caller ask as often as it may, and forgets those that asked long ago.
func TestPace(t *testing.T) {
	p, now := newPace(time.Second, 3), time.Unix(1_700_000_000, 0)
	for range 3 {
		if wait := p.Wait("a", now); wait != 0 {
			t.Fatal(wait)
		}
	}
	for range 5 { // to ask in vain does not make it longer
		if wait := p.Wait("a", now); wait != time.Second {
			t.Fatal(wait)
		}
	}
	if wait := p.Wait("b", now); wait != 0 {
		t.Error("another caller waits")
	}
	if wait := p.Wait("a", now.Add(time.Second)); wait != 0 {
		t.Error(wait)
	}
	for n := range paceKnown + 10 {
		p.Wait(string(rune('A'+n)), now)
	}
	if len(p.all) != paceKnown || p.order.Len() != paceKnown {
		t.Errorf("%d callers are remembered", len(p.all))
	}
}
