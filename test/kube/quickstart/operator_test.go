//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestQuickStart follows the guide with the operator, whose Proxy makes the way.
func TestQuickStart(t *testing.T) {
	w := newWorld(t)
	r := newReader(t, w)
	began := time.Now()
	for _, s := range steps(t, "quick-start-kubernetes.md") {
		r.follow(t, s)
		switch number, _, _ := strings.Cut(s.heading, "."); number {
		case "2":
			w.startConsumer(t)
			w.cannot(t)
		case "5":
			w.waits(t)
		case "7":
			w.can(t)
		}
	}
	t.Logf("the guide took %s", time.Since(began).Round(time.Second))
	t.Run("upgrade", func(t *testing.T) { w.upgrade(t, "default") })
}

// waits looks at a Proxy whose agent is not there yet.
func (w *world) waits(t *testing.T) {
	t.Helper()
	out := kubectl(t, w.pair.A, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.agentID}")
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(out) {
		t.Errorf("the agent's ID is %q, and no UUID", out)
	}
	eventually(t, "the Proxy says that it waits for the agent", time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.phase}")
		if err == nil && out != "WaitingForProxy" {
			err = fmt.Errorf("the phase is %q", out)
		}
		return err
	})
}
