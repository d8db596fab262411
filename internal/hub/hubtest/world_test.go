package hubtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/uplink"
)

// TestMain checks, beside goroutines, that all descriptors were given back.
func TestMain(m *testing.M) {
	// These tests wait most of their time, whatever the number of processors.
	_ = flag.Set("test.parallel", "6")
	before := descriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		// The runtime keeps two for its poller.
		if after := descriptors(); after > before+2 {
			fmt.Fprintf(os.Stderr, "%d descriptors are open; there were %d before the tests\n%s", after, before, open())
			code = 1
		}
		os.Exit(code)
	}))
}

// descriptors returns how many files and sockets this process has open, or 0 where
// that cannot be told.
func descriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

func open() string {
	var b bytes.Buffer
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		fmt.Fprintln(&b, e.Name(), to)
	}
	return b.String()
}

const (
	// patience bounds what a test waits for; reaching it is a failure.
	patience = 30 * time.Second

	// slack is what a busy machine may add to a time that is promised: such machines
	// were seen to stand still for more than two seconds.
	slack = 5 * time.Second

	agentID = "edge"
)

// world is a hub that can be stopped and started again, with what it takes to run
// agents and proxies at it, all in this process.
type world struct {
	t      *testing.T
	log    *slog.Logger
	book   *logbook
	config config.Hub
	info   hub.Info
	hub    *process
	uplink *uplink.Dialer
	admin  *api.Client
	token  string // file with a robot's token

	resolver reach.Resolver // of agents; nil: the system's
}

// newWorld starts a hub with what change makes of its settings.
func newWorld(t *testing.T, change func(*config.Hub)) *world {
	t.Helper()
	w := &world{t: t, book: &logbook{}, config: config.DefaultHub()}
	w.log = slog.New(slog.NewTextHandler(w.book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() { w.book.show(t) })
	dir := t.TempDir()
	w.config.Data, w.config.DrainTimeout = filepath.Join(dir, "hub"), 5*time.Second
	w.config.Listen = testnet.FreeAddr(t)
	if change != nil {
		change(&w.config)
	}
	w.startHub()

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
	w.token = w.robot(config.DefaultOrganization, "machines")
	return w
}

func noEnv(string) string { return "" }

func (w *world) url() string { return "tls://" + w.config.Listen }

// startHub starts the hub, on the state that it had if it ran before.
func (w *world) startHub() {
	w.t.Helper()
	started := make(chan hub.Info, 1)
	watched := watch("hub")
	h := hub.New(w.config, hub.Options{
		Version: "test", Registry: watched.registry, Health: watched.health,
		Log: w.log.With("part", "hub"), Started: func(i hub.Info) { started <- i },
	})
	w.hub = run(w.t, watched, h.Run)
	select {
	case w.info = <-started:
	case <-w.hub.done:
		w.t.Fatalf("the hub ended: %v", w.hub.err)
	case <-time.After(patience):
		w.t.Fatal("the hub does not start")
	}
}

// robot makes a robot with a token and returns the token's file.
func (w *world) robot(org, name string) string {
	w.t.Helper()
	if _, err := w.admin.CreateRobot(w.t.Context(), org, api.CreateRobot{Name: name}); err != nil {
		w.t.Fatal(err)
	}
	token, err := w.admin.CreateRobotToken(w.t.Context(), org, name, api.CreateToken{Name: "first"})
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(token)
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(w.t.TempDir(), name+".json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// party returns the settings that agents and proxies of the world have in common.
func (w *world) party(name string) config.Party {
	return config.Party{
		Uplink:       config.Uplink{ConnectURL: w.url(), CAFile: w.info.CAFile},
		Organization: config.DefaultOrganization, AgentID: agentID, TokenFile: w.token, Name: name, DrainTimeout: 10 * time.Second,
	}
}

// agent starts a replica with what change makes of its settings. It may reach all of
// 127.0.0.1.
func (w *world) agent(name string, change func(*config.Agent)) *process {
	w.t.Helper()
	settings := config.DefaultAgent()
	settings.Party, settings.Allow = w.party(name), []string{"tcp:127.0.0.1:*"}
	if change != nil {
		change(&settings)
	}
	watched := watch("agent")
	a, err := agent.New(settings, agent.Options{
		Version: "test", Getenv: noEnv, Registry: watched.registry, Health: watched.health, Log: w.log.With("part", name), Resolver: w.resolver,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return run(w.t, watched, a.Run)
}

// link returns a way to the hub that can be frozen and cut.
func (w *world) link() *testnet.Link {
	w.t.Helper()
	l, err := testnet.Listen(testnet.Config{Target: w.config.Listen})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// client is a running proxy.
type client struct {
	*process
	http, socks string
	forwards    []string
}

// proxy starts a proxy with HTTP, SOCKS5 and forwards to the targets.
func (w *world) proxy(change func(*config.Proxy), targets ...string) *client {
	w.t.Helper()
	settings := config.DefaultProxy()
	settings.Party = w.party("near")
	settings.HTTP, settings.SOCKS5 = "127.0.0.1:0", "127.0.0.1:0"
	for _, target := range targets {
		settings.Forwards = append(settings.Forwards, "127.0.0.1:0="+agentID+"/tcp:"+target)
	}
	if change != nil {
		change(&settings)
	}
	listening := make(chan []net.Addr, 1)
	watched := watch("proxy")
	p := proxy.New(settings, proxy.Options{
		Version: "test", Getenv: noEnv, Registry: watched.registry, Health: watched.health,
		Log: w.log.With("part", "proxy"), Listening: func(a []net.Addr) { listening <- a },
	})
	c := &client{process: run(w.t, watched, p.Run)}
	select {
	case addrs := <-listening:
		c.http, c.socks = addrs[0].String(), addrs[1].String()
		for _, a := range addrs[2:] {
			c.forwards = append(c.forwards, a.String())
		}
	case <-c.done:
		w.t.Fatalf("the proxy ended: %v", c.err)
	case <-time.After(patience):
		w.t.Fatal("the proxy does not start")
	}
	return c
}

// replica returns what the hub tells of a replica; the zero value if it knows none.
func (w *world) replica(name string) api.Replica {
	a, err := w.admin.Agent(w.t.Context(), config.DefaultOrganization, agentID)
	if err != nil {
		return api.Replica{}
	}
	for _, r := range a.Replicas {
		if r.Name == name {
			return r
		}
	}
	return api.Replica{}
}

// watched is what a process tells of itself.
type watched struct {
	registry *observe.Registry
	health   *observe.Health
}

func watch(role string) watched {
	return watched{observe.NewRegistry(role, "test"), observe.NewHealth()}
}

// metric returns the sum of a metric's values whose labels hold all of the given
// values.
func (w watched) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := w.registry.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		known = true
		for _, m := range f.GetMetric() {
			missing := len(labels)
			for _, l := range m.GetLabel() {
				if slices.Contains(labels, l.GetValue()) {
					missing--
				}
			}
			if missing == 0 {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	if !known {
		t.Fatalf("there is no metric %s", name)
	}
	return sum
}

// process is what runs until it is stopped, or until the test ends.
type process struct {
	watched
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done
}

func run(t *testing.T, w watched, f func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{watched: w, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = f(ctx)
	}()
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// stop asks the process to end and waits for it.
func (p *process) stop() error {
	p.cancel()
	select {
	case <-p.done:
		return p.err
	case <-time.After(2 * patience):
		buf := make([]byte, 1<<20)
		return fmt.Errorf("it does not stop:\n%s", buf[:runtime.Stack(buf, true)])
	}
}

// forget makes the process's error nobody's concern.
func (p *process) forget() error {
	<-p.done
	err := p.err
	p.err = nil
	return err
}

// eventually waits until f gives no error, and returns how long that took.
func eventually(t *testing.T, limit time.Duration, f func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := f()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("after %s: %v", took.Round(time.Millisecond), err)
		}
		time.Sleep(10 * time.Millisecond)
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

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logbook) show(t *testing.T) {
	if t.Failed() {
		t.Log("the log:\n" + l.String())
	}
}
