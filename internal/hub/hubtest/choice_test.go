package hubtest_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/wire"
)

// fork is a way to the hub on which pipes take another line than the bus and the API,
// so that one can fail without the other. It tells them by the protocol that a
// connection asks for in its first message.
func (w *world) fork() (url string, pipes *testnet.Link) {
	w.t.Helper()
	pipes = w.link()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	ended := false
	keep := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			_ = c.Close()
			return false
		}
		open[c] = true
		return true
	}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if !keep(c) {
				continue
			}
			wg.Go(func() {
				defer c.Close()
				hello := make([]byte, 16<<10)
				n, err := io.ReadAtLeast(c, hello, 1200) // of one with a post-quantum key share
				if err != nil {
					return
				}
				to := w.config.Listen
				if bytes.Contains(hello[:n], []byte(wire.ALPNPipe)) {
					to = pipes.Addr()
				}
				far, err := net.Dial("tcp", to)
				if err != nil || !keep(far) {
					return
				}
				defer far.Close()
				if _, err := far.Write(hello[:n]); err != nil {
					return
				}
				wg.Go(func() {
					_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{far})
					_ = c.(*net.TCPConn).CloseWrite()
				})
				_, _ = io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{c})
			})
		}
	})
	w.t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		ended = true
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "tls://" + ln.Addr().String(), pipes
}

// opened returns how many streams an agent's process has opened.
func opened(t *testing.T, p *process) (n float64) {
	t.Helper()
	families, err := p.registry.Gatherer().Gather() // has none of them before the first
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "postern_stream_opens_total" {
			n = p.metric(t, f.GetName(), "ok")
		}
	}
	return n
}

// TestReplicaWithoutDataPath drops all that the pipes of one of two replicas send, in
// silence; its bus lives on. No stream fails, it gets none any more, and no client waits
// for it, though the status calls it ready. When the network is whole again, it is used
// again.
func TestReplicaWithoutDataPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	url, pipes := w.fork()
	a := w.agent("a", func(c *config.Agent) { c.ConnectURL, c.Zone = url, "near" })
	b := w.agent("b", nil)
	w.awaitState("a", api.StateReady, patience)
	w.awaitState("b", api.StateReady, patience)
	target := serve(t, echo)
	p := w.proxy(func(c *config.Proxy) { c.Zone = "near" })
	w.awaitPipes("a", "b")
	if err := onceBy(p.http, "", target); err != nil || opened(t, a) == 0 {
		t.Fatalf("the replica of the proxy's zone got no stream (%v)", err)
	}

	pipes.Freeze()
	frozen := time.Now()
	// Until the silence shows, on the pipes that are there and then on new ones, an opener
	// may wait for one of them to be given up; and then none does.
	const calm, waited = 5 * time.Second, 2 * time.Second
	for quick := frozen; time.Since(quick) < calm; time.Sleep(50 * time.Millisecond) {
		begin := time.Now()
		if err := onceBy(p.http, "", target); err != nil {
			t.Errorf("%s after the freeze a stream was not opened: %v", begin.Sub(frozen).Round(time.Millisecond), err)
		}
		if took := time.Since(begin); took > waited {
			t.Logf("%s after the freeze a stream took %s to open", begin.Sub(frozen).Round(time.Millisecond), took.Round(time.Millisecond))
			quick = time.Now()
		}
		if time.Since(frozen) > 2*patience {
			t.Fatal("clients still wait for the replica that has no data path")
		}
	}
	if r := w.replica("a"); r.State != api.StateReady {
		t.Errorf("its bus lives, and the status says %q", r.State)
	}
	before := opened(t, b)
	if err := onceBy(p.http, "", target); err != nil || opened(t, b) != before+1 {
		t.Errorf("a stream went to the replica that has no data path (%v)", err)
	}

	pipes.Thaw()
	had := opened(t, a)
	took := eventually(t, 2*patience, func() error {
		if err := onceBy(p.http, "", target); err != nil {
			t.Error(err)
		}
		if opened(t, a) == had {
			return fmt.Errorf("it gets no streams")
		}
		return nil
	})
	t.Logf("used again %s after the thaw", took.Round(time.Millisecond))
}

// TestGhost starts a replica anew while its former process is frozen, and nobody has
// been told that it is gone: new streams go to the new one at once.
func TestGhost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	l := w.link()
	w.agent("a", func(c *config.Agent) {
		c.ConnectURL, c.DrainTimeout = "tls://"+l.Addr(), 100*time.Millisecond
	})
	target := serve(t, echo)
	p := w.proxy(nil, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	w.awaitPipes("a")

	l.Freeze()
	frozen := time.Now()
	successor := w.agent("a", nil)
	eventually(t, patience, func() error {
		if r := successor.health.Ready(t.Context()); !r.Ready {
			return fmt.Errorf("the successor is not ready: %+v", r)
		}
		if since := w.replica("a").Since; !since.After(frozen) {
			return fmt.Errorf("the status tells of the ghost, of %s", since)
		}
		return nil
	})
	ready := time.Now()
	if err := once(p.forwards[0]); err != nil || opened(t, successor) != 1 {
		t.Errorf("the first stream after that: %v; the successor opened %v", err, opened(t, successor))
	}
	if took := time.Since(ready); took > slack {
		t.Errorf("the first stream took %s", took)
	}
	t.Logf("the successor was ready %s after the freeze, and had a stream %s later", ready.Sub(frozen).Round(time.Millisecond),
		time.Since(ready).Round(time.Millisecond))
	l.Cut() // so that the ghost notices
	l.Thaw()
}

// TestZones: a proxy uses the replicas of its own zone, also when others have less to do,
// and others only when there is none.
func TestZones(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP, c.Zone = "127.0.0.1:0", "south" })
	north := w.agent("n", func(c *config.Agent) { c.Zone = "north" })
	south := w.agent("s", func(c *config.Agent) { c.Zone = "south" })
	w.awaitState("n", api.StateReady, patience)
	w.awaitState("s", api.StateReady, patience)
	target := serve(t, echo)
	p := w.proxy(func(c *config.Proxy) { c.Zone = "north" })
	w.awaitPipes("n", "s")
	const n = 20
	held := hold(t, p, target, n)
	if got := opened(t, north); got != n || opened(t, south) != 0 {
		t.Errorf("a proxy in the north opened %v streams in the north and %v in the south", got, opened(t, south))
	}
	own := w.info.Clients[0].String()
	eventually(t, patience, func() error { // its pool for the agent is made by its first stream
		before := opened(t, south)
		if err := onceBy(own, agentID, target); err != nil {
			return err
		}
		if opened(t, south) == before {
			return fmt.Errorf("a hub in the south uses the north")
		}
		return nil
	})
	for _, c := range held {
		_ = c.Close()
	}
	north.cancel()
	w.awaitState("n", api.StateStopped, patience)
	eventually(t, slack, func() error { return onceBy(p.http, "", target) })
}
