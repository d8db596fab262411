package hub_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// realHub is the API over a real bus and state, behind TLS.
type realHub struct {
	state *hub.State
	bus   *embedded.Server
	url   string
	admin *api.Client
}

// noPresence is the presence of a hub that nobody announces himself to.
type noPresence struct{}

func (noPresence) Presence(string) []bus.Presence { return nil }

// startHub starts a hub on dir; stop ends it.
func startHub(t *testing.T, dir string) (h *realHub, stop func()) {
	t.Helper()
	state, err := hub.OpenState(dir, hub.StateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seeds, err := state.Secret("bus-seeds", embedded.NewSeeds)
	if err != nil {
		t.Fatal(err)
	}
	server, err := embedded.Start(embedded.Config{
		Dir: state.BusDir(), EncryptionKey: state.BusKey(), TrustDomain: state.TrustDomain(), Node: state.Node(),
	}, seeds)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := server.KV(t.Context(), "registry")
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(kv, nil)
	orgs := hub.NewOrganizations(state, reg, func(_ context.Context, org string) error {
		seed, err := state.Secret("account-"+org, embedded.NewAccountSeed)
		return errors.Join(err, server.EnsureAccount(org, seed))
	}, func(org string) error {
		return errors.Join(server.RemoveAccount(org), state.RemoveSecret("account-"+org))
	})
	if err := orgs.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	store, err := server.ExpiringKV(t.Context(), "grants", hub.IssuedAge)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := hub.OpenIssued(t.Context(), store, reg, server, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := issued.VoidUsers(); err != nil {
		t.Fatal(err)
	}
	handler, err := hub.NewAPI(hub.APIOptions{
		State: state, Registry: reg, Authenticator: hub.NewAuthenticator(state, reg, nil, nil), Organizations: orgs,
		Issued: issued, Bus: server, Presence: noPresence{}, Health: observe.NewHealth(), Version: "test", CredentialTTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := state.Authority().IssueServer(state.Node(), []string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(handler)
	front.EnableHTTP2 = true
	front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	front.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	front.StartTLS()
	h = &realHub{state: state, bus: server, url: front.URL}
	token, _, err := enroll.ReadTokenFile(state.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	h.admin = &api.Client{BaseURL: h.url, HTTP: h.dialer(t).HTTPClient(), Token: token.Token}
	return h, func() {
		h.admin.HTTP.CloseIdleConnections()
		front.Close()
		server.Shutdown()
		state.Close()
	}
}

func (h *realHub) dialer(t *testing.T) *uplink.Dialer {
	t.Helper()
	d, err := uplink.New(uplink.Config{ConnectURL: h.url, CAPin: h.state.Authority().Pin(), Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// session returns a session of an agent with a token.
func (h *realHub) session(t *testing.T, org string, secret enroll.Secret) *enroll.Session {
	t.Helper()
	d := h.dialer(t)
	t.Cleanup(d.CloseIdle)
	return enroll.New(d, enroll.Request{
		Organization: org, Role: identity.RoleAgent, Name: "edge", Replica: "r1", Version: "test", Secret: secret, NewBusKey: bus.NewUserKey,
	}, nil)
}

// connect opens a connection to the bus with a session's credentials.
func (h *realHub) connect(t *testing.T, s *enroll.Session) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := bus.Connect(ctx, bus.Options{
		Dial:  func(context.Context) (net.Conn, error) { return h.bus.InProcess() },
		Token: func() string { return s.Grant().BusToken },
		Seed:  func() []byte { return s.Grant().BusKey },
		Name:  "test",
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.RTT(ctx)
	return err
}

func TestEnrolmentAcrossARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hub")
	file := filepath.Join(t.TempDir(), "token.json")
	h, stop := startHub(t, dir)
	ctx := t.Context()
	if _, err := h.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.admin.CreateRobot(ctx, "acme", api.CreateRobot{Name: "bot"}); err != nil {
		t.Fatal(err)
	}
	tok, err := h.admin.CreateRobotToken(ctx, "acme", "bot", api.CreateToken{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"accessId":"`+tok.AccessID+`","token":"`+tok.Token+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := &enroll.RobotToken{File: file}
	check := func(h *realHub) {
		t.Helper()
		s := h.session(t, "acme", secret)
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.connect(t, s); err != nil {
			t.Errorf("bus: %v", err)
		}
	}
	check(h)
	node, pin := h.state.Node(), h.state.Authority().Pin()
	stop()

	h, stop = startHub(t, dir)
	defer stop()
	if h.state.Node() != node || h.state.Authority().Pin() != pin {
		t.Error("the hub is another")
	}
	check(h)

	old := h.session(t, "acme", secret)
	if err := old.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.admin.DeleteOrganization(ctx, "acme", true); err != nil {
		t.Fatal(err)
	}
	var f *wire.Failure
	if err := h.session(t, "acme", secret).Start(ctx); !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated || !strings.Contains(f.Text, "revoked") || !enroll.Permanent(err) {
		t.Errorf("enrolment in a deleted organization: %v", err)
	}
	if _, err := h.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	quick, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := bus.Connect(quick, bus.Options{
		Dial:  func(context.Context) (net.Conn, error) { return h.bus.InProcess() },
		Token: func() string { return old.Grant().BusToken },
		Seed:  func() []byte { return old.Grant().BusKey },
		Name:  "test",
	})
	if err == nil {
		if _, err = conn.RTT(quick); err == nil {
			t.Error("bus credentials of a deleted organization are good in its successor")
		}
		conn.Close()
	}
}

func TestEnrolmentWithAWrongPin(t *testing.T) {
	h, stop := startHub(t, filepath.Join(t.TempDir(), "hub"))
	defer stop()
	other, err := identity.NewAuthority("other.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d, err := uplink.New(uplink.Config{ConnectURL: h.url, CAPin: other.Pin(), Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	s := enroll.New(d, enroll.Request{
		Organization: "default", Role: identity.RoleAgent, Name: "edge", Replica: "r1", NewBusKey: bus.NewUserKey,
		Secret: &enroll.RobotToken{Value: "aa.bb.cc"},
	}, nil)
	var f *wire.Failure
	if err := s.Start(t.Context()); !errors.As(err, &f) || f.Leg != wire.LegTLS || !enroll.Permanent(err) {
		t.Errorf("error %v", err)
	}
}
