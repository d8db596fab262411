package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// Road is the way to the hub's one port; *uplink.Dialer is one.
type Road interface {
	Proxy() string    // the HTTP proxy, or ""
	FirstHop() string // HOST:PORT of the proxy or the hub
	Endpoint() uplink.Endpoint
	Resolve(ctx context.Context) ([]netip.Addr, error)
	DialTCP(ctx context.Context) (net.Conn, error)
	Tunnel(ctx context.Context, conn net.Conn) (net.Conn, error)
	Upgrade(ctx context.Context, conn net.Conn) (net.Conn, error)
	Handshake(ctx context.Context, raw net.Conn, alpn string, cert func() *tls.Certificate) (*tls.Conn, uplink.Peer, error)
}

// Identity is what a hub gave out for a secret.
type Identity struct {
	Name     string // the SPIFFE ID
	NotAfter time.Time
	Agent    bool // it is that of an agent itself, by which nothing can be reached
}

// Hub is what stands behind the one port.
type Hub interface {
	// Time returns the hub's clock and the time that asking took.
	Time(ctx context.Context) (now time.Time, took time.Duration, err error)
	// Enrol exchanges the secret for credentials.
	Enrol(ctx context.Context) (Identity, error)
	// Join connects to the bus with those credentials and returns the tunnel.
	Join(ctx context.Context) (Tunnel, time.Duration, error)
}

// Agent is one replica of an agent.
type Agent struct {
	ID, Replica, State string
	Version            string
	Allow              []string // what may be reached through it, if it tells
}

// Tunnel reaches agents.
type Tunnel interface {
	// Agents returns the replicas of the organization's agents that are known.
	Agents(ctx context.Context) ([]Agent, error)
	// Probe presents a ticket at the relay and sends bytes through it and back,
	// the way that pipes go.
	Probe(ctx context.Context) (rtt time.Duration, err error)
	// Dial opens a stream to a target.
	Dial(ctx context.Context, agent string, target wire.Target) (net.Conn, error)
	// Close leaves the bus.
	Close()
}

// Options says what to look at.
type Options struct {
	Road   Road
	Hub    Hub
	Agent  string       // empty: no further than the bus
	Target *wire.Target // nil: no further than the agent
	Now    func() time.Time
}

// The names of the legs.
const (
	legDNS         = "dns"
	legHTTPProxy   = "http proxy"
	legTCP         = "tcp"
	legWebSocket   = "websocket"
	legTLS         = "tls"
	legClock       = "clock"
	legCredentials = "credentials"
	legBus         = "bus"
	legRelay       = "relay"
	legAgent       = "agent"
	legPolicy      = "policy"
	legTarget      = "target"
)

// Clocks that differ by more than clockWarn will make trouble some day, by more
// than clockFail they make it today: new certificates are valid from a little
// before their issue only.
const (
	clockWarn = 30 * time.Second
	clockFail = 4 * time.Minute
)

// walker holds what one step leaves to the next.
type walker struct {
	Options
	conn   net.Conn // to the first hop, then to the hub
	tunnel Tunnel
	agents bool  // the credentials are an agent's own
	dialed error // of the stream to the target
}

// Steps returns the steps for Walk, and a function that closes what they left
// open.
func Steps(o Options) (steps []Step, done func()) {
	w := &walker{Options: o}
	steps = []Step{
		{Leg: legDNS, Run: w.dns},
		{Leg: legHTTPProxy, Needs: []string{legDNS}, Run: w.httpProxy},
		{Leg: legTCP, Needs: []string{legDNS, legHTTPProxy}, Run: w.tcp},
		{Leg: legTLS, Needs: []string{legTCP}, Run: w.tls}, // or legWebSocket, below
		{Leg: legClock, Needs: []string{legTLS}, Run: w.clock},
		{Leg: legCredentials, Needs: []string{legTLS}, Run: w.credentials},
		{Leg: legBus, Needs: []string{legCredentials}, Run: w.bus},
		{Leg: legRelay, Needs: []string{legBus}, Run: w.relay},
		{Leg: legAgent, Needs: []string{legBus}, Run: w.agent},
		{Leg: legPolicy, Needs: []string{legRelay, legAgent}, Limit: time.Minute, Run: w.policy},
		{Leg: legTarget, Needs: []string{legPolicy}, Run: w.target},
	}
	if o.Road.Endpoint().WebSocket() {
		i := slices.IndexFunc(steps, func(s Step) bool { return s.Leg == legTLS })
		steps[i].Needs = []string{legWebSocket}
		steps = slices.Insert(steps, i, Step{Leg: legWebSocket, Needs: []string{legTCP}, Run: w.webSocket})
	}
	return steps, w.close
}

func (w *walker) close() {
	if w.conn != nil {
		_ = w.conn.Close()
	}
	if w.tunnel != nil {
		w.tunnel.Close()
	}
}

func (w *walker) dns(ctx context.Context) Finding {
	addrs, err := w.Road.Resolve(ctx)
	if err != nil {
		return failed(err, "check the name, and the resolver of this machine")
	}
	host, _, _ := net.SplitHostPort(w.Road.FirstHop())
	if _, err := netip.ParseAddr(host); err == nil {
		return passed("%s is an address", host)
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return passed("%s is %s", host, strings.Join(texts, ", "))
}

func (w *walker) httpProxy(ctx context.Context) Finding {
	if w.Road.Proxy() == "" {
		return skipped("none is configured for %s", w.Road.Endpoint().Address())
	}
	conn, err := w.Road.DialTCP(ctx)
	if err != nil {
		return failed(err, "check --proxy-url, AGENT_PROXY or HTTPS_PROXY")
	}
	w.conn = conn
	return passed("%s accepts connections", w.Road.Proxy())
}

func (w *walker) tcp(ctx context.Context) Finding {
	hub := w.Road.Endpoint().Address()
	if w.conn != nil {
		conn, err := w.Road.Tunnel(ctx, w.conn)
		if err != nil {
			w.conn = nil
			return failed(err, "ask whoever runs the HTTP proxy to allow CONNECT to "+hub)
		}
		w.conn = conn
		return passed("%s, through %s", hub, w.Road.Proxy())
	}
	conn, err := w.Road.DialTCP(ctx)
	if err != nil {
		return failed(err, "open outbound TCP to "+hub+" in the firewall, or configure the network's HTTP proxy")
	}
	w.conn = conn
	return passed("%s, as %s", conn.RemoteAddr(), conn.LocalAddr())
}

func (w *walker) webSocket(ctx context.Context) Finding {
	raw := w.conn
	w.conn = nil // Upgrade closes it when it fails
	conn, err := w.Road.Upgrade(ctx, raw)
	if err != nil {
		return failed(err, "check the connect URL, and what ends TLS before the hub: it has to pass WebSockets on")
	}
	w.conn = conn
	return passed("upgraded at %s", w.Road.Endpoint())
}

func (w *walker) tls(ctx context.Context) Finding {
	raw := w.conn
	w.conn = nil // Handshake closes it when it fails
	conn, peer, err := w.Road.Handshake(ctx, raw, "http/1.1", nil)
	if err != nil {
		f := failed(err, "check --ca-file or --ca-pin, and the clock")
		if peer.Subject != "" {
			f.Detail += fmt.Sprintf("; the other side shows %s, issued by %s, valid from %s to %s", peer.Subject, peer.Issuer, stamp(peer.NotBefore), stamp(peer.NotAfter))
			if peer.Pin != "" {
				f.Detail += ", pin " + peer.Pin
			}
		}
		return f
	}
	w.conn = conn
	detail := fmt.Sprintf("%s with %s, valid until %s", peer.Version, peer.Subject, stamp(peer.NotAfter))
	if peer.Pin != "" {
		detail += ", pin " + peer.Pin
	}
	return Finding{Status: Pass, Detail: detail}
}

func (w *walker) clock(ctx context.Context) Finding {
	theirs, took, err := w.Hub.Time(ctx)
	if err != nil {
		return failed(err, "check that the connect URL names a hub")
	}
	// The hub read its clock while the answer was under way, and tells whole seconds.
	skew := w.Now().Add(-took / 2).Sub(theirs).Round(time.Second)
	f := passed("differs from the hub's by %v", skew.Abs())
	switch {
	case skew.Abs() >= clockFail:
		f.Status = Fail
	case skew.Abs() >= clockWarn:
		f.Status = Warn
	default:
		return f
	}
	way := "ahead of"
	if skew < 0 {
		way = "behind"
	}
	f.Detail = fmt.Sprintf("this machine is %v %s the hub", skew.Abs(), way)
	f.Action = "set the clock, by NTP if possible: certificates and tokens are valid for a limited time"
	return f
}

func (w *walker) credentials(ctx context.Context) Finding {
	id, err := w.Hub.Enrol(ctx)
	if err != nil {
		return failed(err, "check what the agent or proxy was given to prove who it is, and --organization")
	}
	w.agents = id.Agent
	return passed("%s until %s", id.Name, stamp(id.NotAfter))
}

func (w *walker) bus(ctx context.Context) Finding {
	tunnel, rtt, err := w.Hub.Join(ctx)
	if err != nil {
		return failed(err, "look into the hub's log; something between here and the hub may cut long-lived connections")
	}
	w.tunnel = tunnel
	return passed("round trip %v", rtt.Round(10*time.Microsecond))
}

func (w *walker) relay(ctx context.Context) Finding {
	rtt, err := w.tunnel.Probe(ctx)
	if err != nil {
		return failed(err, "look into the hub's log; something between here and the hub may let only some protocols pass")
	}
	return passed("carries bytes, round trip %v", rtt.Round(10*time.Microsecond))
}

func (w *walker) agent(ctx context.Context) Finding {
	if w.agents {
		return skipped("the credentials are the agent's own; agents are seen with a robot token, or by a person who is signed in")
	}
	agents, err := w.tunnel.Agents(ctx)
	if err != nil {
		return failed(err, "look into the hub's log")
	}
	if w.Agent == "" {
		return skipped("%s; name one with --agent-id to go on", census(agents))
	}
	var replicas []string
	ready := false
	for _, a := range agents {
		if a.ID == w.Agent {
			ready = ready || a.State == "ready"
			replicas = append(replicas, strings.TrimSpace(fmt.Sprintf("%s (%s) %s", a.Replica, a.State, a.Version)))
		}
	}
	switch {
	case len(replicas) == 0:
		return Finding{Status: Fail, Detail: fmt.Sprintf("agent %s is not connected; %s", w.Agent, census(agents)),
			Action: "start the agent, or look into its log; run postern doctor where it runs, with its token"}
	case !ready:
		return Finding{Status: Fail, Detail: "no replica is ready: " + strings.Join(replicas, ", "), Action: "look into the agent's log"}
	}
	return passed("%s", strings.Join(replicas, ", "))
}

// census says which agents are connected.
func census(agents []Agent) string {
	var names []string
	seen := map[string]bool{}
	for _, a := range agents {
		if !seen[a.ID] {
			seen[a.ID] = true
			names = append(names, a.ID)
		}
	}
	if len(names) == 0 {
		return "no agent of the organization is connected"
	}
	const show = 5
	if more := len(names) - show; more > 0 {
		names = append(names[:show], fmt.Sprintf("%d more", more))
	}
	return "connected are " + strings.Join(names, ", ")
}

func (w *walker) policy(ctx context.Context) Finding {
	if w.agents {
		return skipped("the credentials are the agent's own, and reach nothing")
	}
	if w.Agent == "" || w.Target == nil {
		return skipped("name a target with --target to go on")
	}
	conn, err := w.tunnel.Dial(ctx, w.Agent, *w.Target)
	w.dialed = err
	if err == nil {
		_ = conn.Close()
	}
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		switch f.Leg {
		case wire.LegDNS, wire.LegTCP, wire.LegTLS, wire.LegTarget:
			// Allowed, and what comes after failed: that is the next leg's finding.
		default:
			return failed(err, "the agent decides: start it with --allow "+w.Target.String())
		}
	} else if err != nil {
		return failed(err, "look into the agent's log")
	}
	return passed("the agent allows %s", w.Target)
}

func (w *walker) target(context.Context) Finding {
	switch {
	case w.agents:
		return skipped("the credentials are the agent's own, and reach nothing")
	case w.Agent == "" || w.Target == nil:
		return skipped("none is named")
	case w.dialed != nil:
		return failed(w.dialed, "check from where the agent runs that the target is up and reachable")
	}
	return passed("%s accepts connections from the agent", w.Target)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
