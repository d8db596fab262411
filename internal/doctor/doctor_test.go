package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWalk(t *testing.T) {
	step := func(leg string, s Status, needs ...string) Step {
		return Step{Leg: leg, Needs: needs, Run: func(context.Context) Finding { return Finding{Status: s, Detail: "seen"} }}
	}
	var seen []string
	report := Walk(t.Context(), []Step{
		step("a", Pass), step("b", Warn, "a"), step("c", Skip, "a"), step("d", Fail, "b", "c"),
		step("e", Pass, "d"), step("f", Pass, "e"), step("g", Pass, "a"),
	}, func(r Result) { seen = append(seen, r.Leg) })
	want := []Result{
		{Leg: "a", Status: Pass, Detail: "seen"}, {Leg: "b", Status: Warn, Detail: "seen"}, {Leg: "c", Status: Skip, Detail: "seen"},
		{Leg: "d", Status: Fail, Detail: "seen"}, {Leg: "e", Status: Skip, Detail: "not tried, because d failed"},
		{Leg: "f", Status: Skip, Detail: "not tried, because d failed"}, {Leg: "g", Status: Pass, Detail: "seen"},
	}
	if diff := cmp.Diff(want, report.Results, cmpopts.IgnoreFields(Result{}, "Duration")); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if report.OK() || report.Failed() != "d" || strings.Join(seen, "") != "abcdefg" {
		t.Errorf("OK %v, failed %q, seen %v", report.OK(), report.Failed(), seen)
	}
}

func TestStepIsBounded(t *testing.T) {
	report := Walk(t.Context(), []Step{{Leg: "stuck", Limit: time.Millisecond, Run: func(ctx context.Context) Finding {
		<-ctx.Done()
		return failed(ctx.Err(), "wait")
	}}}, nil)
	if report.OK() {
		t.Error("a stuck step passed")
	}
}

// world is a road, a hub and a tunnel in one, which fails where it is told to.
type world struct {
	proxy  string
	web    bool             // by WebSocket
	broken map[string]error // by method
	skew   time.Duration
	agents []Agent
	closed bool
	own    bool // the credentials are an agent's own
}

func (w *world) Proxy() string { return w.proxy }
func (w *world) FirstHop() string {
	if w.proxy != "" {
		return "proxy.example.org:3128"
	}
	return "hub.example.org:4222"
}
func (w *world) Endpoint() uplink.Endpoint {
	if w.web {
		return uplink.Endpoint{Scheme: "wss", Host: "hub.example.org", Port: 443, Path: "/v1/connect"}
	}
	return uplink.Endpoint{Scheme: "tls", Host: "hub.example.org", Port: 4222}
}
func (w *world) Resolve(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, w.broken["Resolve"]
}

// conn is a connection with addresses and nothing else.
type conn struct{ net.Conn }

func (conn) Close() error         { return nil }
func (conn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4222} }
func (conn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 50000} }

func (w *world) DialTCP(context.Context) (net.Conn, error) { return conn{}, w.broken["DialTCP"] }
func (w *world) Tunnel(_ context.Context, c net.Conn) (net.Conn, error) {
	return c, w.broken["Tunnel"]
}
func (w *world) Upgrade(_ context.Context, c net.Conn) (net.Conn, error) {
	return c, w.broken["Upgrade"]
}
func (w *world) Handshake(_ context.Context, raw net.Conn, _ string, _ func() *tls.Certificate) (*tls.Conn, uplink.Peer, error) {
	peer := uplink.Peer{Version: "TLS 1.3", Subject: "spiffe://td/hub/a", Issuer: "CN=td", Pin: "sha256:ab",
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(3600, 0)}
	if err := w.broken["Handshake"]; err != nil {
		return nil, peer, err
	}
	return tls.Client(raw, nil), peer, nil
}
func (w *world) Time(context.Context) (time.Time, time.Duration, error) {
	return epoch.Add(-w.skew - 10*time.Millisecond), 20 * time.Millisecond, w.broken["Time"]
}
func (w *world) Enrol(context.Context) (Identity, error) {
	return Identity{Name: "spiffe://td/org/default/proxy/p/r", NotAfter: epoch, Agent: w.own}, w.broken["Enrol"]
}
func (w *world) Join(context.Context) (Tunnel, time.Duration, error) {
	if err := w.broken["Join"]; err != nil {
		return nil, 0, err
	}
	return w, time.Millisecond, nil
}
func (w *world) Agents(context.Context) ([]Agent, error) { return w.agents, w.broken["Agents"] }
func (w *world) Probe(context.Context) (time.Duration, error) {
	return 2 * time.Millisecond, w.broken["Probe"]
}
func (w *world) Dial(context.Context, string, wire.Target) (net.Conn, error) {
	return conn{}, w.broken["Dial"]
}
func (w *world) Close() { w.closed = true }

var epoch = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

func TestSteps(t *testing.T) {
	target, err := wire.ParseTarget("tcp:db:5432")
	if err != nil {
		t.Fatal(err)
	}
	office := []Agent{{ID: "office", Replica: "r1", State: "ready", Version: "v1"}}
	fail := func(leg wire.Leg, code wire.Code) error { return wire.Fail(leg, code, "it broke").WithHint("mend it") }
	for _, tt := range []struct {
		name   string
		world  world
		agent  string
		target bool
		want   string // statuses in the order of the legs: p w f s
		detail map[string]string
		action map[string]string
	}{
		{name: "all is well", world: world{agents: office}, agent: "office", target: true, want: "pspppppppp" + "p",
			detail: map[string]string{
				legDNS: "hub.example.org is 192.0.2.1, 2001:db8::1", legHTTPProxy: "none is configured for hub.example.org:4222",
				legTCP: "192.0.2.1:4222, as 10.0.0.7:50000", legTLS: "TLS 1.3 with spiffe://td/hub/a, valid until 1970-01-01T01:00:00Z, pin sha256:ab",
				legClock: "differs from the hub's by 0s", legAgent: "r1 (ready) v1", legTarget: "tcp:db:5432 accepts connections from the agent",
			}},
		{name: "through a proxy", world: world{proxy: "http://proxy.example.org:3128", agents: office}, agent: "office", want: "pppppppppss",
			detail: map[string]string{legTCP: "hub.example.org:4222, through http://proxy.example.org:3128", legPolicy: "name a target with --target to go on"}},
		{name: "no agent named", world: world{agents: office}, want: "psppppp" + "psss",
			detail: map[string]string{legAgent: "connected are office; name one with --agent-id to go on"}},
		{name: "no such name", world: world{broken: map[string]error{"Resolve": errors.New("no such host")}}, want: "fssssssssss",
			detail: map[string]string{legTarget: "not tried, because dns failed"}, action: map[string]string{legDNS: "check the name, and the resolver of this machine"}},
		{name: "firewall", world: world{broken: map[string]error{"DialTCP": errors.New("timed out")}}, want: "psfssssssss",
			action: map[string]string{legTCP: "open outbound TCP to hub.example.org:4222 in the firewall, or configure the network's HTTP proxy"}},
		{name: "proxy refuses", world: world{proxy: "http://p", broken: map[string]error{"Tunnel": errors.New("403")}}, want: "ppfssssssss"},
		{name: "web", world: world{web: true, agents: office}, agent: "office", target: true, want: "pspppppppppp",
			detail: map[string]string{legWebSocket: "upgraded at wss://hub.example.org:443"}},
		{name: "no upgrade", world: world{web: true, broken: map[string]error{"Upgrade": fail(wire.LegRelay, wire.CodeDenied)}}, want: "pspfssssssss"},
		{name: "wrong CA", world: world{broken: map[string]error{"Handshake": fail(wire.LegTLS, wire.CodeWrongPeer)}}, want: "pspfsssssss",
			detail: map[string]string{legTLS: "it broke; the other side shows spiffe://td/hub/a, issued by CN=td, valid from 1970-01-01T00:00:00Z to 1970-01-01T01:00:00Z, pin sha256:ab"},
			action: map[string]string{legTLS: "mend it"}},
		{name: "clock a minute ahead", world: world{skew: time.Minute, agents: office}, agent: "office", want: "pspp" + "w" + "ppppss",
			detail: map[string]string{legClock: "this machine is 1m0s ahead of the hub"}},
		{name: "clock an hour behind", world: world{skew: -time.Hour, broken: map[string]error{"Enrol": fail(wire.LegHub, wire.CodeUnauthenticated)}}, want: "psppffsssss",
			detail: map[string]string{legClock: "this machine is 1h0m0s behind the hub"}},
		{name: "bus down", world: world{broken: map[string]error{"Join": fail(wire.LegBus, wire.CodeTimeout)}}, want: "pspppp" + "fssss"},
		{name: "agent gone", world: world{agents: office}, agent: "home", want: "psppppp" + "pfss",
			detail: map[string]string{legAgent: "agent home is not connected; connected are office"}},
		{name: "agent lost", world: world{agents: []Agent{{ID: "office", Replica: "r1", State: "lost"}}}, agent: "office", want: "psppppp" + "pfss"},
		{name: "with an agent's own key", world: world{own: true, agents: office}, agent: "office", target: true, want: "psppppp" + "psss",
			detail: map[string]string{
				legAgent:  "the credentials are the agent's own; agents are seen with a robot token, or by a person who is signed in",
				legTarget: "the credentials are the agent's own, and reach nothing",
			}},
		{name: "relay refuses", world: world{agents: office, broken: map[string]error{"Probe": fail(wire.LegRelay, wire.CodeTicketExpired)}}, agent: "office", want: "psppppp" + "fpss"},
		{name: "not allowed", world: world{agents: office, broken: map[string]error{"Dial": wire.Fail(wire.LegPolicy, wire.CodeDenied, "no rule")}}, agent: "office", target: true,
			want: "psppppppp" + "fs", action: map[string]string{legPolicy: "the agent decides: start it with --allow tcp:db:5432"}},
		{name: "target refuses", world: world{agents: office, broken: map[string]error{"Dial": fail(wire.LegTCP, wire.CodeRefused)}}, agent: "office", target: true,
			want: "psppppppp" + "pf", detail: map[string]string{legPolicy: "the agent allows tcp:db:5432", legTarget: "it broke"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Road: &tt.world, Hub: &tt.world, Agent: tt.agent, Now: func() time.Time { return epoch }}
			if tt.target {
				o.Target = &target
			}
			steps, done := Steps(o)
			report := Walk(t.Context(), steps, nil)
			done()
			var got strings.Builder
			for _, r := range report.Results {
				got.WriteByte(r.Status[0])
				if (r.Status == Fail || r.Status == Warn) && r.Action == "" {
					t.Errorf("%s %s without advice: %s", r.Leg, r.Status, r.Detail)
				}
				if want, ok := tt.detail[r.Leg]; ok && r.Detail != want {
					t.Errorf("%s: %q\nwant %q", r.Leg, r.Detail, want)
				}
				if want, ok := tt.action[r.Leg]; ok && r.Action != want {
					t.Errorf("%s: %q\nwant %q", r.Leg, r.Action, want)
				}
			}
			if got.String() != tt.want {
				t.Errorf("statuses %s, want %s", got.String(), tt.want)
			}
			if report.OK() == strings.Contains(tt.want, "f") {
				t.Errorf("OK = %v", report.OK())
			}
			if joined := strings.IndexByte(tt.want[:7], 'f') < 0; joined != tt.world.closed {
				t.Errorf("tunnel closed: %v", tt.world.closed)
			}
		})
	}
}

func TestReport(t *testing.T) {
	report := Report{[]Result{{Leg: "tcp", Status: Pass, Detail: "fine", Duration: 1234567}, {Leg: "credentials", Status: Fail, Detail: "revoked", Action: "make a new one"}}}
	var out bytes.Buffer
	for _, r := range report.Results {
		r.WriteLine(&out)
	}
	want := `tcp          pass  fine (1ms)
credentials  fail  revoked
                   -> make a new one
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	out.Reset()
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var back struct {
		OK      bool
		Results []Result
	}
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.OK || !cmp.Equal(back.Results, report.Results) {
		t.Errorf("JSON %s: %v", out.String(), err)
	}
}
