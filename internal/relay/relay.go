package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// Limits of those who come, unless the Config says otherwise.
const (
	DefaultMaxUnproved          = 2048 // connections in all that have not proved who they are
	DefaultMaxUnprovedPerSource = 256  // of one IPv4 address or IPv6 /64

	DefaultHandshakeTime = 10 * time.Second
	DefaultJoinTime      = 5 * time.Second

	// DefaultMeetTime is shorter than parties wait for the relay, so that they
	// hear from it that the other side did not come.
	DefaultMeetTime = 8 * time.Second
)

// Config says how a relay works. Node, Certificate and Roots are required.
type Config struct {
	Node        string                                // this node's name, which tickets carry
	Certificate func() (*tls.Certificate, error)      // to present; called at each handshake
	Roots       func() *x509.CertPool                 // that parties' certificates must lead to
	Bus         func(context.Context, net.Conn) error // serves a party that asked for the bus; nil where there is none
	HTTP        bool                                  // serve HTTP connections from the listener of HTTP()
	Revoked     func(serial string) bool              // which certificates (identity.Serial) to refuse; nil for none
	Log         *slog.Logger
	Metrics     *observe.Relay // nil for none

	MaxUnproved, MaxUnprovedPerSource int // 0 for the defaults

	// Limits counts in the pipes that are joined here and paces their bytes; nil for
	// no limits. Pipes of JoinLocal are left to the hub's own proxies.
	Limits *limit.Book

	// How long a TLS handshake may take, how long JOIN may be in coming or its
	// answer in going, and how long the first bearer of a ticket waits for the second;
	// 0 for the defaults.
	HandshakeTime, JoinTime, MeetTime time.Duration
}

// Relay serves the one port. Make one with New, give it a listener with Serve.
type Relay struct {
	cfg     Config
	configs map[string]*tls.Config // by ALPN protocol; "" for HTTP
	gate    *gate
	meet    *rendezvous
	splicer splicer
	http    *handover
	life    context.Context // until Close
	end     context.CancelFunc

	holders *holders

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	pairs map[*pair]struct{}
	done  bool
	wg    sync.WaitGroup
}

// New returns a relay that serves nothing yet.
func New(cfg Config) *Relay {
	if cfg.MaxUnproved == 0 {
		cfg.MaxUnproved = DefaultMaxUnproved
	}
	if cfg.MaxUnprovedPerSource == 0 {
		cfg.MaxUnprovedPerSource = DefaultMaxUnprovedPerSource
	}
	for _, t := range []struct {
		d       *time.Duration
		initial time.Duration
	}{{&cfg.HandshakeTime, DefaultHandshakeTime}, {&cfg.JoinTime, DefaultJoinTime}, {&cfg.MeetTime, DefaultMeetTime}} {
		if *t.d == 0 {
			*t.d = t.initial
		}
	}
	if cfg.Revoked == nil {
		cfg.Revoked = func(string) bool { return false }
	}
	r := &Relay{
		cfg:     cfg,
		gate:    newGate(cfg.MaxUnproved, cfg.MaxUnprovedPerSource),
		meet:    newRendezvous(cfg.MeetTime),
		http:    newHandover(),
		holders: newHolders(),
		conns:   make(map[net.Conn]struct{}),
		pairs:   make(map[*pair]struct{}),
	}
	r.life, r.end = context.WithCancel(context.Background())
	r.configs = map[string]*tls.Config{
		wire.ALPNPipe: r.tlsConfig(true, wire.ALPNPipe),
		wire.ALPNBus:  r.tlsConfig(true, wire.ALPNBus),
		"":            r.tlsConfig(false, "h2", "http/1.1"),
	}
	return r
}

func (r *Relay) tlsConfig(mutual bool, protocols ...string) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		SessionTicketsDisabled: true, // a ticket would follow the last record of a handshake, and outlive a revocation
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.cfg.Certificate() },
	}
	if mutual {
		c.ClientAuth = tls.RequireAnyClientCert
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			_, err := identity.VerifyPeer(r.cfg.Roots(), cs, x509.ExtKeyUsageClientAuth, time.Now())
			if err == nil && r.cfg.Revoked(identity.Serial(cs.PeerCertificates[0])) {
				err = identity.ErrRevoked
			}
			return err
		}
	}
	return c
}

// HTTP returns the listener from which an http.Server takes the connections that
// asked for HTTP. It ends when the relay does.
func (r *Relay) HTTP() net.Listener { return r.http }

// Pipes returns the number of pipes that are joined here now.
func (r *Relay) Pipes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pairs)
}

// idleBytes is what passes over a pipe between two calls of Busy, a second apart,
// when nothing but signs of life does: two small records each way.
const idleBytes = 1 << 10

// Busy returns the number of pipes over which more than signs of life passed since
// the last call. A hub that stops waits for them: which of the others carry a stream
// that is merely quiet, the relay cannot see.
func (r *Relay) Busy() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := 0
	for p := range r.pairs {
		n := p.bytes.Load()
		if n-p.sampled > idleBytes {
			busy++
		}
		p.sampled = n
	}
	return busy
}

// Waiting returns the number of parties that wait for their peer, and of used
// tickets that are still remembered.
func (r *Relay) Waiting() (parties, tickets int) { return r.meet.counts() }

// Serve accepts connections until ctx ends, then stops accepting and returns;
// what was accepted goes on until Close. It closes l.
func (r *Relay) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() { _ = l.Close() }()
	r.http.setAddr(l.Addr())
	pause := 5 * time.Millisecond
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			r.admit(ctx, conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, most likely: what is open goes on, and ends
			r.cfg.Log.Warn("accept failed", "error", err, "retry_in", pause)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
		}
	}
}

// Take serves a connection as if Serve had accepted it, for those that come by
// another way, such as inside a WebSocket. It does not block; the relay closes
// the connection. ctx is that of Serve.
func (r *Relay) Take(ctx context.Context, conn net.Conn) { r.admit(ctx, conn) }

// admit starts serving a connection unless a bound is reached.
func (r *Relay) admit(ctx context.Context, conn net.Conn) {
	src := source(conn.RemoteAddr())
	if limit := r.gate.enter(src); limit != "" {
		r.cfg.Metrics.Rejected(limit)
		r.cfg.Log.Debug("connection refused: too many that have not proved who they are", "remote", conn.RemoteAddr().String())
		_ = conn.Close()
		return
	}
	if !r.track(conn) {
		r.gate.leave(src)
		_ = conn.Close()
		return
	}
	r.cfg.Metrics.Accepted()
	go func() {
		defer r.wg.Done()
		proved := sync.OnceFunc(func() { r.gate.leave(src) })
		defer proved()
		r.handle(ctx, conn, proved)
	}()
}

// track counts a connection in; false after Close.
func (r *Relay) track(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return false
	}
	r.conns[conn] = struct{}{}
	r.wg.Add(1)
	return true
}

// untrack forgets a connection that is closed or has another owner.
func (r *Relay) untrack(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

// Close cuts everything that Serve accepted, and waits for it to end. Connections
// that were handed over (HTTP, the hub's own pipes) are their new owners'.
func (r *Relay) Close() {
	r.mu.Lock()
	r.done = true
	for c := range r.conns {
		_ = c.Close()
	}
	for p := range r.pairs {
		p.ended.Store(true)
	}
	r.mu.Unlock()
	r.end()
	_ = r.http.Close()
	r.wg.Wait()
	r.splicer.close()
}

// handle runs the handshake and routes by protocol.
func (r *Relay) handle(ctx context.Context, conn net.Conn, proved func()) {
	bounded := &capped{Conn: conn, left: maxHandshakeBytes}
	rc := pipe.NewRecordConn(bounded)
	protocol := ""
	tc := tls.Server(rc, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, p := range h.SupportedProtos {
			if r.configs[p] != nil {
				protocol = p
				break
			}
		}
		if protocol != wire.ALPNPipe {
			rc.PassThrough()
		}
		return r.configs[protocol], nil
	}})
	_ = conn.SetDeadline(time.Now().Add(r.cfg.HandshakeTime))
	if err := tc.HandshakeContext(ctx); err != nil {
		r.cfg.Metrics.Handshake(protocol, wire.Fail(wire.LegTLS, handshakeCode(err), "%v", err))
		r.cfg.Log.Debug("TLS handshake failed", "remote", conn.RemoteAddr().String(), "protocol", protocol, "error", err)
		r.drop(conn)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	bounded.trust()
	r.cfg.Metrics.Handshake(tc.ConnectionState().NegotiatedProtocol, nil)
	if protocol != "" && !r.hold(conn, tc) {
		r.drop(conn)
		return
	}
	switch protocol {
	case "":
		r.untrack(conn)
		if !r.cfg.HTTP || !r.http.give(ctx, tc, proved) {
			_ = conn.Close()
		}
	case wire.ALPNBus:
		proved()
		r.serveBus(conn, tc)
	case wire.ALPNPipe:
		proved()
		r.servePipe(ctx, conn, tc, rc)
	}
}

// handshakeCode tells callers that stayed silent from those that spoke wrongly.
func handshakeCode(err error) wire.Code {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return wire.CodeTimeout
	}
	return wire.CodeUnauthenticated
}

func (r *Relay) drop(conn net.Conn) {
	_ = conn.Close()
	r.untrack(conn)
	r.holders.remove(conn)
}

// serveBus lets a party speak with the bus until either of them ends.
func (r *Relay) serveBus(conn net.Conn, tc *tls.Conn) {
	defer r.drop(conn)
	if r.cfg.Bus == nil {
		return
	}
	if err := r.cfg.Bus(r.life, tc); err != nil {
		r.cfg.Log.Debug("bus connection ended", "remote", conn.RemoteAddr().String(), "error", err)
	}
}
