package hubtest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/limit"
)

// TestLimitsReachAgents sets a limit of a proxy at the hub while everything runs: the
// agent keeps it, also after the hub's restart, until it is taken back.
func TestLimitsReachAgents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.DrainTimeout = 200 * time.Millisecond })
	a := w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	if _, err := w.admin.SetLimits(t.Context(), config.DefaultOrganization, api.LevelProxy, "near", limit.Limits{Streams: 1}); err != nil {
		t.Fatal(err)
	}
	refused := func() error {
		first, err := connect(p.http, "", target)
		if err != nil {
			return err
		}
		defer first.Close()
		if err := ping(first); err != nil {
			return err
		}
		second, err := connect(p.http, "", target)
		var why *answer
		switch {
		case err == nil:
			_ = second.Close()
			return errors.New("a second stream was opened")
		case !errors.As(err, &why) || why.status != 503 || !strings.Contains(why.body, "has reached its limit of 1 streams at once") ||
			!strings.Contains(why.body, "postern limit set --streams N --proxy near"):
			return fmt.Errorf("refused with: %w", err)
		}
		return nil
	}
	eventually(t, patience, refused)
	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
	w.startHub()
	w.awaitState("a", api.StateReady, patience)
	eventually(t, patience, refused)
	if a.metric(t, "postern_limit_refusals_total", "proxy", "streams") == 0 {
		t.Error("the agent tells of no refusal")
	}
	if err := w.admin.RemoveLimits(t.Context(), config.DefaultOrganization, api.LevelProxy, "near"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if err := refused(); err == nil || !strings.Contains(err.Error(), "a second stream was opened") {
			return fmt.Errorf("still refused: %v", err) //nolint:errorlint // it may be nil
		}
		return nil
	})
}
