package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func newAuthority(t *testing.T) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority("test.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func hubCertificate(t *testing.T, a *identity.Authority, hosts ...string) tls.Certificate {
	t.Helper()
	cert, err := a.IssueServer("one", hosts, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// serveTLS accepts connections until the test ends and answers each with "hi"
// after its handshake.
func serveTLS(t *testing.T, conf *tls.Config) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer raw.Close()
				conn := tls.Server(raw, conf)
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				if conn.Handshake() == nil {
					_, _ = io.WriteString(conn, "hi")
					_ = conn.CloseWrite()
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func caFile(t *testing.T, pem []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(name, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDialTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	conf := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNBus}, Certificates: []tls.Certificate{hubCertificate(t, a)}}
	addr := serveTLS(t, conf)
	both := append(append([]byte("comment\n"), other.CertificatePEM()...), a.CertificatePEM()...)
	good := map[string]Config{
		"file":         {CAFile: caFile(t, a.CertificatePEM())},
		"bundle":       {CAFile: caFile(t, both)},
		"file and pin": {CAFile: caFile(t, both), CAPin: a.Pin()},
		"pool":         {Roots: a.Pool()},
		"pin":          {CAPin: a.Pin()},
	}
	for name, c := range good {
		t.Run(name, func(t *testing.T) {
			c.ConnectURL, c.Getenv = "tls://"+addr, noEnv
			d, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := d.DialRaw(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conn, peer, err := d.Handshake(t.Context(), raw, wire.ALPNBus, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hi" {
				t.Errorf("read %q, %v", got, err)
			}
			if peer.ID.Name != "one" || peer.Pin != a.Pin() || peer.Version != "TLS 1.3" || peer.ALPN != wire.ALPNBus || !peer.Verified {
				t.Errorf("peer %+v", peer)
			}
		})
	}
	bad := map[string]struct {
		c    Config
		text string
	}{
		"system roots": {Config{}, "--ca-pin"},
		"seen pin":     {Config{}, a.Pin()},
		"other file":   {Config{CAFile: caFile(t, other.CertificatePEM())}, a.Pin()},
		"other pin":    {Config{CAPin: other.Pin()}, a.Pin()},
		"file by pin":  {Config{CAFile: caFile(t, both), CAPin: other.Pin()}, a.Pin()},
		"leaf pin":     {Config{CAPin: identity.Pin(conf.Certificates[0].Leaf)}, "itself"},
		"clock ahead":  {Config{CAPin: a.Pin(), Now: func() time.Time { return time.Now().Add(2 * time.Hour) }}, "clock"},
		"clock behind": {Config{CAPin: a.Pin(), Now: func() time.Time { return time.Now().Add(-48 * time.Hour) }}, "not yet valid"},
	}
	for name, c := range bad {
		t.Run(name, func(t *testing.T) {
			c.c.ConnectURL, c.c.Getenv = "tls://"+addr, noEnv
			d, err := New(c.c)
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.DialTLS(t.Context(), wire.ALPNBus, nil)
			wantFailure(t, err, wire.LegTLS, wire.CodeWrongPeer, c.text)
		})
	}
}

func TestPartyIsNoHub(t *testing.T) {
	a := newAuthority(t)
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := identity.ID{TrustDomain: "test.example", Organization: "o", Role: identity.RoleAgent, Name: "a", Replica: "r"}
	chain, err := a.IssueParty(id, key.Public(), identity.Holder{}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := identity.NewCredentials(chain, key, a.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	addr := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNBus}, Certificates: []tls.Certificate{creds.Certificate}})
	d, err := New(Config{ConnectURL: "tls://" + addr, Roots: a.Pool(), Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.DialTLS(t.Context(), wire.ALPNBus, nil)
	wantFailure(t, err, wire.LegTLS, wire.CodeWrongPeer, "not a hub")
}

func TestHandshakeFailures(t *testing.T) {
	a := newAuthority(t)
	cert := hubCertificate(t, a)
	dial := func(t *testing.T, addr string) error {
		t.Helper()
		d, err := New(Config{ConnectURL: "tls://" + addr, CAPin: a.Pin(), Getenv: noEnv})
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.DialTLS(t.Context(), wire.ALPNBus, nil)
		return err
	}
	t.Run("other protocol", func(t *testing.T) {
		addr := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h3"}, Certificates: []tls.Certificate{cert}})
		wantFailure(t, dial(t, addr), wire.LegTLS, wire.CodeProtocol, "no protocol of Postern")
	})
	t.Run("no protocol", func(t *testing.T) {
		addr := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
		wantFailure(t, dial(t, addr), wire.LegTLS, wire.CodeProtocol, "no protocol of Postern")
	})
	t.Run("old TLS", func(t *testing.T) {
		addr := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})
		wantFailure(t, dial(t, addr), wire.LegTLS, wire.CodeProtocol, "TLS 1.3")
	})
	plain := func(t *testing.T, f func(net.Conn)) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if conn, err := ln.Accept(); err == nil {
				_, _ = conn.Read(make([]byte, 4096))
				f(conn)
				conn.Close()
			}
		}()
		t.Cleanup(func() { ln.Close(); <-done })
		return ln.Addr().String()
	}
	t.Run("not TLS", func(t *testing.T) {
		addr := plain(t, say("HTTP/1.1 400 Bad Request\r\n\r\n"))
		wantFailure(t, dial(t, addr), wire.LegTLS, wire.CodeProtocol, "does not speak TLS")
	})
	t.Run("closed", func(t *testing.T) {
		wantFailure(t, dial(t, plain(t, func(net.Conn) {})), wire.LegTLS, wire.CodeReset, "closed")
	})
	t.Run("host name", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(http.NotFoundHandler())
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		srv.StartTLS()
		defer srv.Close()
		pool := x509.NewCertPool()
		pool.AddCert(srv.Certificate())
		_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
		d, err := New(Config{ConnectURL: "https://localhost:" + port, Roots: pool, Getenv: noEnv})
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.HTTPClient().Get(d.BaseURL())
		wantFailure(t, err, wire.LegTLS, wire.CodeWrongPeer, "another name")
	})
}

func TestDialFailures(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		code wire.Code
		text string
	}{
		{"refused", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, wire.CodeRefused, "hub.example.com:4222 refused"},
		{"no name", &net.DNSError{Err: "no such host", IsNotFound: true}, wire.CodeNameNotFound, "does not resolve"},
		{"resolver", &net.DNSError{Err: "server misbehaving", IsTemporary: true}, wire.CodeNameFailed, "resolver"},
		{"route", syscall.ENETUNREACH, wire.CodeUnreachable, "route"},
		{"firewall", syscall.EPERM, wire.CodeUnreachable, "firewall"},
		{"time-out", context.DeadlineExceeded, wire.CodeTimeout, "AGENT_PROXY"},
		{"canceled", context.Canceled, wire.CodeCanceled, ""},
		{"reset", syscall.ECONNRESET, wire.CodeReset, ""},
		{"other", errors.New("odd"), wire.CodeUnreachable, "odd"},
	} {
		d, err := New(Config{ConnectURL: "tls://hub.example.com", Getenv: noEnv,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, c.err },
			LookupHost:  func(context.Context, string) ([]netip.Addr, error) { return nil, c.err }})
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.DialTLS(t.Context(), wire.ALPNBus, nil)
		wantFailure(t, err, wire.LegRelay, c.code, c.text)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: cause lost", c.name)
		}
		_, err = d.Resolve(t.Context())
		wantFailure(t, err, wire.LegRelay, c.code, c.text)
	}
}

func TestResolve(t *testing.T) {
	d, err := New(Config{ConnectURL: "tls://[::1]:99", Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := d.Resolve(t.Context()); err != nil || len(addrs) != 1 || addrs[0] != netip.IPv6Loopback() {
		t.Errorf("Resolve = %v, %v", addrs, err)
	}
}

func TestBadConfig(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t)
	for name, c := range map[string]Config{
		"no URL":          {},
		"no such CA file": {ConnectURL: "tls://h", CAFile: filepath.Join(dir, "none")},
		"empty CA file":   {ConnectURL: "tls://h", CAFile: caFile(t, nil)},
		"short pin":       {ConnectURL: "tls://h", CAPin: "sha256:00"},
		"pin not in file": {ConnectURL: "tls://h", CAFile: caFile(t, a.CertificatePEM()), CAPin: newAuthority(t).Pin()},
		"pin and pool":    {ConnectURL: "tls://h", Roots: a.Pool(), CAPin: a.Pin()},
		"no proxy CA":     {ConnectURL: "tls://h", ProxyURL: "https://p", ProxyCAFile: filepath.Join(dir, "none")},
		"empty proxy CA":  {ConnectURL: "tls://h", ProxyURL: "https://p", ProxyCAFile: caFile(t, nil)},
	} {
		c.Getenv = noEnv
		_, err := New(c)
		if f := (*wire.Failure)(nil); !errors.As(err, &f) || f.Code != wire.CodeBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHTTPClient(t *testing.T) {
	a := newAuthority(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{hubCertificate(t, a)}}
	srv.StartTLS()
	defer srv.Close()
	d, err := New(Config{ConnectURL: "tls://" + srv.Listener.Addr().String(), CAPin: a.Pin(), Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	defer d.CloseIdle()
	for path, want := range map[string]int{"/": 200, "/away": 302} {
		res, err := d.HTTPClient().Get(d.BaseURL() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want || (want == 200 && string(body) != "HTTP/2.0") {
			t.Errorf("%s: %s %q", path, res.Status, body)
		}
	}
}

func TestClientCertificate(t *testing.T) {
	a := newAuthority(t)
	var mu sync.Mutex
	var seen int
	addr := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNBus},
		Certificates: []tls.Certificate{hubCertificate(t, a)}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			seen = len(cs.PeerCertificates)
			return nil
		}})
	d, err := New(Config{ConnectURL: "tls://" + addr, CAPin: a.Pin(), Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	mine := hubCertificate(t, a)
	for want, cert := range map[int]func() *tls.Certificate{2: func() *tls.Certificate { return &mine }, 0: func() *tls.Certificate { return nil }} {
		conn, err := d.DialTLS(t.Context(), wire.ALPNBus, cert)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(conn) // the server's handshake is over
		conn.Close()
		mu.Lock()
		if seen != want {
			t.Errorf("server saw %d certificates; want %d", seen, want)
		}
		mu.Unlock()
	}
}
