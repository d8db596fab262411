package bus_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// patience is how long a test waits for what has to happen.
const patience = 15 * time.Second

// hub is an embedded server with two organizations, that can be restarted.
type hub struct {
	t     *testing.T
	conf  embedded.Config
	seeds []byte
	orgs  map[string][]byte
	now   atomic.Pointer[embedded.Server]
	ln    net.Listener // the one port, without its TLS
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{t: t, orgs: map[string][]byte{}}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	h.conf = embedded.Config{Dir: filepath.Join(t.TempDir(), "bus"), EncryptionKey: key, TrustDomain: "test.example", Node: "one"}
	var err error
	if h.seeds, err = embedded.NewSeeds(); err != nil {
		t.Fatal(err)
	}
	for _, org := range []string{"acme", "other"} {
		if h.orgs[org], err = embedded.NewAccountSeed(); err != nil {
			t.Fatal(err)
		}
	}
	if h.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	h.start()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := h.ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if s := h.now.Load(); s != nil {
					_ = s.Serve(ctx, conn)
				}
			})
		}
	})
	t.Cleanup(func() { h.stop(); cancel(); h.ln.Close(); wg.Wait() })
	return h
}

func (h *hub) start() {
	h.t.Helper()
	s, err := embedded.Start(h.conf, h.seeds)
	if err != nil {
		h.t.Fatal(err)
	}
	for org, seed := range h.orgs {
		if err := s.EnsureAccount(org, seed); err != nil {
			h.t.Fatal(err)
		}
	}
	h.now.Store(s)
}

func (h *hub) stop() {
	if s := h.now.Swap(nil); s != nil {
		s.Shutdown()
	}
}

func (h *hub) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", h.ln.Addr().String())
}

// party is a member of an organization with a key and a current token.
type party struct {
	hub                *hub
	org, name, replica string
	role               identity.Role
	public             string
	seed               []byte
	token              atomic.Pointer[string]
	states             chan error // nil for connected
}

func (h *hub) party(org string, role identity.Role, name, replica string, ttl time.Duration) *party {
	h.t.Helper()
	public, seed, err := bus.NewUserKey()
	if err != nil {
		h.t.Fatal(err)
	}
	p := &party{hub: h, org: org, role: role, name: name, replica: replica, public: public, seed: seed, states: make(chan error, 1000)}
	p.renew(ttl)
	return p
}

func (p *party) renew(ttl time.Duration) {
	p.hub.t.Helper()
	token, err := p.hub.now.Load().MintUser(p.org, p.public, p.role, p.name, p.replica, ttl)
	if err != nil {
		p.hub.t.Fatal(err)
	}
	p.token.Store(&token)
}

func (p *party) options() bus.Options {
	return bus.Options{
		Dial: p.hub.dial, Token: func() string { return *p.token.Load() }, Seed: func() []byte { return p.seed }, Name: p.name,
		OnState: func(connected bool, err error) {
			if connected != (err == nil) {
				p.hub.t.Errorf("state %v with error %v", connected, err)
			}
			p.states <- err
		},
	}
}

func (p *party) connect() *bus.Conn {
	p.hub.t.Helper()
	ctx, cancel := context.WithTimeout(p.hub.t.Context(), patience)
	defer cancel()
	c, err := bus.Connect(ctx, p.options())
	if err != nil {
		p.hub.t.Fatal(err)
	}
	p.hub.t.Cleanup(c.Close)
	return c
}

// awaitState waits until the connection's state is as wanted.
func (p *party) awaitState(want func(error) bool) {
	p.hub.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case err := <-p.states:
			if want(err) {
				return
			}
		case <-deadline:
			p.hub.t.Fatal("the state did not change in time")
		}
	}
}

func up(err error) bool { return err == nil }

func code(c wire.Code) func(error) bool {
	return func(err error) bool { var f *wire.Failure; return errors.As(err, &f) && f.Code == c }
}

func request() bus.MeetRequest {
	return bus.MeetRequest{Tickets: []wire.Ticket{wire.NewTicket("one")}, Proxy: "spiffe://test.example/org/acme/proxy/p/1", Expires: 5 * time.Second}
}

func serve(t *testing.T, c *bus.Conn, agent, replica string, h func(bus.MeetRequest) error) func() {
	t.Helper()
	stop, err := c.ServeMeet(agent, replica, "", h)
	if err != nil {
		t.Fatal(err)
	}
	return stop
}

// meet asks until the replica answers: a subscription needs a moment to be known.
func meet(t *testing.T, c *bus.Conn, agent, replica string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := c.Meet(ctx, agent, replica, request())
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func wantFailure(t *testing.T, err error, leg wire.Leg, c wire.Code) {
	t.Helper()
	var f *wire.Failure
	if !errors.As(err, &f) || f.Leg != leg || f.Code != c {
		t.Errorf("got %#v; want %s %s", err, leg, c)
	}
}

func TestMeet(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	stranger := h.party("other", identity.RoleProxy, "p", "1", time.Hour).connect()
	got := make(chan bus.MeetRequest, 1)
	var answer error
	stop := serve(t, agent, "a", "1", func(r bus.MeetRequest) error { got <- r; return answer })
	if _, err := agent.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := request()
	if err := proxy.Meet(t.Context(), "a", "1", want); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.Tickets[0] != want.Tickets[0] || r.Proxy != want.Proxy || r.Expires != want.Expires {
		t.Errorf("the agent got %+v", r)
	}
	answer = wire.Fail(wire.LegAgent, wire.CodeDraining, "going away").WithHint("another one")
	err := proxy.Meet(t.Context(), "a", "1", want)
	wantFailure(t, err, wire.LegAgent, wire.CodeDraining)
	<-got

	wantFailure(t, proxy.Meet(t.Context(), "a", "2", want), wire.LegAgent, wire.CodeNoAgent)
	wantFailure(t, stranger.Meet(t.Context(), "a", "1", want), wire.LegAgent, wire.CodeNoAgent)
	wantFailure(t, proxy.Meet(t.Context(), "*", "1", want), wire.LegProxy, wire.CodeBadRequest)
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", bus.MeetRequest{}), wire.LegProxy, wire.CodeBadRequest)

	stop()
	stop()
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", want), wire.LegAgent, wire.CodeNoAgent)
	agent.Close()
	proxy.Close()
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", want), wire.LegBus, wire.CodeCanceled)
	if _, err := agent.ServeMeet("a", "1", "", nil); err == nil {
		t.Error("served on a closed connection")
	}
}

// TestMeetReachesTheRightLife has two lives of one replica on the bus, one of which may
// be the ghost of a process that is gone: a request reaches the one that it is for, each
// time.
func TestMeetReachesTheRightLife(t *testing.T) {
	h := newHub(t)
	party := h.party("acme", identity.RoleAgent, "a", "1", time.Hour)
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	heard := make(map[string]int)
	var mu sync.Mutex
	for _, epoch := range []string{"ghost", "living"} {
		c := party.connect()
		stop, err := c.ServeMeet("a", "1", epoch, func(bus.MeetRequest) error {
			mu.Lock()
			defer mu.Unlock()
			heard[epoch]++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if _, err := c.RTT(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r := request()
	r.Epoch = "living"
	for range 20 {
		if err := proxy.Meet(t.Context(), "a", "1", r); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if heard["ghost"] != 0 || heard["living"] != 20 {
		t.Errorf("of 20 requests to one life, heard: %v", heard)
	}
	r.Epoch, r.Expires = "another", 50*time.Millisecond
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", r), wire.LegBus, wire.CodeTimeout)
}

func TestMeetTimesOut(t *testing.T) {
	h := newHub(t)
	agent := h.party("acme", identity.RoleAgent, "a", "1", time.Hour).connect()
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	release := make(chan struct{})
	stop := serve(t, agent, "a", "1", func(bus.MeetRequest) error { <-release; return nil })
	if _, err := agent.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Expires = 100 * time.Millisecond
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", r), wire.LegBus, wire.CodeTimeout)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantFailure(t, proxy.Meet(ctx, "a", "1", request()), wire.LegBus, wire.CodeCanceled)
	close(release)
	stop()
}

// TestRefreshLosesNoRequest renews both sides all the while they meet.
func TestRefreshLosesNoRequest(t *testing.T) {
	h := newHub(t)
	ap, pp := h.party("acme", identity.RoleAgent, "a", "1", time.Hour), h.party("acme", identity.RoleProxy, "p", "1", time.Hour)
	agent, proxy := ap.connect(), pp.connect()
	var served atomic.Int64
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { served.Add(1); return nil })()
	if _, err := agent.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	done, met := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var asked atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				asked.Add(1)
				if err := proxy.Meet(t.Context(), "a", "1", request()); err != nil {
					t.Errorf("meeting %d: %v", asked.Load(), err)
				}
				select {
				case met <- struct{}{}:
				case <-done:
				}
			}
		})
	}
	for range 10 {
		ap.renew(time.Hour)
		agent.Refresh()
		pp.renew(time.Hour)
		proxy.Refresh()
		for range 200 {
			<-met
		}
	}
	close(done)
	wg.Wait()
	if asked.Load() != served.Load() {
		t.Errorf("%d asked, %d served", asked.Load(), served.Load())
	}
	t.Logf("%d meetings over 10 renewals", asked.Load())
}

func TestExpiredTokenIsCutAndRefreshed(t *testing.T) {
	h := newHub(t)
	p := h.party("acme", identity.RoleAgent, "a", "1", time.Second)
	proxy := h.party("acme", identity.RoleProxy, "p", "1", time.Hour).connect()
	agent := p.connect()
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { return nil })()
	p.awaitState(up)
	meet(t, proxy, "a", "1")
	p.awaitState(code(wire.CodeUnauthenticated)) // the server hung up, and said why
	p.awaitState(code(wire.CodeUnauthenticated)) // and does not let it in with the same token
	if agent.Connected() {
		t.Error("connected with an expired token")
	}
	p.renew(time.Hour)
	agent.Refresh()
	p.awaitState(up)
	meet(t, proxy, "a", "1")
}

func TestConnectFailures(t *testing.T) {
	h := newHub(t)
	p := h.party("acme", identity.RoleAgent, "a", "1", time.Hour)
	o := p.options()
	o.Token = func() string { return "nonsense" }
	_, err := bus.Connect(t.Context(), o)
	wantFailure(t, err, wire.LegBus, wire.CodeUnauthenticated)

	_, other, err := bus.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	o = p.options()
	o.Seed = func() []byte { return other } // a stolen token without its key
	_, err = bus.Connect(t.Context(), o)
	wantFailure(t, err, wire.LegBus, wire.CodeUnauthenticated)

	o = p.options()
	refused := wire.Fail(wire.LegRelay, wire.CodeRefused, "refused")
	tries := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Dial = func(context.Context) (net.Conn, error) {
		if tries++; tries == 2 {
			cancel()
		}
		return nil, refused
	}
	if _, err = bus.Connect(ctx, o); !errors.Is(err, refused) || tries != 2 {
		t.Errorf("after %d tries: %v", tries, err)
	}

	silent, far := net.Pipe()
	defer far.Close()
	o.Dial = func(context.Context) (net.Conn, error) { return silent, nil }
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = bus.Connect(ctx, o); err == nil {
		t.Error("connected to nothing")
	}
}

func TestRevokedUserIsCut(t *testing.T) {
	h := newHub(t)
	p := h.party("acme", identity.RoleProxy, "p", "1", time.Hour)
	p.connect()
	p.awaitState(up)
	if err := h.now.Load().RevokeUser("acme", p.public); err != nil {
		t.Fatal(err)
	}
	p.awaitState(code(wire.CodeUnauthenticated))
	if err := h.now.Load().RevokeUser("none", p.public); !errors.Is(err, embedded.ErrNoAccount) {
		t.Errorf("revoke in no organization: %v", err)
	}
	if err := h.now.Load().RevokeUser("acme", "x"); err == nil {
		t.Error("revoked what is no key")
	}
	other := h.party("acme", identity.RoleProxy, "q", "1", time.Hour)
	other.connect()
	other.awaitState(up)
	if err := h.now.Load().RevokeUsers("acme", "x", other.public); err == nil {
		t.Error("revoked what is no key")
	}
	other.awaitState(code(wire.CodeUnauthenticated)) // what is no key does not save others
}

func TestServerRestart(t *testing.T) {
	h := newHub(t)
	ap, pp := h.party("acme", identity.RoleAgent, "a", "1", time.Hour), h.party("acme", identity.RoleProxy, "p", "1", time.Hour)
	agent, proxy := ap.connect(), pp.connect()
	defer serve(t, agent, "a", "1", func(bus.MeetRequest) error { return nil })()
	ap.awaitState(up)
	pp.awaitState(up)
	meet(t, proxy, "a", "1")
	h.stop()
	pp.awaitState(func(err error) bool { return err != nil })
	ap.awaitState(func(err error) bool { return err != nil })
	r := request()
	r.Expires = 50 * time.Millisecond
	wantFailure(t, proxy.Meet(t.Context(), "a", "1", r), wire.LegBus, wire.CodeLost)
	h.start()
	ap.awaitState(up)
	pp.awaitState(up)
	meet(t, proxy, "a", "1")
}
