package agent_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; reaching it is a failure.
const patience = 30 * time.Second

// agentID is the agent of every world.
const agentID = "office"

// world is a hub in this process, with a token of a robot.
type world struct {
	t     *testing.T
	party config.Party // for an agent; a proxy changes the name
	log   *slog.Logger
}

// newWorld starts a hub, which ends after all that is started in the world.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, log: slog.New(slog.DiscardHandler)}
	settings := config.DefaultHub()
	settings.Data, settings.Listen, settings.DrainTimeout = filepath.Join(dir, "hub"), "127.0.0.1:0", time.Second
	started := make(chan hub.Info, 1)
	h := hub.New(settings, hub.Options{
		Version: "test", Health: observe.NewHealth(), Log: w.log, Started: func(i hub.Info) { started <- i },
	})
	w.run(h.Run)
	var info hub.Info
	select {
	case info = <-started:
	case <-time.After(patience):
		t.Fatal("the hub does not start")
	}

	url := "tls://" + info.Listen.String()
	u, err := uplink.New(uplink.Config{ConnectURL: url, CAFile: info.CAFile, Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	defer u.CloseIdle()
	admin, _, err := (&enroll.RobotToken{File: info.AdminTokenFile}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &api.Client{BaseURL: u.BaseURL(), HTTP: u.HTTPClient(), Token: admin}
	if _, err := c.CreateRobot(t.Context(), config.DefaultOrganization, api.CreateRobot{Name: "machines"}); err != nil {
		t.Fatal(err)
	}
	token, err := c.CreateRobotToken(t.Context(), config.DefaultOrganization, "machines", api.CreateToken{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "token.json")
	text, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.party = config.Party{
		Uplink:       config.Uplink{ConnectURL: url, CAFile: info.CAFile},
		Organization: config.DefaultOrganization, AgentID: agentID, TokenFile: file, Name: "r1", DrainTimeout: time.Second,
	}
	return w
}

func noEnv(string) string { return "" }

// run runs f until the test ends.
func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() { cancel(); wg.Wait() })
}

// agent starts the world's agent with what change makes of its settings.
func (w *world) agent(registry *observe.Registry, change func(*config.Agent)) {
	w.t.Helper()
	settings := config.DefaultAgent()
	settings.Party = w.party
	change(&settings)
	a, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Registry: registry, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(a.Run)
}

// proxy starts a proxy without front ends.
func (w *world) proxy(name string) *proxy.Dialer {
	w.t.Helper()
	settings := w.party
	settings.Name = name
	member, err := party.Start(w.t.Context(), party.Config{
		Settings: settings, Role: identity.RoleProxy, Name: name, Replica: name, Version: "test", Getenv: noEnv, Log: w.log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(member.Close)
	d, err := proxy.NewDialer(w.t.Context(), proxy.DialerConfig{
		Organization: settings.Organization, Bus: member.Bus, Credentials: member.Credentials, Join: member.JoinPipe, Log: w.log,
	}, agentID)
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(member.Run)
	w.run(d.Run)
	return d
}

// open opens a stream and waits for an agent that is just starting.
func (w *world) open(d *proxy.Dialer, target string) (proxy.Stream, error) {
	w.t.Helper()
	t, err := wire.ParseTarget(target)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		s, err := d.Open(ctx, proxy.Request{Agent: proxy.AgentRef{Agent: agentID}, Target: t})
		if f := wire.AsFailure(err, wire.LegUnknown); err == nil || f.Code != wire.CodeNoAgent || ctx.Err() != nil {
			return s, err
		}
		select {
		case <-d.Directory().Changed():
		case <-ctx.Done():
		}
	}
}

// await waits until the agent announces a policy that is as ok wants.
func (w *world) await(d *proxy.Dialer, ok func(bus.PolicyStatus) bool) bus.PolicyStatus {
	w.t.Helper()
	limit := time.After(patience)
	for {
		changed := d.Directory().Changed()
		for _, p := range d.Directory().Replicas(agentID) {
			if p.Policy != nil && ok(*p.Policy) {
				return *p.Policy
			}
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("never announced; last: %+v", d.Directory().Replicas(agentID))
		}
	}
}

// echo is a target that sends back what it gets. It returns its rule.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 32<<10)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return "tcp:" + ln.Addr().String()
}
