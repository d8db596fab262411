package hubtest_test

import (
	"errors"
	"strings"
	"testing"

	"postern.dev/postern/internal/config"
)

// TestStreams opens streams by all the ways that lead to an agent and moves bytes
// both ways through them.
func TestStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	t.Run("forward", func(t *testing.T) { swap(t, dial(t, p.forwards[0]), 1<<20) })
	t.Run("CONNECT", func(t *testing.T) {
		c, err := connect(p.http, "", target)
		if err != nil {
			t.Fatal(err)
		}
		swap(t, c, 1<<20)
	})
	t.Run("SOCKS5", func(t *testing.T) { swap(t, socks(t, p.socks, target), 1<<20) })
	t.Run("the hub's own proxy", func(t *testing.T) {
		for _, user := range []string{agentID, config.DefaultOrganization + "/" + agentID} {
			c, err := connect(w.info.Clients[0].String(), user, target)
			if err != nil {
				t.Fatal(err)
			}
			swap(t, c, 1<<20)
		}
	})
	t.Run("nothing is said", func(t *testing.T) { swap(t, dial(t, p.forwards[0]), 0) })
}

// TestNoAgent: who asks for an agent that is not there is told so, and what to do.
func TestNoAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil)
	if err := onceBy(p.http, "", target); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"by a proxy":   onceBy(p.http, "attic", target),
		"by the hub's": onceBy(w.info.Clients[0].String(), "attic", target),
	} {
		var a *answer
		if !errors.As(err, &a) || a.status != 503 || !strings.Contains(a.body, "agent: no replica of agent attic is connected") ||
			!strings.Contains(a.body, "check its ID, and that it runs") {
			t.Errorf("%s: %v; want 503 with a hint", name, err)
		}
	}
	var a *answer
	if err := onceBy(w.info.Clients[0].String(), "nobody/"+agentID, target); !errors.As(err, &a) || a.status < 500 && a.status != 404 {
		t.Errorf("another organization: %v", err)
	}
}
