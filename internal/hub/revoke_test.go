package hub_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/uplink"
)

// cutLimit is within how much time a revocation has to reach every connection.
const cutLimit = 5 * time.Second

// slack is what a busy machine may add to it.
const slack = 5 * time.Second

// site is a whole hub in this process, with an echo service that agents may reach.
type site struct {
	t     *testing.T
	info  hub.Info
	hub   *hub.Hub
	admin *api.Client
	echo  string
	dir   string
}

func newSite(t *testing.T, ttl time.Duration) *site {
	t.Helper()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	s := &site{t: t, echo: echo.Addr().String(), dir: t.TempDir()}
	cfg := config.DefaultHub()
	cfg.Data, cfg.Listen, cfg.HTTP = filepath.Join(s.dir, "hub"), "127.0.0.1:0", "127.0.0.1:0"
	cfg.CredentialTTL, cfg.DrainTimeout = ttl, 0
	started := make(chan hub.Info, 1)
	s.hub = hub.New(cfg, hub.Options{
		Version: "test", Health: observe.NewHealth(), Log: slog.New(slog.DiscardHandler), Started: func(i hub.Info) { started <- i },
	})
	s.run("hub", s.hub.Run)
	s.info = <-started
	d, err := uplink.New(uplink.Config{ConnectURL: s.url(), CAFile: s.info.CAFile, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.CloseIdle)
	token, _, err := enroll.ReadTokenFile(s.info.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	s.admin = &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: token.Token}
	return s
}

func (s *site) url() string { return "tls://" + s.info.Listen.String() }

// run runs a role until the test ends. What it returns comes out of the channel.
func (s *site) run(name string, role func(context.Context) error) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	done, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		done <- role(ctx)
	}()
	s.t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			s.t.Errorf("%s does not end", name)
		}
	})
	return done
}

func (s *site) party(change func(*config.Party)) config.Party {
	p := config.Party{
		Uplink:       config.Uplink{ConnectURL: s.url(), CAFile: s.info.CAFile},
		Organization: "default", AgentID: "office", Name: "one",
	}
	change(&p)
	return p
}

// agent starts the agent "office".
func (s *site) agent(change func(*config.Party)) <-chan error {
	s.t.Helper()
	cfg := config.DefaultAgent()
	cfg.Party, cfg.Allow = s.party(change), []string{"tcp:127.0.0.1:*"}
	a, err := agent.New(cfg, agent.Options{
		Version: "test", Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return s.run("agent", a.Run)
}

// proxy starts a proxy of its own process and returns its address.
func (s *site) proxy(change func(*config.Party)) (string, <-chan error) {
	s.t.Helper()
	cfg := config.DefaultProxy()
	cfg.Party, cfg.HTTP = s.party(change), "127.0.0.1:0"
	listening := make(chan []net.Addr, 1)
	done := s.run("proxy", proxy.New(cfg, proxy.Options{
		Version: "test", Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler),
		Listening: func(a []net.Addr) { listening <- a },
	}).Run)
	select {
	case a := <-listening:
		return a[0].String(), done
	case err := <-done:
		s.t.Fatal("proxy ended: ", err)
		return "", nil
	}
}

// key makes a key pair, the private one in a file.
func (s *site) key(file string) identity.PublicKey {
	s.t.Helper()
	k, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := k.PEM()
	if err != nil {
		s.t.Fatal(err)
	}
	tmp := file + ".new"
	if err := errors.Join(os.WriteFile(tmp, b, 0o600), os.Rename(tmp, file)); err != nil {
		s.t.Fatal(err)
	}
	return k.Public()
}

// token makes a robot with a token, in a file.
func (s *site) token(robot string) string {
	s.t.Helper()
	_, err := s.admin.CreateRobot(s.t.Context(), "default", api.CreateRobot{Name: robot})
	if err != nil {
		s.t.Fatal(err)
	}
	tok, err := s.admin.CreateRobotToken(s.t.Context(), "default", robot, api.CreateToken{Name: "one"})
	if err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.dir, robot+".json")
	if err := os.WriteFile(file, []byte(tok.Token), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// conversation is a stream to the echo service.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

// open opens a stream through a proxy, trying until the agent is there.
func (s *site) open(proxy string) *conversation {
	s.t.Helper()
	var last error
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", proxy)
		if err != nil {
			last = err
			continue
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n",
			s.echo, s.echo, base64.StdEncoding.EncodeToString([]byte("office:")))
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err == nil && res.StatusCode == http.StatusOK {
			s.t.Cleanup(func() { c.Close() })
			return &conversation{c, r}
		}
		if last = err; err == nil {
			last = errors.New(res.Status)
			res.Body.Close()
		}
		c.Close()
	}
	s.t.Fatal("no stream: ", last)
	return nil
}

// say sends a line and waits for its echo.
func (c *conversation) say(line string) error {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	got, err := c.r.ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// mustBeCut checks that a stream ends in time, and not as if all were well.
func (c *conversation) mustBeCut(t *testing.T, what string, since time.Time) {
	t.Helper()
	_ = c.SetDeadline(since.Add(2 * (cutLimit + slack)))
	_, err := c.r.ReadByte()
	took := time.Since(since)
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || took > cutLimit+slack {
		t.Errorf("%s: %v after %s, want a reset within %s", what, err, took, cutLimit)
	}
	t.Logf("%s: cut after %s", what, took.Round(time.Millisecond))
}

// mustEnd checks that a role ends because the hub refuses it.
func mustEnd(t *testing.T, what string, done <-chan error, text string) {
	t.Helper()
	select {
	case err := <-done:
		if err == nil || !enroll.Permanent(err) {
			t.Errorf("%s ended with %v, want the hub's refusal", what, err)
		}
		t.Logf("%s: %v", what, err)
	case <-time.After(20 * time.Second):
		t.Errorf("%s goes on without credentials; want it to say %q", what, text)
	}
}

// TestKeyRotationUnderAStream replaces an agent's key as the guide tells it, while
// streams are open, and then revokes it.
// The credentials live for longer than a busy machine may stand still.
func TestKeyRotationUnderAStream(t *testing.T) {
	t.Parallel()
	const ttl = 12 * time.Second
	s, ctx := newSite(t, ttl), t.Context()
	file := filepath.Join(s.dir, "office.key")
	first := s.key(file)
	if _, err := s.admin.RegisterAgent(ctx, "default", api.RegisterAgent{ID: "office", PublicKeys: []string{string(first.PEM())}}); err != nil {
		t.Fatal(err)
	}
	ended := s.agent(func(p *config.Party) { p.PrivateKeyFile = file })
	far, _ := s.proxy(func(p *config.Party) { p.TokenFile = s.token("bot") })
	streams := map[string]*conversation{"hub's proxy": s.open(s.info.Clients[0].String()), "proxy": s.open(far)}
	talk := func(when string) {
		t.Helper()
		for name, c := range streams {
			if err := c.say("hello"); err != nil {
				t.Fatalf("%s, %s: %v", name, when, err)
			}
		}
	}
	talk("at first")

	second := s.key(file) // the agent finds it within seconds
	if _, err := s.admin.AddAgentKey(ctx, "default", "office", string(second.PEM())); err != nil {
		t.Fatal(err)
	}
	for used := false; !used; {
		r, err := s.admin.Registration(ctx, "default", "office")
		if err != nil || len(r.Keys) != 2 {
			t.Fatal(r, err)
		}
		used = !r.Keys[1].LastUsed.IsZero()
		talk("during the rotation")
	}
	talk("on the new key")
	if err := s.admin.RemoveAgentKey(ctx, "default", "office", first.ID()[:8]); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(ttl + time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		talk("without the old key")
	}
	if err := s.open(far).say("new"); err != nil {
		t.Error(err)
	}

	since := time.Now()
	if err := s.admin.RemoveAgentKey(ctx, "default", "office", second.ID()); err != nil {
		t.Fatal(err)
	}
	for name, c := range streams {
		c.mustBeCut(t, name, since)
	}
	mustEnd(t, "agent", ended, "has no key")
}

func TestRevocationCutsStreams(t *testing.T) {
	for name, revoke := range map[string]func(ctx context.Context, c *api.Client) error{
		"token": func(ctx context.Context, c *api.Client) error {
			return c.DeleteRobotToken(ctx, "default", "clients", "one")
		},
		"robot": func(ctx context.Context, c *api.Client) error { return c.DeleteRobot(ctx, "default", "clients") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, time.Hour)
			agentEnded := s.agent(func(p *config.Party) { p.TokenFile = s.token("agents") })
			far, proxyEnded := s.proxy(func(p *config.Party) { p.TokenFile = s.token("clients") })
			cut, kept := s.open(far), s.open(s.info.Clients[0].String())
			since := time.Now()
			if err := revoke(t.Context(), s.admin); err != nil {
				t.Fatal(err)
			}
			cut.mustBeCut(t, "stream of the revoked proxy", since)
			mustEnd(t, "proxy", proxyEnded, "was revoked")
			if err := kept.say("still here"); err != nil {
				t.Errorf("stream of another ground: %v", err)
			}
			since = time.Now()
			if err := s.admin.DeleteOrganization(t.Context(), "default", true); err != nil {
				t.Fatal(err)
			}
			kept.mustBeCut(t, "stream of the deleted organization", since)
			mustEnd(t, "agent", agentEnded, "was revoked")
		})
	}
}
