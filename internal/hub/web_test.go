package hub

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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/webconn"
	"postern.dev/postern/internal/wire"
)

// webSite is a relay with HTTPS on one port, and a bus that returns what it gets.
type webSite struct {
	*pipetest.World
	relay *relay.Relay
	gate  *webGate
	addr  string
}

// webSiteConns bounds the connections to a webSite's HTTPS.
const webSiteConns = 32

func startWebSite(t *testing.T, change func(*relay.Config)) *webSite {
	t.Helper()
	w := pipetest.NewWorld(t)
	server, err := w.Authority.IssueServer("n1", []string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	cfg := relay.Config{
		Node: "n1", Certificate: func() (*tls.Certificate, error) { return &server, nil }, Roots: w.Authority.Pool, HTTP: true, Log: log,
		Bus: func(_ context.Context, c net.Conn) error { _, err := io.Copy(c, c); return err },
	}
	if change != nil {
		change(&cfg)
	}
	r := relay.New(cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	web := &webEntrance{log: log, take: func(c net.Conn) { r.Take(ctx, c) }, next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "api "+r.URL.Path)
	})}
	s := NewHTTPServer(web, log)
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Serve(ctx, l) })
	gate := newWebGate(r.HTTP(), webSiteConns, webSiteConns)
	s.ConnState = gate.changed
	wg.Go(func() { _ = s.Serve(gate) })
	t.Cleanup(func() {
		cancel()
		_ = s.Close()
		r.Close()
		web.wait()
		wg.Wait()
	})
	return &webSite{World: w, relay: r, gate: gate, addr: l.Addr().String()}
}

// terminator is a reverse proxy in front of the site that ends TLS, with a
// certificate of an authority in the returned file.
func (s *webSite) terminator(t *testing.T) (addr, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Company CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "company.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Transport: transport, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: s.addr}) },
	})
	front.TLS = &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	front.StartTLS()
	t.Cleanup(func() { front.Close(); transport.CloseIdleConnections() })
	return front.Listener.Addr().String(), caFile
}

func (s *webSite) dialer(t *testing.T, change func(*uplink.Config)) *uplink.Dialer {
	t.Helper()
	c := uplink.Config{ConnectURL: "wss://" + s.addr, CAPin: s.Authority.Pin(), Getenv: func(string) string { return "" }}
	if change != nil {
		change(&c)
	}
	d, err := uplink.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.CloseIdle)
	return d
}

func certificate(c *identity.Credentials) func() *tls.Certificate {
	return func() *tls.Certificate { return &c.Certificate }
}

// TestOnePortInsideAWebSocket sends all that goes over the one port through
// WebSockets, straight to the hub and by way of something that ends TLS.
func TestOnePortInsideAWebSocket(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	s := startWebSite(t, nil)
	lb, caFile := s.terminator(t)
	for name, d := range map[string]*uplink.Dialer{
		"straight": s.dialer(t, nil),
		"load balancer": s.dialer(t, func(c *uplink.Config) {
			c.ConnectURL, c.ProxyCAFile = "wss://"+lb, caFile
		}),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, d.BaseURL()+"/v1/version", nil)
			res, err := d.HTTPClient().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if string(body) != "api /v1/version" {
				t.Errorf("the API says %q", body)
			}

			bus, err := d.DialTLS(ctx, wire.ALPNBus, certificate(s.Proxy))
			if err != nil {
				t.Fatal(err)
			}
			defer bus.Close()
			echo(t, bus, bus)

			raw, err := d.DialRaw(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pipe.Probe(ctx, raw, d.TLSConfig(wire.ALPNPipe, certificate(s.Proxy))); err != nil {
				t.Error(err)
			}

			// One side of the pipe by WebSocket, the other by TCP, and both by WebSocket.
			tcp := s.dialer(t, func(c *uplink.Config) { c.ConnectURL = "tls://" + s.addr })
			for _, way := range [][2]*uplink.Dialer{{d, tcp}, {tcp, d}, {d, d}} {
				a, b := s.meet(ctx, t, way[0], way[1])
				echo(t, a, b)
				echo(t, b, a)
				_ = a.Close()
				_ = b.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the end of one side did not reach the other: %v", err)
				}
				_ = b.Close()
			}
		})
	}
}

// echo sends bytes from one connection to the other; a and b may be the same.
func echo(t *testing.T, a, b net.Conn) {
	t.Helper()
	sent := make([]byte, 300<<10)
	_, _ = rand.Read(sent)
	go func() { _, _ = a.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("other bytes than were sent: %v", err)
	}
}

func (s *webSite) meet(ctx context.Context, t *testing.T, proxy, agent *uplink.Dialer) (a, b net.Conn) {
	t.Helper()
	ticket := wire.NewTicket("n1")
	join := func(d *uplink.Dialer, c *identity.Credentials) (net.Conn, error) {
		raw, err := d.DialRaw(ctx)
		if err != nil {
			return nil, err
		}
		return pipe.Join(ctx, raw, d.TLSConfig(wire.ALPNPipe, certificate(c)), wire.Join{Kind: wire.JoinMeet, Ticket: ticket})
	}
	var wg sync.WaitGroup
	var bErr error
	wg.Go(func() { b, bErr = join(agent, s.Agent) })
	a, err := join(proxy, s.Proxy)
	wg.Wait()
	if err := errors.Join(err, bErr); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestInspectorCannotPoseAsHub lets a middlebox, trusted for the TLS around the
// WebSocket, answer in the hub's place: the party must not show it a secret.
func TestInspectorCannotPoseAsHub(t *testing.T) {
	s, impostor := startWebSite(t, nil), startWebSite(t, nil)
	lb, caFile := impostor.terminator(t)
	d := s.dialer(t, func(c *uplink.Config) { c.ConnectURL, c.ProxyCAFile = "wss://"+lb, caFile })
	for name, try := range map[string]func() error{
		"bus": func() error {
			_, err := d.DialTLS(t.Context(), wire.ALPNBus, certificate(s.Agent))
			return err
		},
		"API": func() error {
			res, err := d.HTTPClient().Post(d.BaseURL()+"/v1/token", "text/plain", strings.NewReader("secret"))
			if err == nil {
				_ = res.Body.Close()
			}
			return err
		},
	} {
		var f *wire.Failure
		if err := try(); !errors.As(err, &f) || f.Leg != wire.LegTLS || f.Code != wire.CodeWrongPeer {
			t.Errorf("%s: %v; want a wrong peer", name, err)
		}
	}

	// Without trust in it, it does not even see the upgrade.
	d = s.dialer(t, func(c *uplink.Config) { c.ConnectURL = "wss://" + lb })
	_, err := d.DialRaw(t.Context())
	if f := wire.AsFailure(err, wire.LegUnknown); f.Leg != wire.LegTLS || !strings.Contains(f.Hint, "--proxy-ca-file") {
		t.Errorf("%v (%s)", err, f.Hint)
	}
}

func TestStrangersInsideAWebSocket(t *testing.T) {
	s := startWebSite(t, func(c *relay.Config) { c.MaxUnprovedPerSource = 3 })
	d := s.dialer(t, nil)
	// Another organization's authority is a stranger here.
	other := pipetest.NewWorld(t)
	conn, err := d.DialTLS(t.Context(), wire.ALPNBus, certificate(other.Agent))
	if err == nil { // in TLS 1.3 the refusal comes after the client is done
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil {
		t.Error("a certificate of another authority was let in")
	}

	// Three may be silent for as long as a handshake may take. Of four one is cut at
	// once: whichever the relay saw last.
	ended := make(chan struct{}, 4)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 4 {
		c, err := d.DialRaw(t.Context())
		if err != nil { // it was cut while it was upgraded
			ended <- struct{}{}
			continue
		}
		defer func() { _ = c.Close() }()
		wg.Go(func() {
			_, _ = c.Read(make([]byte, 1))
			ended <- struct{}{}
		})
	}
	select {
	case <-ended:
	case <-time.After(7 * time.Second):
		t.Error("four strangers were let in")
	}
}

// TestNoWebSocketInsideAWebSocket keeps strangers from stacking them.
func TestNoWebSocketInsideAWebSocket(t *testing.T) {
	s := startWebSite(t, nil)
	raw, err := s.dialer(t, nil).DialRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inside := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	_, err = webconn.Client(t.Context(), inside, &url.URL{Scheme: "https", Host: "hub", Path: "/v1/connect"})
	var refused *webconn.RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("%v; want 403", err)
	}
}

func TestWebSocketRefusals(t *testing.T) {
	s := startWebSite(t, nil)
	for path, want := range map[string]string{"/elsewhere": "200 OK"} {
		d := s.dialer(t, func(c *uplink.Config) { c.ConnectURL += path })
		_, err := d.DialRaw(t.Context())
		if f := wire.AsFailure(err, wire.LegUnknown); f.Leg != wire.LegRelay || !strings.Contains(f.Text, want) || f.Hint == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := uplink.New(uplink.Config{ConnectURL: "wss://hub.example.org", Getenv: func(string) string { return "" }}); err == nil {
		t.Error("wss was accepted without the hub's CA or pin")
	}
}
