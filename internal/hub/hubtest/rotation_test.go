package hubtest_test

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
)

// phases returns the phases of the hub's authorities, the newest first.
func (w *world) phases() string {
	w.t.Helper()
	all, err := w.admin.Authorities(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	names := make([]string, 0, len(all))
	for _, a := range all {
		names = append(names, a.Phase)
	}
	return strings.Join(names, " ")
}

// keepCA copies the hub's ca.crt of this moment.
func (w *world) keepCA() string {
	w.t.Helper()
	b, err := os.ReadFile(w.info.CAFile)
	if err != nil {
		w.t.Fatal(err)
	}
	name := filepath.Join(w.t.TempDir(), "ca.crt")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// traffic is streams that run and streams that come and go, over an agent's proxy
// and the hub's own.
type traffic struct {
	world *world
	near  *client
	own   string // the hub's own HTTP proxy
	echo  string
	held  []net.Conn
	opens int
}

func (w *world) traffic(near func(*config.Proxy)) *traffic {
	w.t.Helper()
	tr := &traffic{world: w, echo: serve(w.t, echo)}
	tr.near = w.proxy(near, tr.echo)
	tr.own = w.info.Clients[0].String()
	eventually(w.t, patience, func() error { return once(tr.near.forwards[0]) })
	eventually(w.t, patience, func() error { return onceBy(tr.own, agentID, tr.echo) })
	for _, by := range []string{tr.near.http, tr.own} {
		c, err := connect(by, agentID, tr.echo)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = c.Close() })
		tr.held = append(tr.held, c)
	}
	return tr
}

// until keeps the traffic going until the authorities are in some phases. No open
// may fail, and no stream break.
func (tr *traffic) until(phases string) {
	w := tr.world
	w.t.Helper()
	for begin := time.Now(); ; {
		for i, c := range tr.held {
			if err := ping(c); err != nil {
				w.t.Fatalf("while the authorities were %s: stream %d that runs: %v", w.phases(), i, err)
			}
		}
		if err := once(tr.near.forwards[0]); err != nil {
			w.t.Fatalf("while the authorities were %s: a stream of the proxy: %v", w.phases(), err)
		}
		if err := onceBy(tr.own, agentID, tr.echo); err != nil {
			w.t.Fatalf("while the authorities were %s: a stream of the hub's own proxy: %v", w.phases(), err)
		}
		tr.opens += 2
		now := w.phases()
		if now == phases {
			return
		}
		if time.Since(begin) > patience {
			w.t.Fatalf("the authorities are %s; want %s", now, phases)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// fresh starts a new agent with a CA file or pin, and waits until it is ready.
func (w *world) fresh(name, caFile, pin string) {
	w.t.Helper()
	one := w.agent(name, func(c *config.Agent) { c.CAFile, c.CAPin = caFile, pin })
	w.awaitState(name, api.StateReady, patience)
	if err := one.stop(); err != nil {
		w.t.Errorf("%s: %v", name, err)
	}
}

// TestRotation changes the hub's authority under traffic, with a restart of the hub
// in the middle of it: streams open and run throughout, parties with the old CA file
// or pin come in at any time, and those with the new pin from its announcement on.
func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) {
		c.CredentialTTL = 12 * time.Second // see TestRenewals
		c.HTTP = "127.0.0.1:0"
		c.DrainTimeout = 100 * time.Millisecond
	})
	oldFile, oldPin := w.keepCA(), w.info.Pin
	w.agent("file", func(c *config.Agent) { c.CAFile = oldFile })
	tr := w.traffic(func(c *config.Proxy) { c.CAFile, c.CAPin = "", oldPin })
	tr.until("signing")

	all, err := w.admin.RotateCA(t.Context(), api.RotateCA{})
	if err != nil {
		t.Fatal(err)
	}
	next := all[0]
	if next.Phase != "announced" || next.NextPhase.IsZero() || all[1].Pin != oldPin || all[1].Phase != "signing" || all[1].Certificates < 2 {
		t.Fatalf("after the announcement: %+v", all)
	}
	if _, err := w.admin.RotateCA(t.Context(), api.RotateCA{}); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a second rotation: %v", err)
	}
	certs, err := identity.ParseCertificates(readFile(t, w.info.CAFile))
	if err != nil || len(certs) != 2 || identity.Pin(certs[0]) != next.Pin || identity.Pin(certs[1]) != oldPin {
		t.Errorf("ca.crt holds %d authorities, %v", len(certs), err)
	}
	tr.until("announced signing")
	w.fresh("new-pin-early", "", next.Pin)
	tr.until("signing retiring")
	if err := w.admin.RetireCA(t.Context(), oldPin, false); err == nil || !strings.Contains(err.Error(), "still valid") {
		t.Errorf("retiring it before its time: %v", err)
	}
	tr.until("signing retired")
	for name, ca := range map[string][2]string{"old-file": {oldFile, ""}, "old-pin": {"", oldPin}, "new-file": {w.keepCA(), ""}, "new-pin": {"", next.Pin}} {
		w.fresh(name, ca[0], ca[1])
	}
	tr.until("signing retired")
	t.Logf("%d opens, and none failed", tr.opens)

	if c, err := identity.ParseCertificates(readFile(t, w.info.CAFile)); err != nil || len(c) != 1 || identity.Pin(c[0]) != next.Pin {
		t.Errorf("ca.crt at the end: %d authorities, %v", len(c), err)
	}
	if _, err := os.Stat(filepath.Join(w.config.Data, "ca.key")); !os.IsNotExist(err) {
		t.Errorf("the key of the retired authority: %v", err)
	}
}

// TestRotationSurvivesRestarts stops the hub in each phase: it goes on with it.
func TestRotationSurvivesRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.CredentialTTL = 5 * time.Second; c.DrainTimeout = 100 * time.Millisecond })
	oldFile := w.keepCA()
	w.agent("a", func(c *config.Agent) { c.CAFile = oldFile })
	w.awaitState("a", api.StateReady, patience)
	restart := func() {
		t.Helper()
		before := w.phases()
		if err := w.hub.stop(); err != nil {
			t.Error(err)
		}
		w.startHub()
		if after := w.phases(); after != before && after == "signing" {
			t.Errorf("phases %s became %s", before, after)
		}
	}
	if _, err := w.admin.RotateCA(t.Context(), api.RotateCA{}); err != nil {
		t.Fatal(err)
	}
	pin := w.info.Pin
	restart()
	if w.info.Pin == pin {
		t.Error("the pin to distribute is still the old one")
	}
	for _, phases := range []string{"signing retiring", "signing retired"} {
		eventually(t, patience, func() error {
			if now := w.phases(); now != phases {
				return fmt.Errorf("the authorities are %s; want %s", now, phases)
			}
			return nil
		})
		restart()
	}
	w.awaitState("a", api.StateReady, patience)
	w.fresh("b", oldFile, "")
}

// TestDistrustedAuthority withdraws an authority at once, as when its key was stolen:
// what it signed is cut and refused, and honest parties come back by themselves.
func TestDistrustedAuthority(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	oldFile, oldPin := w.keepCA(), w.info.Pin
	w.agent("a", func(c *config.Agent) { c.CAFile = oldFile })
	tr := w.traffic(func(c *config.Proxy) { c.CAFile = oldFile })
	if err := w.admin.RetireCA(t.Context(), oldPin, false); err == nil || !strings.Contains(err.Error(), "signs") {
		t.Errorf("without force: %v", err)
	}
	if err := w.admin.RetireCA(t.Context(), oldPin[:20], true); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if now := w.phases(); now != "signing distrusted" {
		t.Errorf("the authorities are %s", now)
	}
	if err := ping(tr.held[0]); err == nil {
		t.Error("a stream over the old certificates runs on")
	}
	eventually(t, patience, func() error { return once(tr.near.forwards[0]) })
	eventually(t, patience, func() error { return onceBy(tr.own, agentID, tr.echo) })
	t.Logf("streams opened again %s after it", time.Since(begin).Round(time.Millisecond))
	all, err := w.admin.Authorities(t.Context())
	if err != nil || len(all) != 2 || all[0].Certificates < 2 {
		t.Errorf("authorities: %+v, %v", all, err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(readFile(t, w.info.CAFile))
	old, err := identity.ParseCertificates(readFile(t, oldFile))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(all, func(a api.Authority) bool { return a.Pin == oldPin && a.Certificate != "" }) {
		t.Error("the distrusted authority is handed out")
	}
	if _, err := old[0].Verify(x509.VerifyOptions{Roots: pool}); err == nil {
		t.Error("ca.crt still holds the distrusted authority")
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
