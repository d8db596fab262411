package bus_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
)

// await waits until the directory shows what is wanted.
func await(t *testing.T, d *bus.Directory, limit time.Duration, want func([]bus.Presence) bool) {
	t.Helper()
	for deadline := time.After(limit); ; {
		changed := d.Changed()
		if want(d.All()) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("directory shows %+v", d.All())
		}
	}
}

func state(s bus.State) func([]bus.Presence) bool {
	return func(all []bus.Presence) bool { return len(all) == 1 && all[0].State == s }
}

func presence(epoch string) bus.Presence {
	now := time.Now()
	return bus.Presence{Agent: "a", Replica: "1", Epoch: epoch, State: bus.StateReady, Started: now, Since: now}
}

// announce announces until the returned function is called.
func announce(t *testing.T, c *bus.Conn, get func() bus.Presence) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Announce(ctx, get) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestPresence(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	stranger := h.party("other", identity.RoleProxy, "p", "1", time.Hour).connect()
	stop := announce(t, agent, func() bus.Presence { return presence("one") })
	// These come later than the first announcement, most likely, and ask.
	d, err := proxy.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	none, err := stranger.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hubConn, err := h.now.Load().Connect(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	defer hubConn.Close()
	hd, err := hubConn.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	await(t, d, patience, state(bus.StateReady))
	await(t, hd, patience, state(bus.StateReady))
	// Who asks does not wait for the next announcement, again and again: three seconds each.
	begin := time.Now()
	for range 5 {
		late, err := proxy.NewDirectory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		await(t, late, patience, state(bus.StateReady))
	}
	if took := time.Since(begin); took > 9*time.Second {
		t.Errorf("five who asked waited %s", took)
	}
	stop()
	await(t, d, patience, state(bus.StateStopped))
	stop = announce(t, agent, func() bus.Presence { return presence("two") })
	await(t, d, patience, func(all []bus.Presence) bool {
		return len(all) == 1 && all[0].Epoch == "two" && all[0].State == bus.StateReady
	})
	if got := d.Replicas("b"); len(got) != 0 {
		t.Errorf("replicas of an unknown agent: %+v", got)
	}
	stop()
	await(t, hd, patience, state(bus.StateStopped))
	if all := none.All(); len(all) != 0 {
		t.Errorf("another organization sees %+v", all)
	}
}

func TestKickAnnouncesAtOnce(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	d, err := proxy.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var change atomic.Int64
	defer announce(t, agent, func() bus.Presence {
		p := presence("one")
		p.Zone = fmt.Sprint(change.Load())
		return p
	})()
	await(t, d, patience, state(bus.StateReady))
	// Without the kick each change would take three seconds to be heard of.
	begin := time.Now()
	for want := range 5 {
		change.Store(int64(want + 1))
		agent.Kick()
		await(t, d, patience, func(all []bus.Presence) bool { return len(all) == 1 && all[0].Zone == fmt.Sprint(want+1) })
	}
	if took := time.Since(begin); took > 9*time.Second {
		t.Errorf("five changes took %s", took)
	}
}

func TestSilentReplicaIsLost(t *testing.T) {
	t.Parallel() // it waits for nine seconds of silence
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour)
	c, err := bus.Connect(t.Context(), agent.options())
	if err != nil {
		t.Fatal(err)
	}
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	d, err := proxy.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop := announce(t, c, func() bus.Presence { return presence("one") })
	await(t, d, patience, state(bus.StateReady))
	c.Close()                                         // without the farewell that stop would bring
	await(t, d, 15*time.Second, state(bus.StateLost)) // ten are promised; a busy machine may add to it
	stop()
}

func TestDirectoryAfterRestart(t *testing.T) {
	h := newHub(t)
	ap, pp := h.party("acme", identity.RoleAgent, "a", "1", time.Hour), h.party("acme", identity.RoleProxy, "p", "1", time.Hour)
	agent, proxy := ap.connect(), pp.connect()
	d, err := proxy.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	zone := "before"
	p := presence("one")
	zones := make(chan string, 1)
	defer announce(t, agent, func() bus.Presence {
		select {
		case zone = <-zones:
		default:
		}
		p.Zone = zone
		return p
	})()
	await(t, d, patience, state(bus.StateReady))
	h.stop()
	zones <- "after"
	h.start()
	await(t, d, patience, func(all []bus.Presence) bool { return len(all) == 1 && all[0].Zone == "after" })
}

func TestAnnounceRefusesNonsense(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	if err := agent.Announce(t.Context(), func() bus.Presence { return bus.Presence{} }); err == nil {
		t.Error("an empty presence is announced")
	}
}
