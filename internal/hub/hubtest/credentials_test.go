package hubtest_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
)

// TestRenewals gives credentials for a few seconds only: they are renewed while one
// stream runs on and others come and go. They live for as long as a busy machine may
// stand still, and longer: a third of that is left when they are renewed.
func TestRenewals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.CredentialTTL = 12 * time.Second })
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	held := hold(t, p, target, 1)[0]
	renewals := func(part string) (n int) {
		for line := range strings.Lines(w.book.String()) {
			if strings.Contains(line, `msg="credentials received"`) && strings.Contains(line, " part="+part+" ") {
				n++
			}
		}
		return n
	}
	for begin := time.Now(); renewals("a") < 3 || renewals("proxy") < 3; time.Sleep(50 * time.Millisecond) {
		if err := ping(held); err != nil {
			t.Fatalf("the stream that runs: %v", err)
		}
		if err := once(p.forwards[0]); err != nil {
			t.Fatalf("another stream: %v", err)
		}
		if time.Since(begin) > patience {
			t.Fatalf("%d and %d renewals", renewals("a"), renewals("proxy"))
		}
	}
	if r := w.replica("a"); r.State != api.StateReady || r.LastError != "" {
		t.Errorf("the replica is %+v", r)
	}
}

// TestRevokedToken deletes the robot token that an agent came with: within seconds it
// is told, ends with that, and its streams with it.
func TestRevokedToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	file := w.robot(config.DefaultOrganization, "guest")
	guest := w.agent("a", func(c *config.Agent) { c.TokenFile = file; c.DrainTimeout = 100 * time.Millisecond })
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	held := hold(t, p, target, 1)[0]
	if err := w.admin.DeleteRobotToken(t.Context(), config.DefaultOrganization, "guest", "first"); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	select {
	case <-guest.done:
	case <-time.After(patience):
		t.Fatal("the agent runs on")
	}
	var f *wire.Failure
	if err := guest.forget(); !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated || !strings.Contains(f.Error(), "revoked") {
		t.Errorf("the agent ended with %v; want that its token was revoked", err)
	}
	if err := cut(held, patience); err != nil {
		t.Errorf("its stream: %v", err)
	}
	if took := time.Since(revoked); took > 5*time.Second+slack {
		t.Errorf("it took %s, of credentials that were good for an hour", took)
	}
	if err := onceBy(p.http, "", target); err == nil {
		t.Error("a stream was opened")
	}
}

// TestOrganizationsAreApart: a token leads into its own organization, and no proxy
// reaches an agent of another.
func TestOrganizationsAreApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	acme := w.robot("acme", "machines")
	w.agent("a", func(c *config.Agent) { c.Organization, c.TokenFile = "acme", acme })
	target := serve(t, echo)
	theirs := w.proxy(func(c *config.Proxy) { c.Organization, c.TokenFile = "acme", acme }, target)
	eventually(t, patience, func() error { return once(theirs.forwards[0]) })

	ours := w.proxy(nil, target)
	var a *answer
	if err := onceBy(ours.http, "", target); !errors.As(err, &a) || a.status != 503 || !strings.Contains(a.body, "no such agent has been seen in organization default") {
		t.Errorf("an agent of another organization: %v; want 503", err)
	}
	settings := config.DefaultAgent()
	settings.Party = w.party("thief")
	settings.TokenFile = acme
	thief, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: w.log})
	if err != nil {
		t.Fatal(err)
	}
	var f *wire.Failure
	if err := thief.Run(t.Context()); !errors.As(err, &f) || f.Code != wire.CodeDenied || !strings.Contains(f.Error(), "pass --organization acme") {
		t.Errorf("a token of another organization: %v", err)
	}
	if err := once(theirs.forwards[0]); err != nil {
		t.Error(err)
	}
}

// TestWrongTrust: who is shown another hub's CA, or none that fits, says so at once.
func TestWrongTrust(t *testing.T) {
	t.Parallel()
	var one, two *world
	var wg sync.WaitGroup
	wg.Go(func() { one = newWorld(t, nil) })
	wg.Go(func() { two = newWorld(t, nil) })
	wg.Wait()
	for name, change := range map[string]func(*config.Agent){
		"CA of another hub": func(c *config.Agent) { c.CAFile = two.info.CAFile },
		"wrong pin":         func(c *config.Agent) { c.CAFile, c.CAPin = "", two.info.Pin },
		"no CA":             func(c *config.Agent) { c.CAFile = "" },
	} {
		settings := config.DefaultAgent()
		settings.Party = one.party("x")
		change(&settings)
		a, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: one.log})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		var f *wire.Failure
		if err := a.Run(t.Context()); !errors.As(err, &f) || f.Leg != wire.LegTLS || f.Hint == "" {
			t.Errorf("%s: %v; want a failure of TLS with a hint", name, err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s: it took %s to say so", name, took)
		}
	}
}
