package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// Opener opens a stream to a target through an agent. Errors are
// *wire.Failure. ctx bounds the opening only, not the life of the stream. It is
// safe for concurrent use.
type Opener interface {
	Open(ctx context.Context, r Request) (Stream, error)
}

// Request is what a client asks for.
type Request struct {
	Agent  AgentRef
	Target wire.Target
	For    Identity       // who asks; its organization is the agent's
	Client netip.AddrPort // from where; zero for a request of our own
	Trace  observe.Trace  // that the stream belongs to; the zero one begins a new one
	Early  []byte         // goes to the target along with the request, which saves a round trip; MaxEarly bytes at most, and the caller's again when it is open
}

// MaxEarly is the most that Opener.Open takes along, in bytes.
const MaxEarly = stream.MaxEarly

// AgentRef names an agent. An empty Organization means the proxy's own.
type AgentRef struct{ Organization, Agent string }

// String returns AGENT or ORG/AGENT.
func (r AgentRef) String() string {
	if r.Organization == "" {
		return r.Agent
	}
	return r.Organization + "/" + r.Agent
}

// Stream is one conversation with a target.
type Stream interface {
	net.Conn

	// CloseWrite ends the direction to the target; the other one lives on.
	CloseWrite() error

	// OnLeave has f called in a goroutine of its own when the other side is about to go
	// and only waits for its streams to end. stop keeps it from being called.
	OnLeave(f func()) (stop func() bool)

	// Carry moves bytes between local and the stream, first early to the
	// target, until both directions ended: an end is passed on as an end, a
	// reset as a reset. It closes both, and returns soon after either was
	// closed under it.
	Carry(local net.Conn, early []byte) (Stats, error)
}

// Stats is what a stream carried, in bytes.
type Stats struct {
	BytesIn  int64 // from the target
	BytesOut int64 // to the target
}

// Front is a kind of front end: a protocol that clients speak.
type Front string

// The front ends.
const (
	FrontHTTP    Front = "http"
	FrontSOCKS5  Front = "socks5"
	FrontForward Front = "forward"
)

// Event is what an Observer is told about one request of a client. Fields that
// are not known at the time are zero.
type Event struct {
	Front    Front
	Client   netip.AddrPort
	Identity Identity
	Agent    AgentRef
	Target   wire.Target
	Stats    Stats         // Closed only
	Duration time.Duration // Opened, Failed: of the opening; Closed: of the stream's life
	Failure  *wire.Failure // Refused, Failed; of Closed when the stream did not end cleanly
}

// Observer is told what the front ends do, for metrics and audit. Calls are
// concurrent and must not block.
type Observer interface {
	Accepted(Front) // a client connected
	Refused(Event)  // a client was turned away before anything was opened
	Opened(Event)   // a stream was opened
	Failed(Event)   // a stream could not be opened
	Closed(Event)   // a stream that was opened has ended
}

type silent struct{}

func (silent) Accepted(Front) {}
func (silent) Refused(Event)  {}
func (silent) Opened(Event)   {}
func (silent) Failed(Event)   {}
func (silent) Closed(Event)   {}

// Defaults of a FrontConfig.
const (
	DefaultMaxConns      = 16384
	DefaultMaxPending    = 256
	DefaultHeaderTimeout = 10 * time.Second
	DefaultOpenTimeout   = 20 * time.Second
	DefaultIdleTimeout   = 90 * time.Second
)

// FrontConfig is what every front end needs.
type FrontConfig struct {
	Opener   Opener       // required
	Router   Router       // how requests find their agent
	Log      *slog.Logger // required
	Observer Observer     // nil for none

	// MaxConns bounds the client connections of one listener; 0 means
	// DefaultMaxConns. Those beyond are refused in the protocol's own words.
	MaxConns int

	// MaxPending bounds, per source address other than loopback, the
	// connections that have not yet said what they want; 0 means
	// DefaultMaxPending.
	MaxPending int

	// HeaderTimeout bounds the time from a connection to its complete request;
	// 0 means DefaultHeaderTimeout.
	HeaderTimeout time.Duration

	// OpenTimeout bounds the opening of a stream, rendezvous included; 0 means
	// DefaultOpenTimeout. It is longer than the agent's own time limit, so that
	// the agent can say what it was waiting for.
	OpenTimeout time.Duration

	// IdleTimeout is how long HTTP keep-alive connections, of clients and to
	// targets, stay open without a request; 0 means DefaultIdleTimeout.
	IdleTimeout time.Duration
}

func (c FrontConfig) withDefaults() FrontConfig {
	if c.Observer == nil {
		c.Observer = silent{}
	}
	if c.MaxConns <= 0 {
		c.MaxConns = DefaultMaxConns
	}
	if c.MaxPending <= 0 {
		c.MaxPending = DefaultMaxPending
	}
	if c.HeaderTimeout <= 0 {
		c.HeaderTimeout = DefaultHeaderTimeout
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = DefaultOpenTimeout
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	return c
}
