package hubtest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// running wants a process that was asked to end to run on for a stream, and to say
// that it takes no more.
func running(t *testing.T, p *process, c net.Conn) {
	t.Helper()
	eventually(t, slack, func() error {
		if r := p.health.Ready(t.Context()); r.Ready || !r.Draining {
			return fmt.Errorf("it says of itself: %+v", r)
		}
		return nil
	})
	for range 5 {
		select {
		case <-p.done:
			t.Fatalf("it ended while a stream ran: %v", p.err)
		case <-time.After(60 * time.Millisecond):
		}
		if err := ping(c); err != nil {
			t.Fatalf("the stream that runs: %v", err)
		}
	}
}

// endsSoon wants a process to end once nothing holds it.
func endsSoon(t *testing.T, p *process) {
	t.Helper()
	begin := time.Now()
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*time.Second+slack {
		t.Errorf("it took %s to end with nothing to do", took)
	}
}

// TestAgentDrains asks an agent to end while a stream runs: the stream goes on to its
// end; the status says so; new ones go to another replica, or are refused when there
// is none.
func TestAgentDrains(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := w.agent("a", func(c *config.Agent) { c.DrainTimeout = patience })
	target := serve(t, echo)
	p := w.proxy(nil)
	eventually(t, patience, func() error { return onceBy(p.http, "", target) })
	held := hold(t, p, target, 1)[0]
	a.cancel()
	w.awaitState("a", api.StateDraining, 2*time.Second+slack)
	running(t, a, held)
	var no *answer
	if err := onceBy(p.http, "", target); !errors.As(err, &no) || no.status != 503 {
		t.Errorf("a new stream: %v; want 503", err)
	}
	w.agent("b", nil)
	eventually(t, patience, func() error { return onceBy(p.http, "", target) })
	running(t, a, held)
	_ = held.Close()
	endsSoon(t, a)
	w.awaitState("a", api.StateStopped, 2*time.Second+slack)
}

// TestDrainWithKeptStreams asks one of two replicas to end while a client keeps an HTTP
// connection for its next request: that does not hold the replica, and no request fails.
func TestDrainWithKeptStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := w.agent("a", func(c *config.Agent) { c.DrainTimeout = patience })
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "ok") }))
	t.Cleanup(web.Close)
	p := w.proxy(nil)
	way := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: p.http})}
	t.Cleanup(way.CloseIdleConnections)
	get := func() error {
		res, err := (&http.Client{Transport: way}).Get(web.URL)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "ok" {
			return fmt.Errorf("%d %s, %w", res.StatusCode, body, err)
		}
		return nil
	}
	eventually(t, patience, get)
	if n := a.metric(t, "postern_streams_open"); n != 1 {
		t.Fatalf("%v streams are open; want the one that is kept", n)
	}
	w.agent("b", nil)
	w.awaitPipes("b")

	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if err := get(); err != nil {
					t.Errorf("a request: %v", err)
				}
				select {
				case <-end:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	endsSoon(t, a)
	close(end)
	wg.Wait()
}

// TestDrainEnds: a stream that does not end is cut when the drain time is over, with
// a reset.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a := w.agent("a", func(c *config.Agent) { c.DrainTimeout = 300 * time.Millisecond })
	target := serve(t, echo)
	p := w.proxy(nil)
	eventually(t, patience, func() error { return onceBy(p.http, "", target) })
	held := hold(t, p, target, 1)[0]
	endsSoon(t, a)
	if err := cut(held, patience); err != nil {
		t.Errorf("the stream: %v", err)
	}
}

// TestProxyDrains asks a proxy to end while a stream runs.
func TestProxyDrains(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(func(c *config.Proxy) { c.DrainTimeout = patience })
	eventually(t, patience, func() error { return onceBy(p.http, "", target) })
	held := hold(t, p, target, 1)[0]
	p.cancel()
	running(t, p.process, held)
	if err := onceBy(p.http, "", target); err == nil {
		t.Error("a new stream was opened")
	}
	_ = held.Close()
	endsSoon(t, p.process)
}

// TestHubDrains asks a hub to end while a stream runs through its own proxy, and
// one through another proxy over which bytes pass.
func TestHubDrains(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP, c.DrainTimeout = "127.0.0.1:0", patience })
	w.agent("a", nil)
	target := serve(t, echo)
	own := w.info.Clients[0].String()
	eventually(t, patience, func() error { return onceBy(own, agentID, target) })
	held, err := connect(own, agentID, target)
	if err != nil {
		t.Fatal(err)
	}
	w.hub.cancel()
	running(t, w.hub, held)
	if err := onceBy(own, agentID, target); err == nil {
		t.Error("a new stream was opened")
	}
	_ = held.Close()
	endsSoon(t, w.hub)
}
