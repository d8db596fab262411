package hubtest_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/testnet"
)

// ready waits until a process tells of itself that it is ready, or that it is not.
func (p *process) ready(t *testing.T, want bool, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		if r := p.health.Ready(t.Context()); r.Ready != want {
			return fmt.Errorf("ready: %+v", r)
		}
		return nil
	})
}

// TestReadiness: hub, agent and proxy are ready when bytes pass, and are not when they
// do not.
func TestReadiness(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	l := w.link()
	w.hub.ready(t, true, patience)
	a := w.agent("a", func(c *config.Agent) { c.ConnectURL = "tls://" + l.Addr() })
	p := w.proxy(nil)
	a.ready(t, true, patience)
	p.ready(t, true, patience)

	l.Freeze()
	a.ready(t, false, patience)
	p.ready(t, false, patience)
	l.Thaw()
	a.ready(t, true, patience)
	p.ready(t, true, patience)

	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
	a.ready(t, false, patience)
	p.ready(t, false, patience)
	w.startHub()
	a.ready(t, true, patience)
	p.ready(t, true, patience)
}

// TestPartiesWaitForTheirHub starts agent and proxy before there is a hub.
func TestPartiesWaitForTheirHub(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	target := serve(t, echo)
	w.agent("a", nil)
	var wg sync.WaitGroup
	var p *client
	wg.Go(func() { p = w.proxy(nil, target) }) // it listens when it has been at the hub
	time.Sleep(200 * time.Millisecond)
	w.startHub()
	wg.Wait()
	if t.Failed() {
		return
	}
	eventually(t, patience, func() error { return once(p.forwards[0]) })
}

// TestOrganizationDeleted: with an organization go its streams and its agents.
func TestOrganizationDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	token := w.robot("acme", "machines")
	a := w.agent("a", func(c *config.Agent) {
		c.Organization, c.TokenFile, c.DrainTimeout = "acme", token, 100*time.Millisecond
	})
	target := serve(t, echo)
	own := w.info.Clients[0].String()
	eventually(t, patience, func() error { return onceBy(own, "acme/"+agentID, target) })
	held, err := connect(own, "acme/"+agentID, target)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := w.admin.DeleteOrganization(t.Context(), "acme", true); err != nil {
		t.Fatal(err)
	}
	if err := cut(held, patience); err != nil {
		t.Errorf("its stream: %v", err)
	}
	var no *answer
	if err := onceBy(own, "acme/"+agentID, target); !errors.As(err, &no) {
		t.Errorf("a new stream: %v; want an answer that tells why not", err)
	}
	a.cancel()
	_ = a.forget() // whether it has noticed by now is its own affair
}

// TestTokensAsPasswords has proxies that want a robot token of their organization.
func TestTokensAsPasswords(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP, c.RequireToken = "127.0.0.1:0", true })
	w.agent("a", nil)
	p := w.proxy(func(c *config.Proxy) { c.RequireToken = true })
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	secret := func(file string) string {
		text, _, err := (&enroll.RobotToken{File: file}).SubjectToken(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	target := serve(t, echo)
	good, bad := secret(w.token), secret(w.robot("acme", "machines"))
	for name, addr := range map[string]string{"the hub's own": w.info.Clients[0].String(), "a proxy": p.http} {
		eventually(t, patience, func() error { return onceBy(addr, agentID+":"+good, target) })
		for what, password := range map[string]string{
			"no password": "", "another organization's token": bad, "nonsense": "abc", "the administrator's token": w.admin.Token,
		} {
			var no *answer
			if err := onceBy(addr, agentID+":"+password, target); !errors.As(err, &no) || no.status != 407 {
				t.Errorf("%s, with %s: %v; want 407", name, what, err)
			}
		}
	}
	// Both know whose the token is, the one by the certificate that it was given for it.
	for _, part := range []string{"hub", "proxy"} {
		eventually(t, patience, func() error {
			for line := range strings.Lines(w.book.String()) {
				if strings.Contains(line, " part="+part+" ") && strings.Contains(line, "identity=robot:machines") {
					return nil
				}
			}
			return errors.New(part + " does not tell for whom its streams are")
		})
	}
}

// TestRevokedPassword deletes a robot whose token is somebody's password at the hub's
// own proxy: its stream is cut, and no other is opened.
func TestRevokedPassword(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP, c.RequireToken = "127.0.0.1:0", true })
	w.agent("a", nil)
	target, own := serve(t, echo), w.info.Clients[0].String()
	secret, _, err := (&enroll.RobotToken{File: w.robot("default", "guest")}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	eventually(t, patience, func() (err error) { c, err = connect(own, agentID+":"+secret, target); return err })
	defer c.Close()
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := w.admin.DeleteRobot(t.Context(), "default", "guest"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(begin.Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stream ended with %v, not with a reset", err)
	}
	if took := time.Since(begin); took > 5*time.Second+slack {
		t.Errorf("it was cut after %s", took)
	} else {
		t.Logf("cut after %s", took)
	}
	took := eventually(t, patience, func() error { return want(onceBy(own, agentID+":"+secret, target), 407) })
	if took > 5*time.Second+slack {
		t.Errorf("the password was taken for %s more", took)
	}
}

// TestRevokedPasswordElsewhere revokes tokens that are passwords at a proxy of its own:
// streams that were opened with them are cut, and others are not.
func TestRevokedPasswordElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", nil)
	p := w.proxy(func(c *config.Proxy) { c.RequireToken = true })
	target := serve(t, echo)
	open := func(robot string) (c net.Conn, login string) {
		t.Helper()
		secret, _, err := (&enroll.RobotToken{File: w.robot("default", robot)}).SubjectToken(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		login = agentID + ":" + secret
		eventually(t, patience, func() (err error) { c, err = connect(p.http, login, target); return err })
		t.Cleanup(func() { _ = c.Close() })
		if err := ping(c); err != nil {
			t.Fatal(err)
		}
		return c, login
	}
	kept, _ := open("keeper")
	for what, revoke := range map[string]func(robot string) error{
		"token": func(robot string) error { return w.admin.DeleteRobotToken(t.Context(), "default", robot, "first") },
		"robot": func(robot string) error { return w.admin.DeleteRobot(t.Context(), "default", robot) },
	} {
		c, login := open("guest-" + what)
		begin := time.Now()
		if err := revoke("guest-" + what); err != nil {
			t.Fatal(err)
		}
		if err := cut(c, patience); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		took := time.Since(begin)
		if took > 5*time.Second+slack {
			t.Errorf("%s: cut after %s", what, took)
		}
		t.Logf("%s: cut after %s", what, took.Round(time.Millisecond))
		eventually(t, patience, func() error { return want(onceBy(p.http, login, target), 407) })
		if took := time.Since(begin); took > 5*time.Second+slack {
			t.Errorf("%s: the password was taken for %s more", what, took)
		}
	}
	if err := ping(kept); err != nil {
		t.Errorf("a stream of somebody else: %v", err)
	}
}

// TestCountersComeBack opens hundreds of streams that end in all kinds of ways, and
// looks whether everything that counts is at zero again.
func TestCountersComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.HTTP = "127.0.0.1:0" })
	target := serve(t, echo)
	a := w.agent("a", func(c *config.Agent) { c.Allow = []string{"tcp:127.0.0.1:*", "tcp:nowhere.invalid:*"} })
	p := w.proxy(nil, target)
	own := w.info.Clients[0].String()
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	eventually(t, patience, func() error { return onceBy(own, agentID, target) })
	nobody := testnet.FreeAddr(t)
	ways := []func() error{
		func() error { return once(p.forwards[0]) },
		func() error { return onceBy(p.http, "", target) },
		func() error { return onceBy(own, agentID, target) },
		func() error { return want(onceBy(p.http, "", nobody), 502) },
		func() error { return want(onceBy(p.http, "", "192.0.2.1:80"), 403) },
		func() error { return want(onceBy(own, agentID, "nowhere.invalid:80"), 502) },
		func() error { // a client that resets
			c, err := connect(p.http, "", target)
			if err != nil {
				return err
			}
			err = ping(c)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			return err
		},
		func() error { // a client that leaves before the stream is open
			c, err := net.Dial("tcp", p.http)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", target)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			return err
		},
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 25 {
				if err := ways[(i+j)%len(ways)](); err != nil {
					t.Errorf("way %d: %v", (i+j)%len(ways), err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, patience, func() error {
		for name, one := range map[string]watched{"agent": a.watched, "proxy": p.watched, "hub": w.hub.watched} {
			if n := one.metric(t, "postern_streams_open"); n != 0 {
				return fmt.Errorf("%s counts %v open streams", name, n)
			}
			if n := one.metric(t, "postern_pipes", "busy"); n != 0 {
				return fmt.Errorf("%s counts %v busy pipes", name, n)
			}
		}
		if r := w.replica("a"); r.State != api.StateReady || r.Streams != 0 {
			return fmt.Errorf("the status says %+v", r)
		}
		return nil
	})
	for name, one := range map[string]watched{"proxy": p.watched, "hub": w.hub.watched} {
		if good, all := one.metric(t, "postern_pipe_joins_total", "ok"), one.metric(t, "postern_pipe_joins_total"); good != all {
			t.Errorf("%s: %v of %v joins worked", name, good, all)
		}
	}
}

// want says whether an answer is the one with that status.
func want(err error, status int) error {
	var a *answer
	if errors.As(err, &a) && a.status == status {
		return nil
	}
	return fmt.Errorf("%w; want %d", err, status)
}
