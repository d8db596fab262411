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
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// serviceCA is an authority for the certificates of services.
type serviceCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newServiceCA(t *testing.T, name string) *serviceCA {
	t.Helper()
	c := &serviceCA{}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return c
}

// serve starts a service with a certificate for a name, and returns its port. It says who
// it is and what it was asked, or echoes a WebSocket's messages.
func (c *serviceCA) serve(t *testing.T, name string) uint16 {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprintf(w, "%s %s %s as %q %q %q", r.Host, r.Method, r.RequestURI, r.Header.Get("Authorization"), r.Header.Get("Impersonate-User"), r.Header.Get("Cookie"))
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = ws.CloseNow() }()
		for {
			kind, message, err := ws.Read(r.Context())
			if err != nil || ws.Write(r.Context(), kind, message) != nil {
				return
			}
		}
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	if c == nil {
		s.Start()
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
		if err != nil {
			t.Fatal(err)
		}
		s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
}

// shopDNS has all services of the namespace shop at loopback.
type shopDNS struct{}

func (shopDNS) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if !strings.HasSuffix(host, ".shop.svc") {
		return nil, fmt.Errorf("no such host %s", host)
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// TestGatewayToServices goes from the hub's URL to services: with certificates of the
// cluster's CA and of the services' own, without any, as a WebSocket, and by the names of
// ports; and to none whose certificate is another's.
func TestGatewayToServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.resolver = shopDNS{}
	k := newKube(t)
	inCluster, own, stranger := newServiceCA(t, "cluster"), newServiceCA(t, "services"), newServiceCA(t, "stranger")
	bundle := filepath.Join(k.dir, "bundle.crt")
	writeFile(t, bundle, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate().Raw}))+inCluster.pem)
	writeFile(t, filepath.Join(k.dir, "service.crt"), own.pem)
	web, native, plain := own.serve(t, "web.shop.svc"), inCluster.serve(t, "native.shop.svc"), (*serviceCA)(nil).serve(t, "")
	misnamed, foreign, hidden := own.serve(t, "other.shop.svc"), stranger.serve(t, "foreign.shop.svc"), own.serve(t, "web.shop.svc")
	const object = "/api/v1/namespaces/shop/services/"
	k.services = map[string]string{
		object + "web":   fmt.Sprintf(`{"kind":"Service","spec":{"ports":[{"name":"https","port":%d},{"name":"hidden","port":%d}]}}`, web, hidden),
		object + "plain": fmt.Sprintf(`{"kind":"Service","spec":{"ports":[{"name":"http","port":%d}]}}`, plain),
	}
	var targets []string
	for name, port := range map[string]uint16{"web": web, "native": native, "plain": plain, "misnamed": misnamed, "foreign": foreign} {
		targets = append(targets, fmt.Sprintf("tcp:%s.shop.svc:%d", name, port))
	}
	w.agent("a", func(a *config.Agent) {
		k.of("plant")(a)
		a.Kubernetes.CAFile, a.Kubernetes.ServiceCAFile = bundle, filepath.Join(k.dir, "service.crt")
		a.Allow = append(a.Allow, append(targets, fmt.Sprintf("tcp:web.shop.svc:%d", hidden))...)
	})
	token := tokenIn(t, w.token)
	w.serves(token, "plant")
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, "default-robots"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{To: "robot:machines", Agent: "plant", Targets: targets}); err != nil {
		t.Fatal(err)
	}
	path := func(service string, port any, rest string) string {
		return fmt.Sprintf("/plant/api/v1/namespaces/shop/services/%s:%v/proxy-service/%s", service, port, rest)
	}
	says := func(host string, port uint16) string {
		return fmt.Sprintf(`%s.shop.svc:%d GET /a%%2Fb?x as "" "" ""`, host, port)
	}
	eventually(t, patience, func() error { // the agent has to hear of the grant
		if code, body := w.call(token, path("web", web, "a%2Fb?x")); code != http.StatusOK || body != says("web", web) {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	for _, one := range []struct {
		path string
		code int
		text string
	}{
		{path("https:web", web, "a%2Fb?x"), 200, says("web", web)},
		{path("https:web", "https", "a%2Fb?x"), 200, says("web", web)},
		{path("web", "https", "a%2Fb?x"), 200, says("web", web)},
		{path("native", native, "a%2Fb?x"), 200, says("native", native)},
		{path("http:plain", plain, "a%2Fb?x"), 200, says("plain", plain)},
		{path("http:plain", "http", "a%2Fb?x"), 200, says("plain", plain)},
		{path("misnamed", misnamed, ""), 502, "tls: the certificate of service shop/misnamed is not good"},
		{path("foreign", foreign, ""), 502, "--service-ca-file"},
		{path("plain", plain, ""), 502, "service shop/plain"}, // it speaks no TLS
		{path("web", hidden, ""), 403, "service shop/web is not in the exposed services allowlist"},
		{path("web", "hidden", ""), 403, "it has no port named hidden that robot:machines may reach"},
		{path("web", "nothing", ""), 403, "it has no port named nothing that robot:machines may reach"},
		{path("native", "https", ""), 403, "let its service account get services"},
		{path("absent", 80, ""), 403, "service shop/absent is not in the exposed services allowlist"},
	} {
		if code, body := w.call(token, one.path); code != one.code || !strings.Contains(body, one.text) || code >= 400 && !strings.Contains(body, `"kind":"Status"`) {
			t.Errorf("%s: %d %s; want %d %s", one.path, code, body, one.code, one.text)
		}
	}

	for _, service := range []string{path("web", "https", "ws"), path("http:plain", plain, "ws")} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		ws, res, err := websocket.Dial(t.Context(), "wss://"+w.config.Listen+service, &websocket.DialOptions{
			HTTPClient: client, HTTPHeader: http.Header{"Authorization": {"Bearer " + token}},
		})
		if err != nil {
			t.Fatalf("%s: %v, %v", service, res, err)
		}
		for _, message := range []string{"hello", strings.Repeat("x", 20_000)} {
			if err := ws.Write(t.Context(), websocket.MessageText, []byte(message)); err != nil {
				t.Error(err)
			}
			if _, echo, err := ws.Read(t.Context()); err != nil || string(echo) != message {
				t.Errorf("%s: %d bytes come back, %v", service, len(echo), err)
			}
		}
		_ = ws.CloseNow()
		client.CloseIdleConnections()
	}
}
