package agent_test

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// value returns the sum of a metric's values whose labels hold all of the given
// values.
func value(t *testing.T, r *observe.Registry, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := r.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			missing := len(labels)
			for _, l := range m.GetLabel() {
				for _, want := range labels {
					if l.GetValue() == want {
						missing--
					}
				}
			}
			if missing == 0 {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestStreamsOfAProxyAreLimited opens as many streams as one proxy may, and one
// more; another proxy is not touched, and whoever ends makes room.
func TestStreamsOfAProxyAreLimited(t *testing.T) {
	w := newWorld(t)
	target := echo(t)
	r := observe.NewRegistry("agent", "test")
	w.agent(r, func(c *config.Agent) {
		c.Allow, c.Limit = []string{target}, []string{"proxy.streams=2", "agent.opens-per-second=unlimited"}
	})
	greedy, modest := w.proxy("greedy"), w.proxy("modest")
	var held []proxy.Stream
	for range 2 {
		s, err := w.open(greedy, target)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, s)
	}
	for range 20 {
		_, err := w.open(greedy, target)
		f := wire.AsFailure(err, wire.LegUnknown)
		if err == nil || f.Code != wire.CodeOverloaded || f.Leg != wire.LegAgent ||
			!strings.Contains(f.Text, "proxy greedy of organization default has reached its limit of 2 streams at once") ||
			!strings.Contains(f.Hint, "--limit proxy.streams=N") {
			t.Fatalf("a third stream: %v", err)
		}
	}
	s, err := w.open(modest, target)
	if err != nil {
		t.Fatalf("another proxy: %v", err)
	}
	_ = s.Close()
	_ = held[0].Close()
	var again proxy.Stream
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if again, err = w.open(greedy, target); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one has ended: %v", err)
		}
	}
	_, _ = held[1].Close(), again.Close()
	for deadline := time.Now().Add(patience); value(t, r, "postern_limit_used", "proxy", "streams") != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("streams are still counted")
		}
	}
	if n := value(t, r, "postern_limit_refusals_total", "proxy", "streams"); n < 20 {
		t.Errorf("%v refusals are told", n)
	}
}

// TestManyOpensAtOnceAreCountedOut runs opens, refusals and resets at once.
func TestManyOpensAtOnceAreCountedOut(t *testing.T) {
	w := newWorld(t)
	target := echo(t)
	r := observe.NewRegistry("agent", "test")
	w.agent(r, func(c *config.Agent) { c.Allow, c.Limit = []string{target}, []string{"agent.streams=4"} })
	d := w.proxy("near")
	if s, err := w.open(d, target); err == nil {
		_ = s.Close()
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 25 {
				s, err := w.open(d, target)
				if err != nil {
					continue
				}
				if i%2 == 0 {
					near, far := net.Pipe()
					_ = far.Close()
					_, _ = s.Carry(near, nil)
				}
				_ = s.Close()
			}
		})
	}
	all.Wait()
	for deadline := time.Now().Add(patience); value(t, r, "postern_limit_used") != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("streams are still counted")
		}
	}
}
