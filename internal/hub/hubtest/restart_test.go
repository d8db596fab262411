package hubtest_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
)

// TestHubRestarts stops a hub and starts it again on the same state: streams are
// reset, not ended; agents and proxies come back by themselves; and robots and
// tokens are still there.
func TestHubRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 200 * time.Millisecond })
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	held := hold(t, p, target, 3)

	for _, away := range []time.Duration{0, 2 * time.Second} {
		if err := w.hub.stop(); err != nil {
			t.Error(err)
		}
		for _, c := range held {
			if err := cut(c, patience); err != nil {
				t.Errorf("a stream: %v", err)
			}
		}
		begin := time.Now()
		if err := once(p.forwards[0]); err == nil {
			t.Error("a stream was opened without a hub")
		} else if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("it took %s to refuse a stream without a hub", took)
		}
		time.Sleep(away) // long enough for some attempts to fail, and for pauses to grow
		w.startHub()
		took := eventually(t, patience, func() error { return once(p.forwards[0]) })
		t.Logf("a stream opened %s after the hub was back", took.Round(time.Millisecond))
		if took > 10*time.Second+slack {
			t.Errorf("agent and proxy took %s to come back", took)
		}
		held = hold(t, p, target, 3)
		w.awaitState("a", api.StateReady, patience)
	}
	robots, err := w.admin.Robots(t.Context(), config.DefaultOrganization)
	if err != nil || len(robots) != 1 || robots[0].Name != "machines" {
		t.Errorf("robots after the restarts: %+v, %v", robots, err)
	}
	w.agent("b", nil) // with the same token
	w.awaitState("b", api.StateReady, patience)
}

// TestHubRefusesToStart: where a hub cannot start it says why, touches nothing, and
// does not disturb the one that runs.
func TestHubRefusesToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "letters.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	for name, tt := range map[string]struct {
		data, listen string
		want         error // nil: the network's
	}{
		"second hub on the state": {w.config.Data, "127.0.0.1:0", hub.ErrStateLocked},
		"busy port":               {fresh, w.config.Listen, nil},
		"foreign directory":       {foreign, "127.0.0.1:0", hub.ErrStateForeign},
	} {
		settings := config.DefaultHub()
		settings.Data, settings.Listen = tt.data, tt.listen
		err := hub.New(settings, hub.Options{Version: "test", Health: observe.NewHealth(), Log: w.log}).Run(t.Context())
		var op *net.OpError
		if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(fresh); !os.IsNotExist(err) {
		t.Errorf("a busy port, and yet state was made: %v", err)
	}
	if entries, err := os.ReadDir(foreign); err != nil || len(entries) != 1 {
		t.Errorf("the foreign directory holds %v, %v", entries, err)
	}
	if err := once(p.forwards[0]); err != nil {
		t.Errorf("the hub that runs: %v", err)
	}
}
