package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// isReset says whether a connection ended with a reset rather than an end.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// cutWithin reads from a connection until it breaks, and complains if it ended
// cleanly, or not at all within the limit.
func cutWithin(conn net.Conn, limit time.Duration) error {
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, struct{ io.Reader }{conn})
	switch {
	case err == nil:
		return errors.New("the stream ended as if all had come")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the stream was not cut within %v", limit)
	case !isReset(err):
		return fmt.Errorf("the stream broke with %w; want a reset", err)
	}
	return nil
}

// floods opens downloads that go on for ever and have begun.
func floods(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		conn := harness.Dial(t, addr)
		if _, err := io.ReadFull(conn, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	return conns
}

// TestAgentIsKilled kills the agent while streams run: they are reset, new ones
// are refused with a reason, and all works again once an agent is back.
func TestAgentIsKilled(t *testing.T) {
	flood, echo := harness.Serve(t, harness.Flood), harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, flood, echo)
	if err := harness.PingEcho(forwards[1], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	hub, _, proxy := s.watched()
	noLeak := harness.LeakCheck(t, 12, hub, proxy)

	for round := range 3 {
		conns := floods(t, forwards[0], 10)
		s.agent.Kill()
		for _, conn := range conns {
			if err := cutWithin(conn, 10*time.Second); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		curl := harness.Need(t, "curl", "curl")
		stdout, stderr, _ := harness.Try(t, 30*time.Second, nil, curl, "-sS", "-o", "/dev/null", "-w", "%{http_connect}",
			"--proxytunnel", "-x", "http://"+s.proxy.HTTP, "http://"+echo)
		if stdout != "503" && stdout != "504" {
			t.Errorf("round %d: CONNECT without an agent: %s %s; want 503, or 504 while its death is not known", round, stdout, stderr)
		}
		s.agent.Restart(t)
		took := harness.Eventually(t, 15*time.Second, "streams open again", func() error {
			return harness.PingEcho(forwards[1], 5*time.Second)
		})
		t.Logf("round %d: a stream opened %v after the agent was back", round, took.Round(time.Millisecond))
	}
	noLeak()
}

// TestReplicaIsKilled kills one of two replicas while both serve streams: those
// of the other go on, and new ones open at once.
func TestReplicaIsKilled(t *testing.T) {
	t.Parallel()
	flood, echo := harness.Serve(t, harness.Flood), harness.Serve(t, harness.Echo)
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	allow := rules([]string{flood, echo})
	one := hub.StartAgent(t, harness.PartySpec{Replica: "one", Allow: allow})
	two := hub.StartAgent(t, harness.PartySpec{Replica: "two", Allow: allow})
	args, forwards := forwardArgs(t, "edge", []string{flood, echo})
	proxy := hub.StartProxy(t, harness.PartySpec{Args: args})
	noLeak := harness.LeakCheck(t, 8, harness.Watched{Process: hub.Process, Metrics: hub.Metrics},
		harness.Watched{Process: proxy.Process, Metrics: proxy.Metrics})

	conns := floods(t, forwards[0], 12)
	one.Kill()
	cut, alive := 0, 0
	for _, conn := range conns {
		// A stream of the other replica goes on well past what buffers held.
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := io.CopyN(io.Discard, struct{ io.Reader }{conn}, 64<<20)
		switch {
		case err == nil:
			alive++
		case isReset(err):
			cut++
		default:
			t.Errorf("a stream broke with %v; want it to go on, or a reset", err)
		}
	}
	if cut == 0 || alive == 0 {
		t.Errorf("%d streams were cut and %d went on; want some of both, as two replicas share the work", cut, alive)
	}
	for i := range 50 {
		if err := harness.PingEcho(forwards[1], 5*time.Second); err != nil {
			t.Fatalf("stream %d after the kill: %v", i, err)
		}
	}
	for _, conn := range conns {
		conn.Close()
	}
	one.Restart(t)
	noLeak()
	checkLogs(t, hub, hub.Process, one.Process, two.Process, proxy.Process)
}

// TestHubIsKilled kills the hub, and with it the relay, while streams run: they
// are reset, and agent and proxy come back by themselves when it does.
func TestHubIsKilled(t *testing.T) {
	flood, echo := harness.Serve(t, harness.Flood), harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, flood, echo)
	if err := harness.PingEcho(forwards[1], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	_, agent, proxy := s.watched()
	noLeak := harness.LeakCheck(t, 8, agent, proxy)

	for round := range 2 {
		conns := floods(t, forwards[0], 10)
		s.hub.Kill()
		for _, conn := range conns {
			if err := cutWithin(conn, 10*time.Second); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		// While it is away, streams are refused soon and do not hang.
		begin := time.Now()
		if err := harness.PingEcho(forwards[1], 40*time.Second); err == nil {
			t.Errorf("round %d: a stream opened without a relay", round)
		} else if time.Since(begin) > 35*time.Second {
			t.Errorf("round %d: it took %v to refuse a stream: %v", round, time.Since(begin), err)
		}
		s.hub.Start(t)
		took := harness.Eventually(t, 30*time.Second, "streams open again", func() error {
			return harness.PingEcho(forwards[1], 5*time.Second)
		})
		t.Logf("round %d: a stream opened %v after the hub was back", round, took.Round(time.Millisecond))
	}
	noLeak()
}

// TestAgentFreezes stops the agent's process without ending it, as a machine
// that hangs does: no connection is closed, only silence tells.
func TestAgentFreezes(t *testing.T) {
	t.Parallel()
	flood, echo := harness.Serve(t, harness.Flood), harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, flood, echo)
	conns := floods(t, forwards[0], 3)
	if err := s.agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := func() { _ = s.agent.Signal(syscall.SIGCONT) }
	t.Cleanup(thaw)
	for _, conn := range conns {
		if err := cutWithin(conn, 20*time.Second); err != nil {
			t.Error(err)
		}
	}
	thaw()
	harness.Eventually(t, 20*time.Second, "streams open again", func() error {
		return harness.PingEcho(forwards[1], 5*time.Second)
	})
}

// TestStopLetsStreamsFinish asks an agent to end while a stream runs: new
// streams go elsewhere, the running one ends by itself.
func TestStopLetsStreamsFinish(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	conn := harness.Dial(t, forwards[0])
	ping := func() error {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, "still here\n"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, len("still here\n")))
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.agent.Stop(20 * time.Second) }()
	harness.Eventually(t, 10*time.Second, "new streams are refused", func() error {
		if harness.PingEcho(forwards[0], 2*time.Second) == nil {
			return errors.New("one opened")
		}
		return nil
	})
	if err := ping(); err != nil {
		t.Errorf("the stream that ran when the agent was asked to stop: %v", err)
	}
	conn.Close()
	if err := <-stopped; err != nil {
		t.Errorf("the agent did not end cleanly after its last stream: %v", err)
	}
}
