package hubtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// organization makes an organization with a robot, and returns the robot's token.
func (w *world) organization(name string) (token string) {
	w.t.Helper()
	if _, err := w.admin.CreateOrganization(w.t.Context(), name); err != nil {
		w.t.Fatal(err)
	}
	return w.robot(name, "machines")
}

// members starts an agent of several organizations. Each may reach all of 127.0.0.1,
// unless it says otherwise.
func (w *world) members(change func(*agent.Options), organizations ...config.Membership) *process {
	w.t.Helper()
	settings := config.DefaultAgent()
	settings.Party = w.party("r1")
	settings.Organization, settings.TokenFile, settings.DrainTimeout = "", "", 100*time.Millisecond
	for i := range organizations {
		if organizations[i].Allow == nil {
			organizations[i].Allow = []string{"tcp:127.0.0.1:*"}
		}
	}
	settings.Organizations = organizations
	watched := watch("agent")
	options := agent.Options{
		Version: "test", Getenv: noEnv, Registry: watched.registry, Health: watched.health, Log: w.log.With("part", "members"),
		Retry: 100 * time.Millisecond,
	}
	if change != nil {
		change(&options)
	}
	return run(w.t, watched, agent.NewMembers(settings, options).Run)
}

// of starts a proxy of another organization.
func (w *world) of(organization, token string, targets ...string) *client {
	w.t.Helper()
	return w.proxy(func(c *config.Proxy) { c.Organization, c.TokenFile = organization, token }, targets...)
}

// revoke deletes the token of an organization's robot.
func (w *world) revoke(organization string) {
	w.t.Helper()
	if err := w.admin.DeleteRobotToken(w.t.Context(), organization, "machines", "first"); err != nil {
		w.t.Fatal(err)
	}
}

// renew puts a new token of an organization's robot into the file of the old one.
func (w *world) renew(organization, file string) {
	w.t.Helper()
	token, err := w.admin.CreateRobotToken(w.t.Context(), organization, "machines", api.CreateToken{Name: "second"})
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(token)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// unharmed pings a stream until the returned function is called, and reports the
// first failure.
func unharmed(t *testing.T, c interface{ ping() error }) (stop func()) {
	end, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := c.ping(); err != nil {
				done <- err
				return
			}
			select {
			case <-end:
				done <- nil
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() {
		t.Helper()
		close(end)
		if err := <-done; err != nil {
			t.Errorf("the stream of the other organization: %v", err)
		}
	}
}

// pinger is a stream to an echo.
type pinger func() error

func (p pinger) ping() error { return p() }

// TestSeveralOrganizations serves two organizations of one hub and one of another hub by
// one agent of the same ID, each with rules of its own.
func TestSeveralOrganizations(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, nil), newWorld(t, nil)
	acme := w.organization("acme")
	one, two := serve(t, echo), serve(t, echo)
	a := w.members(nil,
		config.Membership{Organization: config.DefaultOrganization, TokenFile: w.token, Allow: []string{"tcp:" + one}},
		config.Membership{Organization: "acme", TokenFile: acme, Allow: []string{"tcp:" + two}},
		config.Membership{Organization: config.DefaultOrganization, Alias: "elsewhere", TokenFile: other.token,
			Uplink: config.Uplink{ConnectURL: other.url(), CAFile: other.info.CAFile}, Deny: []string{"tcp:" + one}},
	)
	for _, tt := range []struct {
		proxy          *client
		allowed, other string
	}{
		{w.proxy(nil), one, two},
		{w.of("acme", acme), two, one},
		{other.proxy(nil), two, one},
	} {
		eventually(t, patience, func() error { return onceBy(tt.proxy.http, "", tt.allowed) })
		var no *answer
		if err := onceBy(tt.proxy.http, "", tt.other); !errors.As(err, &no) || no.status != 403 {
			t.Errorf("what is allowed to another organization: %v; want 403", err)
		}
	}
	for _, name := range []string{config.DefaultOrganization, "acme", "elsewhere"} {
		if opened := a.metric(t, "postern_stream_opens_total", name, "ok"); opened != 1 {
			t.Errorf("organization %s: %v streams were counted", name, opened)
		}
		if a.metric(t, "postern_bus_connected", name) != 1 || a.metric(t, "postern_organization_failed", name) != 0 {
			t.Errorf("organization %s counts as not connected", name)
		}
	}
	r := a.health.Ready(t.Context())
	if !r.Ready || len(r.Organizations) != 3 || !r.Organizations[2].Ready || r.Organizations[2].Organization != "elsewhere" {
		t.Errorf("readiness: %+v", r)
	}
	if err := a.stop(); err != nil { // all drain
		t.Error(err)
	}
	if r := a.health.Ready(t.Context()); r.Ready {
		t.Errorf("readiness after the end: %+v", r)
	}
}

// TestOrganizationRevoked revokes the token of one of two organizations under streams
// of both: only its own breaks, the agent says so, and serves it again with a new token.
// When both are revoked, the agent ends.
func TestOrganizationRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	acme, globex := w.organization("acme"), w.organization("globex")
	a := w.members(nil, config.Membership{Organization: "acme", TokenFile: acme}, config.Membership{Organization: "globex", TokenFile: globex})
	target := serve(t, echo)
	own, others := w.robotOf("acme"), w.robotOf("globex") // of the proxies, which shall live on
	pa, pg := w.of("acme", own, target), w.of("globex", others, target)
	eventually(t, patience, func() error { return errors.Join(once(pa.forwards[0]), once(pg.forwards[0])) })
	theirs, ours := hold(t, pa, target, 1)[0], hold(t, pg, target, 1)[0]
	stop := unharmed(t, pinger(func() error { return ping(ours) }))

	w.revoke("acme")
	if err := cut(theirs, 5*time.Second+slack); err != nil {
		t.Errorf("the stream of the organization that was revoked: %v", err)
	}
	eventually(t, patience, func() error {
		if a.metric(t, "postern_organization_failed", "acme") != 1 || a.metric(t, "postern_organization_failed", "globex") != 0 {
			return errors.New("the metrics do not tell of it")
		}
		return nil
	})
	eventually(t, patience, func() error {
		r := a.health.Ready(t.Context())
		if b, _ := json.Marshal(r); !r.Ready || r.Organizations[0].Ready || !r.Organizations[1].Ready || !bytes.Contains(b, []byte("revoked")) {
			return fmt.Errorf("the health does not tell of it: %s", b)
		}
		return nil
	})
	if err := once(pg.forwards[0]); err != nil {
		t.Errorf("a new stream of the other organization: %v", err)
	}
	eventually(t, patience, func() error { // it is tried again, and not in a rush
		if a.metric(t, "postern_organization_failures_total", "acme") < 3 {
			return errors.New("it is not tried again")
		}
		return nil
	})

	w.renew("acme", acme)
	took := eventually(t, patience, func() error { return once(pa.forwards[0]) })
	t.Logf("served again %s after there was a new token", took.Round(time.Millisecond))
	if a.metric(t, "postern_organization_failed", "acme") != 0 {
		t.Error("it counts as failed still")
	}
	stop()

	w.revoke("globex")
	if err := w.admin.DeleteRobotToken(t.Context(), "acme", "machines", "second"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.done:
	case <-time.After(patience):
		t.Fatal("the agent runs on, and serves nobody")
	}
	if err := a.forget(); err == nil || !strings.Contains(err.Error(), "organization acme: ") || !strings.Contains(err.Error(), "organization globex: ") {
		t.Errorf("it ended with %v", err)
	}
}

// robotOf makes another robot of an organization.
func (w *world) robotOf(organization string) (token string) { return w.robot(organization, "near") }

// TestOrganizationFloods has one organization open more streams than it may, all the time:
// it is refused, and the other one is served as ever.
func TestOrganizationFloods(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	acme, globex := w.organization("acme"), w.organization("globex")
	const limit = 8
	a := w.members(func(o *agent.Options) { o.MaxPipes = limit },
		config.Membership{Organization: "acme", TokenFile: acme}, config.Membership{Organization: "globex", TokenFile: globex})
	target := serve(t, echo)
	pa, pg := w.of("acme", acme, target), w.of("globex", globex, target)
	eventually(t, patience, func() error { return errors.Join(once(pa.forwards[0]), once(pg.forwards[0])) })

	end := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 3 * limit {
		wg.Go(func() {
			for {
				c, err := connect(pa.http, "", target)
				var no *answer
				switch {
				case err == nil:
					defer c.Close() // and keep it
				case errors.As(err, &no) && no.status == 503 && strings.Contains(no.body, "pipes"):
					mu.Lock()
					refused++
					mu.Unlock()
				}
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	eventually(t, patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		if refused < 10 {
			return fmt.Errorf("%d opens were refused", refused)
		}
		return nil
	})
	var slowest time.Duration
	held := hold(t, pg, target, limit/2)
	for range 20 {
		begin := time.Now()
		if err := onceBy(pg.http, "", target); err != nil {
			t.Errorf("a stream of the other organization: %v", err)
		}
		slowest = max(slowest, time.Since(begin))
	}
	for _, c := range held {
		if err := ping(c); err != nil {
			t.Error(err)
		}
	}
	close(end)
	wg.Wait()
	t.Logf("%d opens of one organization were refused; the slowest of the other took %s", refused, slowest.Round(time.Millisecond))
	if n := a.metric(t, "postern_stream_opens_total", "globex", "overloaded"); n != 0 {
		t.Errorf("%v opens of the other organization were refused", n)
	}
}

// TestOrganizationFailsAtTheStart starts an agent with an organization whose token is
// missing and one whose policy file cannot be used: the third is served, and the others
// once that is mended.
func TestOrganizationFailsAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	acme, globex := w.organization("acme"), w.organization("globex")
	dir := t.TempDir()
	token, rules := dir+"/acme.json", dir+"/policy.yaml"
	if err := os.WriteFile(rules, []byte("allow:\n- nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := serve(t, echo)
	a := w.members(nil,
		config.Membership{Organization: "acme", TokenFile: token},
		config.Membership{Organization: "globex", TokenFile: globex, PolicyFile: rules, Allow: []string{}},
		config.Membership{Organization: config.DefaultOrganization, TokenFile: w.token},
	)
	p, pa, pg := w.proxy(nil, target), w.of("acme", acme, target), w.of("globex", globex, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	if failed := a.metric(t, "postern_organization_failed"); failed != 2 {
		t.Errorf("%v organizations count as failed", failed)
	}
	text, err := os.ReadFile(acme)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(token, text, 0o600), os.WriteFile(rules, []byte("allow:\n- tcp:127.0.0.1:*\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error { return errors.Join(once(pa.forwards[0]), once(pg.forwards[0])) })
	if failed := a.metric(t, "postern_organization_failed"); failed != 0 {
		t.Errorf("%v organizations count as failed", failed)
	}
}
