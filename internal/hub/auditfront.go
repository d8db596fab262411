package hub

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// The auditLog is the Observer of the hub's own proxies. It records who was turned
// away; streams it records in open, which knows their IDs.
var _ proxy.Observer = (*auditLog)(nil)

// Accepted implements proxy.Observer.
func (l *auditLog) Accepted(proxy.Front) {}

// Opened implements proxy.Observer.
func (l *auditLog) Opened(proxy.Event) {}

// Failed implements proxy.Observer.
func (l *auditLog) Failed(proxy.Event) {}

// Closed implements proxy.Observer.
func (l *auditLog) Closed(proxy.Event) {}

// Refused records a client that was turned away. One that did not prove who it is
// cannot write into the log of the organization that it names.
func (l *auditLog) Refused(e proxy.Event) {
	r := audit.Record{
		Action: audit.Open, Organization: e.Identity.Organization, Actor: e.Identity.Principal, Source: clientText(e.Client.Addr()),
		Agent: e.Agent.Agent, Target: targetText(e.Target),
	}
	if r.Actor.Kind == "" {
		r.Organization, r.Agent, r.Object = "", "", "agent:"+e.Agent.String()
	}
	if e.Failure != nil {
		if r.Outcome(e.Failure, wire.LegClient); e.Failure.Code == wire.CodeUnauthenticated {
			r.Action = audit.SignIn
		}
	}
	l.flood.Record(r)
}

func clientText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

func targetText(t wire.Target) string {
	if t.Kind == 0 {
		return ""
	}
	return t.String()
}

// open opens a stream for a client of the hub's own proxies, and records it with the
// client's address, which the agent does not know. The stream's ID is in both
// records. do opens it, by way of the Opener that it is given.
func (l *auditLog) open(r proxy.Request, via proxy.Opener, do func(via proxy.Opener) (proxy.Stream, error)) (proxy.Stream, error) {
	begin := time.Now()
	if !r.Trace.Valid() {
		r.Trace = observe.NewTrace()
	}
	one := audit.Record{
		Action: audit.Open, Time: begin, Organization: r.Agent.Organization, Actor: r.For.Principal, Source: clientText(r.Client.Addr()),
		Agent: r.Agent.Agent, Target: targetText(r.Target), Trace: hex.EncodeToString(r.Trace.TraceID[:]),
	}
	t := &tap{Opener: via, trace: r.Trace}
	s, err := do(t)
	one.Duration = time.Since(begin)
	one.Outcome(err, wire.LegProxy)
	if err != nil {
		l.Record(one)
		return nil, err
	}
	one.Stream, one.Address = t.stream, s.RemoteAddr().String()
	return &recordedStream{Stream: s, told: l.streams.Opened(one)}, nil
}

// tap gives an Opener the trace, and learns the ID of the stream that it opened.
type tap struct {
	proxy.Opener
	trace  observe.Trace
	stream string
}

// Open implements proxy.Opener.
func (t *tap) Open(ctx context.Context, r proxy.Request) (proxy.Stream, error) {
	r.Trace = t.trace
	s, err := t.Opener.Open(ctx, r)
	if named, ok := s.(interface{ ID() wire.StreamID }); ok && err == nil {
		t.stream = named.ID().String()
	}
	return s, err
}

// recordedStream records the end of a stream.
type recordedStream struct {
	proxy.Stream
	told *audit.Stream
	once sync.Once
}

// Carry implements proxy.Stream.
func (s *recordedStream) Carry(local net.Conn, early []byte) (proxy.Stats, error) {
	stats, err := s.Stream.Carry(local, early)
	s.ended(stats, err)
	return stats, err
}

// Close implements net.Conn.
func (s *recordedStream) Close() error {
	err := s.Stream.Close()
	s.ended(proxy.Stats{}, nil)
	return err
}

func (s *recordedStream) ended(stats proxy.Stats, err error) {
	s.once.Do(func() {
		s.told.Closed(uint64(stats.BytesIn), uint64(stats.BytesOut), err, wire.LegUnknown) //nolint:gosec // not negative
	})
}
