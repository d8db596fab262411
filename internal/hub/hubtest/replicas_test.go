package hubtest_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// awaitState waits until the hub tells a replica's state.
func (w *world) awaitState(name, state string, limit time.Duration) time.Duration {
	w.t.Helper()
	return eventually(w.t, limit, func() error {
		if r := w.replica(name); r.State != state {
			return fmt.Errorf("replica %s is %q; want %s", name, r.State, state)
		}
		return nil
	})
}

// awaitPipes waits until replicas have pipes to a proxy, which has then heard of them.
func (w *world) awaitPipes(names ...string) {
	w.t.Helper()
	eventually(w.t, patience, func() error { // they tell their numbers every three seconds
		for _, name := range names {
			if w.replica(name).Pipes == 0 {
				return fmt.Errorf("replica %s has no pipes", name)
			}
		}
		return nil
	})
}

// hold opens n streams to an echo and keeps them.
func hold(t *testing.T, p *client, target string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			c, err := connect(p.http, "", target)
			if err == nil {
				conns[i] = c
				err = ping(c)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return conns
}

func TestReplicasShareTheWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", nil)
	w.agent("b", nil)
	w.awaitState("a", api.StateReady, patience)
	w.awaitState("b", api.StateReady, patience)
	target := serve(t, echo)
	p := w.proxy(nil)
	w.awaitPipes("a", "b")
	const n = 40
	hold(t, p, target, n)
	eventually(t, patience, func() error { // replicas tell their numbers every three seconds
		a, b := w.replica("a").Streams, w.replica("b").Streams
		if a+b != n || min(a, b) < n/4 {
			return fmt.Errorf("replica a has %d streams and b %d, of %d", a, b, n)
		}
		return nil
	})
}

// TestReplicaStops stops one of two replicas while streams come and go: none fails,
// and the status tells of it within two seconds.
func TestReplicaStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := w.agent("a", nil)
	w.agent("b", nil)
	w.awaitState("a", api.StateReady, patience)
	w.awaitState("b", api.StateReady, patience)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	w.awaitPipes("a", "b")

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				var err error
				if i%2 == 0 {
					err = once(p.forwards[0])
				} else {
					err = onceBy(p.http, "", target)
				}
				if err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // streams are under way
	a.cancel()
	took := w.awaitState("a", api.StateStopped, patience)
	if took > 2*time.Second+slack {
		t.Errorf("the status told of it after %s", took)
	}
	t.Logf("stopped in the status after %s", took.Round(time.Millisecond))
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	if err := a.stop(); err != nil {
		t.Error(err)
	}
}

// TestReplicaVanishes freezes the network of one of two replicas: no connection is
// closed, only silence tells. Its streams are reset and the status says so, both in
// ten seconds; new streams go to the other replica meanwhile; and it is back by itself.
func TestReplicaVanishes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	l := w.link()
	w.agent("a", func(c *config.Agent) { c.ConnectURL = "tls://" + l.Addr() })
	w.agent("b", nil)
	w.awaitState("a", api.StateReady, patience)
	w.awaitState("b", api.StateReady, patience)
	target := serve(t, echo)
	p := w.proxy(nil)
	w.awaitPipes("a", "b")
	conns := hold(t, p, target, 20)

	l.Freeze()
	frozen := time.Now()
	var mu sync.Mutex
	lost, alive, slowest := 0, 0, time.Duration(0)
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			err := cut(c, 10*time.Second+slack)
			took := time.Since(frozen)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				lost++
				slowest = max(slowest, took)
			case errors.Is(err, os.ErrDeadlineExceeded):
				alive++
				if err := ping(c); err != nil {
					t.Errorf("a stream of the other replica: %v", err)
				}
			default:
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		if took := w.awaitState("a", api.StateLost, patience); took > 10*time.Second+slack {
			t.Errorf("the status told of it after %s", took)
		} else {
			t.Logf("lost in the status after %s", took.Round(time.Millisecond))
		}
	})
	stop := make(chan struct{})
	var longest time.Duration
	opened := 0
	var openers sync.WaitGroup
	for range 2 {
		openers.Go(func() {
			for {
				begin := time.Now()
				if err := onceBy(p.http, "", target); err != nil {
					t.Errorf("%s after the freeze a stream was not opened: %v", begin.Sub(frozen).Round(time.Millisecond), err)
				}
				mu.Lock()
				opened++
				longest = max(longest, time.Since(begin))
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	openers.Wait()
	t.Logf("%d streams were cut, the last after %s; %d live on; %d were opened meanwhile, the slowest in %s", lost, slowest.Round(time.Millisecond), alive,
		opened, longest.Round(time.Millisecond))
	if lost == 0 || alive == 0 {
		t.Errorf("%d streams were cut and %d live on; want some of both", lost, alive)
	}
	if longest > 10*time.Second+slack {
		t.Errorf("opening a stream took %s", longest)
	}

	l.Thaw()
	took := w.awaitState("a", api.StateReady, patience)
	t.Logf("back %s after the thaw", took.Round(time.Millisecond))
}
