package hubtest_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc/oidctest"
)

// cutLimit is within how much time a revocation has to reach every connection.
const cutLimit = 5*time.Second + slack

// exchange asks for credentials as a party that has the world's token.
func (w *world) exchange(role identity.Role, name string) error {
	w.t.Helper()
	return enroll.New(w.uplink, enroll.Request{
		Organization: config.DefaultOrganization, Role: role, Name: name, Replica: "another", Version: "test",
		Secret: &enroll.RobotToken{File: w.token}, NewBusKey: bus.NewUserKey,
	}, nil).Start(w.t.Context())
}

// connections returns how many an organization has to the bus, and how many pipes a proxy
// has at the relay.
func (w *world) connections(org, proxy string) (bus, pipes int64) {
	w.t.Helper()
	all, err := w.admin.Limits(w.t.Context(), org)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range all {
		switch {
		case l.Level == api.LevelOrganization:
			bus = l.Connections
		case l.Level == api.LevelProxy && l.Name == proxy:
			pipes = l.Pipes
		}
	}
	return bus, pipes
}

// held opens a stream over a proxy to an agent.
func (w *world) held(proxy, agent, target string) net.Conn {
	w.t.Helper()
	var c net.Conn
	eventually(w.t, patience, func() (err error) {
		if c, err = connect(proxy, agent, target); err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = c.Close() })
		return ping(c)
	})
	return c
}

// enrolments are the ways in which agents enrol: the settings of each, for an agent of the
// same name.
func (w *world) enrolments() map[string]func(*config.Agent) {
	w.t.Helper()
	ctx, org := w.t.Context(), config.DefaultOrganization
	dir := w.t.TempDir()
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			w.t.Fatal(err)
		}
		return file
	}
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		w.t.Fatal(err)
	}
	private, err := key.PEM()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.admin.RegisterAgent(ctx, org, api.RegisterAgent{ID: "by-key", PublicKeys: []string{string(key.Public().PEM())}}); err != nil {
		w.t.Fatal(err)
	}
	issuer := oidctest.New(w.t)
	if _, err := w.admin.CreateTrust(ctx, org, api.CreateTrust{
		Name: "cluster", Issuer: issuer.URL, CA: string(issuer.CA), Audiences: []string{"postern"}, Claims: []string{"sub=edge"}, Role: "agent", Identity: "by-workload",
	}); err != nil {
		w.t.Fatal(err)
	}
	workload := issuer.Sign(w.t, issuer.Claims(time.Now(), "postern", map[string]any{"sub": "edge"}))
	keyFile, workloadFile := write("key", private), write("workload", []byte(workload))
	return map[string]func(*config.Agent){
		"by-token":    func(*config.Agent) {},
		"by-key":      func(c *config.Agent) { c.TokenFile, c.PrivateKeyFile = "", keyFile },
		"by-workload": func(c *config.Agent) { c.TokenFile, c.WorkloadTokenFile = "", workloadFile },
	}
}

// TestRevokedAgents revokes agents by name that enrolled in each way: within five seconds
// the streams and all connections of each are gone, and nobody else's; when it is restored
// it comes back by itself.
func TestRevokedAgents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	org, own := config.DefaultOrganization, w.info.Clients[0].String()
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	acme := w.robot("acme", "machines")
	target := serve(t, echo)
	w.agent("kept", nil)
	p := w.proxy(nil)
	theirs := w.proxy(func(c *config.Proxy) { c.Organization, c.TokenFile = "acme", acme })
	kept := []net.Conn{w.held(p.http, agentID, target), w.held(own, agentID, target)}
	for id, change := range w.enrolments() {
		namesake := w.agent("r1", func(c *config.Agent) {
			c.AgentID, c.Organization, c.TokenFile, c.DrainTimeout = id, "acme", acme, 100*time.Millisecond
		})
		one := w.agent(id, func(c *config.Agent) { c.AgentID, c.DrainTimeout = id, 100*time.Millisecond; change(c) })
		gone := []net.Conn{w.held(p.http, id, target), w.held(own, id, target)}
		same := w.held(theirs.http, id, target)
		before, _ := w.connections(org, "near")
		begin := time.Now()
		v, err := w.admin.RevokeParty(t.Context(), org, "agent", id, api.RevokeParty{Reason: "a test"})
		if err != nil {
			t.Fatal(err)
		}
		if v.Cut < 3 {
			t.Errorf("%s: %d connections were cut; want that to the bus and two pipes", id, v.Cut)
		}
		for _, c := range gone {
			if err := cut(c, cutLimit); err != nil {
				t.Errorf("%s: its stream: %v", id, err)
			}
		}
		streams := time.Since(begin)
		eventually(t, cutLimit-streams, func() error {
			if now, _ := w.connections(org, "near"); now != before-1 {
				return fmt.Errorf("%s: %d connections to the bus; want %d", id, now, before-1)
			}
			return nil
		})
		if took := time.Since(begin); took > cutLimit {
			t.Errorf("%s: it took %s", id, took)
		}
		t.Logf("%s: %d connections cut; streams after %s, the bus after %s", id, v.Cut, streams.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		if err := onceBy(p.http, id, target); err == nil {
			t.Errorf("%s: a stream was opened", id)
		}
		for _, c := range append(kept, same) {
			if err := ping(c); err != nil {
				t.Errorf("%s: a stream of another agent: %v", id, err)
			}
		}
		a, err := w.admin.Agent(t.Context(), org, id)
		if err != nil || a.State != api.StateRevoked || a.Revoked == nil || a.Revoked.Reason != "a test" {
			t.Errorf("%s is shown as %+v, %v", id, a, err)
		}
		w.await(org, "what was cut of "+id, func(e audit.Entry) bool {
			return e.Action == audit.Revoke && e.Object == "agent:"+id && e.Count == uint64(v.Cut)
		})
		w.await(org, "that it asked again", func(e audit.Entry) bool {
			return e.Action == audit.Exchange && !e.OK && e.Object == "agent:"+id && strings.Contains(e.Reason, "was revoked at")
		})
		select {
		case <-one.done:
			t.Fatalf("%s: the agent ended: %v; want that it waits", id, one.err)
		default:
		}
		if err := w.admin.RestoreParty(t.Context(), org, "agent", id); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: back after %s", id, eventually(t, patience, func() error { return onceBy(p.http, id, target) }).Round(time.Millisecond))
		for _, process := range []*process{one, namesake} {
			if err := process.stop(); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
}

// TestRevokedProxy revokes one of two proxies that came with the same token.
func TestRevokedProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", nil)
	target := serve(t, echo)
	near := w.proxy(nil, target)
	far := w.proxy(func(c *config.Proxy) { c.Name = "far" }, target)
	gone, kept := w.held(near.http, agentID, target), w.held(far.http, agentID, target)
	before, pipes := w.connections(config.DefaultOrganization, "near")
	if pipes == 0 {
		t.Fatal("the proxy has no pipes")
	}
	begin := time.Now()
	v, err := w.admin.RevokeParty(t.Context(), config.DefaultOrganization, "proxy", "near", api.RevokeParty{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cut(gone, cutLimit); err != nil {
		t.Errorf("its stream: %v", err)
	}
	eventually(t, cutLimit, func() error {
		if now, pipes := w.connections(config.DefaultOrganization, "near"); now != before-1 || pipes != 0 {
			return fmt.Errorf("%d connections to the bus and %d pipes; want %d and none", now, pipes, before-1)
		}
		return nil
	})
	t.Logf("%d connections were cut, within %s", v.Cut, time.Since(begin).Round(time.Millisecond))
	if took := time.Since(begin); took > cutLimit {
		t.Errorf("it took %s", took)
	}
	if err := onceBy(near.http, agentID, target); err == nil {
		t.Error("a stream was opened through it")
	}
	if err := ping(kept); err != nil {
		t.Errorf("a stream of the other proxy: %v", err)
	}
	if err := once(far.forwards[0]); err != nil {
		t.Errorf("a new one: %v", err)
	}
	if err := w.exchange(identity.RoleProxy, "near"); !api.IsPartyRevoked(err) {
		t.Errorf("another one by its name: %v", err)
	}
	if err := w.exchange(identity.RoleAgent, "near"); err != nil {
		t.Errorf("an agent by its name: %v", err)
	}
	if err := w.admin.RestoreParty(t.Context(), config.DefaultOrganization, "proxy", "near"); err != nil {
		t.Fatal(err)
	}
	t.Logf("back after %s", eventually(t, patience, func() error { return once(near.forwards[0]) }).Round(time.Millisecond))
}

// TestRevokedNamesLast revokes an agent by name, and restarts the hub, and restores it from
// a backup elsewhere: the agent stays out until it is let in again.
func TestRevokedNamesLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 100 * time.Millisecond })
	ca := w.keepCA()
	w.agent("a", func(c *config.Agent) { c.CAFile = ca })
	target := serve(t, echo)
	p := w.proxy(func(c *config.Proxy) { c.CAFile = ca }, target)
	w.agent("other", func(c *config.Agent) { c.CAFile, c.AgentID = ca, "other" })
	w.held(p.http, agentID, target)
	if _, err := w.admin.RevokeParty(t.Context(), config.DefaultOrganization, "agent", agentID, api.RevokeParty{Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	out := func(when string) {
		t.Helper()
		eventually(t, patience, func() error { return onceBy(p.http, "other", target) }) // all are back that may be
		if err := once(p.forwards[0]); err == nil {
			t.Errorf("%s: a stream was opened", when)
		}
		if err := w.exchange(identity.RoleAgent, agentID); !api.IsPartyRevoked(err) {
			t.Errorf("%s: %v", when, err)
		}
		all, err := w.admin.Revocations(t.Context(), config.DefaultOrganization)
		if err != nil || len(all) != 1 || all[0].Name != agentID || all[0].Reason != "a test" {
			t.Errorf("%s: %+v, %v", when, all, err)
		}
	}
	out("at first")
	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
	w.startHub()
	out("after a restart")
	b := w.backup()
	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
	w.config.Data = filepath.Join(t.TempDir(), "elsewhere")
	if err := restore(t, w.config.Data, b, hub.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	w.startHub()
	out("after a restore of the hub")
	if err := w.admin.RestoreParty(t.Context(), config.DefaultOrganization, "agent", agentID); err != nil {
		t.Fatal(err)
	}
	t.Logf("back after %s", eventually(t, 2*patience, func() error { return once(p.forwards[0]) }).Round(time.Millisecond))
	if err := w.admin.RestoreParty(t.Context(), config.DefaultOrganization, "agent", agentID); !api.IsNotFound(err) {
		t.Errorf("restored twice: %v", err)
	}
}
