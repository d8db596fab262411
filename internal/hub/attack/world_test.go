package attack_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/uplink"
)

const (
	patience = 30 * time.Second // bounds what a test waits for; reaching it is a failure

	acme, evil = "acme", "evil" // the victim's organization, and the attacker's
	agentID    = "edge"         // in both
)

// world is a hub with the two organizations.
type world struct {
	t      *testing.T
	log    *slog.Logger
	book   *logbook
	dir    string
	info   hub.Info
	uplink *uplink.Dialer
	admin  *api.Client
	tokens map[string]api.NewToken // by organization
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, book: &logbook{}, tokens: map[string]api.NewToken{}, dir: filepath.Join(t.TempDir(), "hub")}
	w.log = slog.New(slog.NewTextHandler(w.book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() { w.book.show(t) })
	settings := config.DefaultHub()
	settings.Data, settings.DrainTimeout, settings.Listen = w.dir, 100*time.Millisecond, "127.0.0.1:0"
	started := make(chan hub.Info, 1)
	w.run(hub.New(settings, hub.Options{
		Version: "test", Health: observe.NewHealth(), Log: w.log.With("part", "hub"), Started: func(i hub.Info) { started <- i },
	}).Run)
	select {
	case w.info = <-started:
	case <-time.After(patience):
		t.Fatal("the hub does not start")
	}
	var err error
	if w.uplink, err = uplink.New(uplink.Config{ConnectURL: w.url(), CAFile: w.info.CAFile, Getenv: noEnv}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.uplink.CloseIdle)
	secret, _, err := (&enroll.RobotToken{File: w.info.AdminTokenFile}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.admin = &api.Client{BaseURL: w.uplink.BaseURL(), HTTP: w.uplink.HTTPClient(), Token: secret}
	for _, org := range []string{acme, evil} {
		if _, err := w.admin.CreateOrganization(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		w.tokens[org] = w.robot(org, "machines")
	}
	return w
}

func noEnv(string) string { return "" }

func (w *world) url() string { return "tls://" + w.info.Listen.String() }

func (w *world) robot(org, name string) api.NewToken {
	w.t.Helper()
	if _, err := w.admin.CreateRobot(w.t.Context(), org, api.CreateRobot{Name: name}); err != nil {
		w.t.Fatal(err)
	}
	token, err := w.admin.CreateRobotToken(w.t.Context(), org, name, api.CreateToken{Name: "first"})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// run runs a role until the test ends.
func (w *world) run(f func(context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Error(err)
			}
		case <-time.After(2 * patience):
			w.t.Error("it does not stop")
		}
	})
}

func (w *world) party(org, name, url string) config.Party {
	return config.Party{
		Uplink:       config.Uplink{ConnectURL: url, CAFile: w.info.CAFile},
		Organization: org, AgentID: agentID, Token: config.Secret(w.tokens[org].Token), Name: name, DrainTimeout: 100 * time.Millisecond,
	}
}

// agent starts a replica in an organization, which may reach what allow says.
func (w *world) agent(org, url string, allow ...string) {
	w.t.Helper()
	settings := config.DefaultAgent()
	settings.Party, settings.Allow = w.party(org, "r1", url), allow
	a, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: w.log.With("part", "agent of "+org)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(a.Run)
}

// client is where a proxy listens.
type client struct{ http, socks string }

// proxy starts a proxy of an organization whose default agent is the one of its own
// organization.
func (w *world) proxy(org string) client {
	w.t.Helper()
	settings := config.DefaultProxy()
	settings.Party = w.party(org, "near", w.url())
	settings.HTTP, settings.SOCKS5 = "127.0.0.1:0", "127.0.0.1:0"
	listening := make(chan []net.Addr, 1)
	p := proxy.New(settings, proxy.Options{
		Version: "test", Getenv: noEnv, Log: w.log.With("part", "proxy of "+org), Listening: func(a []net.Addr) { listening <- a },
	})
	w.run(p.Run)
	select {
	case addrs := <-listening:
		return client{addrs[0].String(), addrs[1].String()}
	case <-time.After(patience):
		w.t.Fatal("the proxy does not start")
		return client{}
	}
}

// enrol gets credentials as a party of an organization does.
func (w *world) enrol(org string, role identity.Role, name, replica string) *enroll.Grant {
	w.t.Helper()
	return w.enrolBy(w.tokens[org].Token, org, role, name, replica)
}

func (w *world) enrolBy(token, org string, role identity.Role, name, replica string) *enroll.Grant {
	w.t.Helper()
	s := enroll.New(w.uplink, enroll.Request{
		Organization: org, Role: role, Name: name, Replica: replica, Version: "test",
		Secret: &enroll.RobotToken{Value: token}, NewBusKey: bus.NewUserKey,
	}, nil)
	if err := s.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return s.Grant()
}

// authority returns the hub's own authority: what an attacker cannot have. It serves to
// show that a signature alone does not make a certificate good.
func (w *world) authority() (*x509.Certificate, crypto.Signer) {
	w.t.Helper()
	cert, key := w.pem("ca.crt"), w.pem("ca.key")
	c, err := x509.ParseCertificate(cert)
	k, keyErr := x509.ParsePKCS8PrivateKey(key)
	if err := errors.Join(err, keyErr); err != nil {
		w.t.Fatal(err)
	}
	return c, k.(crypto.Signer)
}

func (w *world) pem(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return block.Bytes
}

// forge makes a certificate. A nil parent means that it signs itself.
func forge(t *testing.T, change func(*x509.Certificate), uris []string, parent *x509.Certificate, signer crypto.Signer) *tls.Certificate {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	if change != nil {
		change(template)
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// target is a server in a private network.
type target struct {
	addr   string
	visits atomic.Int64
}

// serve runs handle for each connection to a new listener, until the test ends.
func serve(t *testing.T, handle func(net.Conn)) *target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &target{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[net.Conn]struct{})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.visits.Add(1)
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				handle(c)
				_ = c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

// echo sends back what it gets, with its name in front.
func echo(name string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, name+"\n")
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}
}

func (s *target) port() uint16 { return netip.MustParseAddrPort(s.addr).Port() }

// connect opens a stream over an HTTP proxy and returns the answer's first line.
func connect(proxy, target string) (net.Conn, string, error) {
	c, err := net.DialTimeout("tcp", proxy, patience)
	if err != nil {
		return nil, "", err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		_ = c.Close()
		return nil, "", err
	}
	head, err := readUntil(c, "\r\n\r\n")
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		rest, _ := io.ReadAll(c)
		_ = c.Close()
		return nil, head + string(rest), fmt.Errorf("the proxy answered %q: %w", head, errors.Join(err, errRefused))
	}
	return c, head, nil
}

var errRefused = errors.New("refused")

// readUntil reads byte by byte, so that nothing behind is lost.
func readUntil(r io.Reader, end string) (string, error) {
	var b []byte
	one := make([]byte, 1)
	for !strings.HasSuffix(string(b), end) && len(b) < 64<<10 {
		if _, err := io.ReadFull(r, one); err != nil {
			return string(b), err
		}
		b = append(b, one[0])
	}
	return string(b), nil
}

// visit opens a stream over a proxy, has a line sent back, and returns the target's
// name.
func visit(proxy, target string) (string, error) {
	c, _, err := connect(proxy, target)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return "", err
	}
	name, err := readUntil(c, "\n")
	if err != nil {
		return "", err
	}
	if back, err := readUntil(c, "\n"); err != nil || back != "ping\n" {
		return "", fmt.Errorf("%q came back: %w", back, err)
	}
	return strings.TrimSuffix(name, "\n"), nil
}

// eventually waits until f gives no error.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begin) > patience {
			t.Fatal(err)
		}
	}
}

// logbook keeps what was logged, to show it when a test fails.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) show(t *testing.T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.Failed() {
		t.Log("the log:\n" + l.b.String())
	}
}
