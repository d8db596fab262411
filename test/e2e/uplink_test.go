package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestAgentBehindHTTPProxy lets an agent out through an HTTP proxy that asks for
// a password, and through nothing else: the hub's name resolves nowhere but at
// the proxy.
func TestAgentBehindHTTPProxy(t *testing.T) {
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	var tunnels, refused atomic.Int64
	egress := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
		if r.Method != http.MethodConnect || !ok || user != "site" || password != "s3cret" {
			refused.Add(1)
			http.Error(w, "who are you?", http.StatusProxyAuthRequired)
			return
		}
		if r.Host != "hub.invalid:4222" {
			refused.Add(1)
			http.Error(w, "not there", http.StatusForbidden)
			return
		}
		far, err := net.Dial("tcp", hub.Addr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer far.Close()
		near, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		tunnels.Add(1)
		if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		join(near, far)
	})}
	addr := harness.FreeAddr(t)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	go egress.Serve(l)
	t.Cleanup(func() { egress.Close() })

	agent := hub.StartAgent(t, harness.PartySpec{
		Allow: rules([]string{echo}),
		Args:  []string{"--connect-url", "tls://hub.invalid"},
		Env:   []string{"AGENT_PROXY=http://site:s3cret@" + addr},
	})
	args, forwards := forwardArgs(t, "edge", []string{echo})
	hub.StartProxy(t, harness.PartySpec{Args: args})
	for range 10 {
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d connections through the proxy", tunnels.Load())
	if tunnels.Load() < 2 || refused.Load() > 0 {
		t.Errorf("%d connections went through the proxy and %d were refused; want the bus and some pipes", tunnels.Load(), refused.Load())
	}
	if strings.Contains(agent.Log(), "s3cret") {
		t.Error("the agent's log has the proxy's password")
	}

	wrong := hub.StartAgent(t, harness.PartySpec{
		Replica: "wrong", NoWait: true,
		Args: []string{"--connect-url", "tls://hub.invalid"},
		Env:  []string{"AGENT_PROXY=http://site:guess@" + addr},
	})
	wrong.WaitLog(t, `407`, 20*time.Second)
}

// join copies both ways until both have ended.
func join(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		a.Close()
	}()
	_, _ = io.Copy(b, a)
	b.Close()
	<-done
}

// TestIPv6 runs everything over IPv6.
func TestIPv6(t *testing.T) {
	deadline(t)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Logf("this machine has no IPv6: %v", err)
		return
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				harness.Echo(conn.(*net.TCPConn))
			}()
		}
	}()
	hub := harness.StartHub(t, programs, harness.HubSpec{Addr: "[::1]:" + strconv.Itoa(harness.FreePort(t))})
	hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{l.Addr().String()})})
	listen := "[::1]:" + strconv.Itoa(harness.FreePort(t))
	hub.StartProxy(t, harness.PartySpec{Args: []string{"--forward", listen + "=edge/tcp:" + l.Addr().String()}})
	if err := harness.PingEcho(listen, 10*time.Second); err != nil {
		t.Error(err)
	}
}

// TestPublicCertificate gives a hub a certificate of a CA that the system
// trusts, and then the next one, without a restart.
func TestPublicCertificate(t *testing.T) {
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	dir := t.TempDir()
	ca := newCA(t)
	roots := filepath.Join(dir, "roots.pem")
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	ca.issue(t, 2, certFile, keyFile)

	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{"--tls-cert-file", certFile, "--tls-key-file", keyFile}})
	url := "tls://localhost:" + port(hub.Addr)
	env := []string{"SSL_CERT_FILE=" + roots, "SSL_CERT_DIR=/nonexistent"}
	admin := func(args ...string) (string, string, error) {
		return harness.Try(t, 20*time.Second, append(env, "POSTERN_HUB=https://localhost:"+port(hub.Addr),
			"POSTERN_TOKEN_FILE="+filepath.Join(hub.Data, "admin.token")), programs.Postern, args...)
	}
	if stdout, stderr, err := admin("robot", "create", "machines"); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	token := filepath.Join(dir, "token.json")
	if stdout, stderr, err := admin("robot", "token", "create", "machines", "one", "-f", token); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	spec := harness.PartySpec{Token: token, SystemCAs: true, Env: env, Args: []string{"--connect-url", url}, Allow: rules([]string{echo})}
	hub.StartAgent(t, spec)
	args, forwards := forwardArgs(t, "edge", []string{echo})
	spec.Allow, spec.Args = nil, append(spec.Args, args...)
	hub.StartProxy(t, spec)
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if serial := serves(t, hub.Addr); serial != 2 {
		t.Fatalf("the hub presents certificate %d", serial)
	}
	ca.issue(t, 3, certFile, keyFile)
	harness.Eventually(t, 30*time.Second, "the hub presents its new certificate", func() error {
		if serial := serves(t, hub.Addr); serial != 3 {
			return fmt.Errorf("it presents certificate %d", serial)
		}
		return nil
	})
	// A broken one must not take the place of a good one.
	write(t, certFile, []byte("not a certificate"))
	time.Sleep(3 * time.Second) // there is no event to wait for when nothing must happen
	if serial := serves(t, hub.Addr); serial != 3 {
		t.Errorf("after a broken file the hub presents certificate %d", serial)
	}
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Error(err)
	}
}

// serves returns the serial number of the certificate that a server presents.
func serves(t *testing.T, addr string) int64 {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// authority is a CA of the tests' own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Public CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

// issue writes a certificate for localhost and its key.
func (a *authority) issue(t *testing.T, serial int64, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost", "hub.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	keyDER, keyErr := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err, keyErr); err != nil {
		t.Fatal(err)
	}
	// The key first: who reloads at the certificate's change finds both new.
	write(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	write(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// write replaces a file at once, as tools that renew certificates do.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
