package hubtest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/testnet"
)

// TestGatewayListener: the gateway's own listener has nothing else, and certificates
// count there alone.
func TestGatewayListener(t *testing.T) {
	t.Parallel()
	ca, key, file := clientCA(t)
	var listen string
	w := newWorld(t, func(h *config.Hub) {
		listen = testnet.FreeAddr(t)
		h.GatewayListen, h.GatewayClientCAFile, h.GatewayNames = listen, file, []string{"user.addon.svc.cluster.local"}
	})
	k := newKube(t)
	w.agent("a", k.of("v1"))
	token := tokenIn(t, w.token)
	w.serves(token, "default:v1")
	if _, err := w.admin.GrantRole(t.Context(), config.DefaultOrganization, api.GrantRole{Role: "viewer", Principal: "user:ann"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{To: "group:sre", Agent: "v1", Targets: []string{"gateway"}}); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(w.info.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	one := clientCertificate(t, ca, key)
	ask := func(addr, path, token string) (int, string) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, addr)
			},
			TLSClientConfig:   &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return one, nil }},
			DisableKeepAlives: true, ForceAttemptHTTP2: true,
		}}
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: "user.addon.svc.cluster.local:9092", Path: path}, Header: http.Header{}}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := client.Do(r.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	if code, body := ask(listen, "/v1/api", token); code != http.StatusOK || body != "hello postern:robot:machines" {
		t.Errorf("with a token: %d %s", code, body)
	}
	if code, body := ask(listen, "/v1/api", ""); code != http.StatusOK || body != "hello ann" {
		t.Errorf("with a certificate: %d %s", code, body)
	}
	if one, _ := k.last(); !slices.Equal(one.Groups, []string{"sre", "system:authenticated"}) {
		t.Errorf("in the groups %v", one.Groups)
	}
	if code, body := ask(w.config.Listen, "/default:v1/api", ""); code != http.StatusUnauthorized {
		t.Errorf("with a certificate at the one port: %d %s", code, body)
	}
	for _, path := range []string{"/v1/organizations", "/healthz", "/v1/token"} {
		if code, body := ask(listen, path, token); strings.Contains(body, `"organizations"`) || code == http.StatusOK && !strings.HasPrefix(body, "hello") {
			t.Errorf("the API answers at the gateway's listener: %s: %d %s", path, code, body)
		}
	}
	if code, _ := ask(w.config.Listen, "/healthz", ""); code != http.StatusOK {
		t.Errorf("the API's own path: %d", code)
	}
	if err := w.admin.RevokeUser(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	if code, body := ask(listen, "/v1/api", ""); code != http.StatusUnauthorized || !strings.Contains(body, "revoked") {
		t.Errorf("a revoked user's certificate: %d %s", code, body)
	}
}

// clientCA makes an authority of client certificates, and a file with its certificate.
func clientCA(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "people"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "people.crt")
	writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return ca, key, file
}

// clientCertificate issues ann's.
func clientCertificate(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ann", Organization: []string{"sre", "system:masters"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
