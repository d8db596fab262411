package bus_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// raw connects as a party with nothing but NATS, as a hostile one might.
func (p *party) raw() (*nats.Conn, <-chan error) {
	p.hub.t.Helper()
	errs := make(chan error, 100)
	kp, err := nkeys.FromSeed(p.seed)
	if err != nil {
		p.hub.t.Fatal(err)
	}
	nc, err := nats.Connect("", nats.InProcessServer(inProcess{p.hub}), nats.NoReconnect(), nats.CustomInboxPrefix("_INBOX_"+p.public),
		nats.UserJWT(func() (string, error) { return *p.token.Load(), nil }, kp.Sign),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err }))
	if err != nil {
		p.hub.t.Fatal(err)
	}
	p.hub.t.Cleanup(nc.Close)
	return nc, errs
}

type inProcess struct{ h *hub }

func (i inProcess) InProcessConn() (net.Conn, error) { return i.h.dial(context.Background()) }

func TestPartiesKeepToTheirOwn(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour)
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour)
	victim := h.party("acme", identity.RoleProxy, "victim", "1", time.Hour)
	for _, c := range []struct {
		who           *party
		publish, hear []string
	}{
		{agent, []string{"revoked.ask.a", "revoked.ask.p", "audit.agent.a.2", "audit.agent.b.1", "orders.agent.a", "orders.agent.a.1", "orders.agent.b", "orders.ask.a.2", "orders.ask.b.1", "explain.a.1", "presence.agent.a.2", "presence.agent.b.1", "presence.ask", "meet.a.1", "meet.b.1", "_INBOX_" + victim.public + ".x", "other"},
			[]string{"revoked.ask.*", "revoked.ask.p", "audit.agent.>", "audit.agent.a.1", "orders.>", "orders.agent.b", "orders.agent.a.2", "orders.agent.*", "orders.ask.a.1", "explain.a.2", "explain.>", ">", "meet.>", "meet.b.1", "meet.a.2", "meet.a.*", "presence.agent.>", "presence.>", "_INBOX_>", "_INBOX_" + victim.public + ".>", "$SYS.>"}},
		{proxy, []string{"audit.agent.a.1", "orders.agent.a", "orders.ask.a.1", "explain.a.1", "presence.agent.a.1", "revoked.ask.victim", "revoked.ask.p.1", "_INBOX_" + victim.public + ".x", "$JS.API.INFO", "$SYS.REQ.SERVER.PING", "other"},
			[]string{"audit.agent.>", "orders.agent.a", "orders.ask.a.1", "orders.>", "explain.a.1", "revoked.ask.p", "revoked.ask.victim", "revoked.>", ">", "meet.>", "meet.a.1", "presence.ask", "_INBOX_" + victim.public + ".>", "_INBOX_>", "$SYS.>"}},
	} {
		nc, errs := c.who.raw()
		denied := func(what string) {
			t.Helper()
			if err := nc.Flush(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			select {
			case err := <-errs:
				if !errors.Is(err, nats.ErrPermissionViolation) {
					t.Errorf("%s: %v", what, err)
				}
			case <-time.After(patience):
				t.Errorf("%s may %s", c.who.role, what)
			}
		}
		for _, s := range c.publish {
			if err := nc.Publish(s, []byte("x")); err != nil {
				t.Fatal(err)
			}
			denied("publish to " + s)
		}
		for _, s := range c.hear {
			if _, err := nc.SubscribeSync(s); err != nil {
				t.Fatal(err)
			}
			denied("subscribe to " + s)
			if _, err := nc.QueueSubscribeSync(s, "meet"); err != nil {
				t.Fatal(err)
			}
			denied("subscribe in a group to " + s)
		}
	}
}

// TestReplyIsNoPresence shows that a proxy cannot make an agent its mouthpiece:
// an answer may go where only agents may speak, but it says nothing there.
func TestReplyIsNoPresence(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	victim := h.party("acme", identity.RoleProxy, "victim", "1", time.Hour).connect()
	d, err := victim.NewDirectory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{}, 1)
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { served <- struct{}{}; return nil })()
	if _, err := agent.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc, _ := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).raw()
	ticket, _ := wire.NewTicket("").MarshalText()
	body := `{"tickets":["` + string(ticket) + `"],"expires_ms":1000}`
	if err := nc.PublishRequest("meet.a.1", "presence.agent.b.9", []byte(body)); err != nil {
		t.Fatal(err)
	}
	<-served
	if _, err := agent.RTT(t.Context()); err != nil { // what it answered is with the server
		t.Fatal(err)
	}
	if _, err := victim.RTT(t.Context()); err != nil { // and has gone out
		t.Fatal(err)
	}
	if all := d.All(); len(all) != 0 {
		t.Errorf("a forged replica shows: %+v", all)
	}
}

func TestMalformedRequests(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { t.Error("served"); return nil })()
	if _, err := agent.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc, _ := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).raw()
	for _, body := range []string{"", "{}", "garbage", strings.Repeat("[", 1000), strings.Repeat("x", 40<<10)} {
		m, err := nc.Request("meet.a.1", []byte(body), patience)
		if err != nil || !strings.Contains(string(m.Data), `"code":2`) {
			t.Errorf("%.20q: %v", body, err)
		}
	}
}

func TestPayloadLimit(t *testing.T) {
	h := newHub(t)
	nc, _ := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).raw()
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	err := nc.Publish("meet.a.1", make([]byte, bus.MaxPayload+1))
	if errors.Is(err, nats.ErrMaxPayload) && nc.MaxPayload() == bus.MaxPayload {
		return // the server was quick to tell the user's own limit, which the client keeps
	}
	_ = nc.Flush()
	select {
	case <-closed: // the server hung up
	case <-time.After(patience):
		t.Error("too large a message is taken")
	}
}

// TestOverTLS goes the whole way of a party: TCP, the outer TLS with ALPN, and
// then the server in the same process.
func TestOverTLS(t *testing.T) {
	h := newHub(t)
	ca, err := identity.NewAuthority("test.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueServer("one", nil, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{wire.ALPNBus}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = h.now.Load().Serve(ctx, conn) })
		}
	})
	defer func() { cancel(); ln.Close(); wg.Wait() }()
	d, err := uplink.New(uplink.Config{ConnectURL: "tls://" + ln.Addr().String(), CAPin: ca.Pin(), Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	connect := func(role identity.Role, name string) *bus.Conn {
		t.Helper()
		o := h.party("acme", role, name, "1", time.Hour).options()
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			conn, err := d.DialTLS(ctx, wire.ALPNBus, nil)
			if err != nil {
				return nil, err
			}
			return conn, nil
		}
		c, err := bus.Connect(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	agent, proxy := connect(identity.RoleAgent, "a"), connect(identity.RoleProxy, "p")
	defer agent.Close()
	defer proxy.Close()
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { return nil })()
	meet(t, proxy, "a", "1")
	agent.Refresh()
	meet(t, proxy, "a", "1")
	if rtt, err := proxy.RTT(t.Context()); err != nil || rtt <= 0 {
		t.Errorf("round trip %s, %v", rtt, err)
	}
}
