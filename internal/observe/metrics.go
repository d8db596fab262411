package observe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern.dev/postern/internal/wire"
)

// ok is the code of what did not fail, in labels named "code".
const ok = "ok"

// code returns the label for the outcome err: "ok", or a wire.Code's name. Both
// sets are closed, so that no caller and no peer can make new series.
func code(err error) string {
	if err == nil {
		return ok
	}
	return known(wire.AsFailure(err, wire.LegUnknown).Code)
}

// known returns a code's name; a number that this version does not know, which
// a peer may have sent, counts as internal.
func known(c wire.Code) string {
	if c == wire.CodeNone || c > wire.CodeProtocol {
		c = wire.CodeInternal
	}
	return c.String()
}

// knownLeg returns a leg's name; one that this version does not know counts as unknown.
func knownLeg(l wire.Leg) string {
	if l > wire.LegTarget {
		l = wire.LegUnknown
	}
	return l.String()
}

// openBuckets cover an open over loopback (0.2 ms) to one that times out (30 s).
func openBuckets() []float64 {
	return []float64{.0002, .0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

// Streams counts streams at one end: in an agent, a proxy, or a hub's own proxy.
type Streams struct {
	open     prometheus.Gauge
	opens    *prometheus.CounterVec
	duration prometheus.Histogram
	closes   *prometheus.CounterVec
	toTarget prometheus.Counter
	toClient prometheus.Counter
}

// NewStreams adds the metrics of streams to a registry.
func NewStreams(r *Registry) *Streams {
	bytes := r.counterVec("postern_stream_bytes_total", "Bytes of payload carried by streams, by direction: to_target or to_client.", "direction")
	return &Streams{
		open:     r.gauge("postern_streams_open", "Streams open now."),
		opens:    r.counterVec("postern_stream_opens_total", "Attempts to open a stream, by outcome and by the leg that failed (none if it succeeded).", "code", "leg"),
		duration: r.histogram("postern_stream_open_duration_seconds", "Time from the request for a stream to a connected target, for those that succeeded.", openBuckets()),
		closes:   r.counterVec("postern_stream_closes_total", "Streams that ended: ok after an orderly end in both directions, else by code.", "code"),
		toTarget: bytes.WithLabelValues("to_target"),
		toClient: bytes.WithLabelValues("to_client"),
	}
}

// Opened counts an attempt to open a stream that took d and ended with err. If
// err is nil, Closed must follow.
func (s *Streams) Opened(err error, d time.Duration) {
	if s == nil {
		return
	}
	if err != nil {
		s.opens.WithLabelValues(code(err), knownLeg(wire.AsFailure(err, wire.LegUnknown).Leg)).Inc()
		return
	}
	s.opens.WithLabelValues(ok, "none").Inc()
	s.duration.Observe(d.Seconds())
	s.open.Inc()
}

// Closed counts the end of a stream that Opened counted. A nil err means that
// both directions ended in order.
func (s *Streams) Closed(err error) {
	if s != nil {
		s.open.Dec()
		s.closes.WithLabelValues(code(err)).Inc()
	}
}

// Bytes counts payload. Call it with what was carried since the last call, from
// time to time on a long stream and at its end: it is two atomic additions.
func (s *Streams) Bytes(toTarget, toClient uint64) {
	if s != nil {
		s.toTarget.Add(float64(toTarget))
		s.toClient.Add(float64(toClient))
	}
}

// Pipes counts the pipes at one end.
type Pipes struct {
	registry *Registry
	joins    *prometheus.CounterVec
	duration prometheus.Histogram
	ends     *prometheus.CounterVec
}

// NewPipes adds the metrics of pipes to a registry.
func NewPipes(r *Registry) *Pipes {
	return &Pipes{
		registry: r,
		joins:    r.counterVec("postern_pipe_joins_total", "Attempts to join a pipe, by outcome.", "code"),
		duration: r.histogram("postern_pipe_join_duration_seconds", "Time to join a pipe, from the request to the inner handshake's end, for those that succeeded.", openBuckets()),
		ends:     r.counterVec("postern_pipe_ends_total", "Pipes that ended: ok when they were closed on purpose, else by code (lost when pings found them dead).", "code"),
	}
}

// Watch makes the number of idle and busy pipes visible; call it at most once.
// The functions are called whenever metrics are collected, concurrently.
func (p *Pipes) Watch(idle, busy func() int) {
	if p == nil {
		return
	}
	const help = "Pipes joined now, by state: idle or busy."
	p.registry.gaugeFunc("postern_pipes", help, func() float64 { return float64(idle()) }, prometheus.Labels{"state": "idle"})
	p.registry.gaugeFunc("postern_pipes", help, func() float64 { return float64(busy()) }, prometheus.Labels{"state": "busy"})
}

// Joined counts an attempt to join a pipe that took d and ended with err.
func (p *Pipes) Joined(err error, d time.Duration) {
	if p == nil {
		return
	}
	p.joins.WithLabelValues(code(err)).Inc()
	if err == nil {
		p.duration.Observe(d.Seconds())
	}
}

// Ended counts the end of a pipe; a nil err means that it was closed on purpose.
func (p *Pipes) Ended(err error) {
	if p != nil {
		p.ends.WithLabelValues(code(err)).Inc()
	}
}

// Uplink counts what keeps a party connected: the bus and its credentials.
type Uplink struct {
	connected prometheus.Gauge
	changes   *prometheus.CounterVec
	renewals  *prometheus.CounterVec
	expiry    prometheus.Gauge
	rtt       prometheus.Gauge
}

// NewUplink adds the metrics of a party's connection to a registry.
func NewUplink(r *Registry) *Uplink {
	u := &Uplink{
		connected: r.gauge("postern_bus_connected", "1 while the bus is connected, else 0."),
		changes:   r.counterVec("postern_bus_changes_total", "Times the bus was connected or lost, by state: connected or lost.", "state"),
		rtt:       r.gauge("postern_bus_rtt_seconds", "Latest round-trip time over the bus."),
		renewals:  r.counterVec("postern_credential_renewals_total", "Attempts to get or renew credentials, by outcome.", "code"),
		expiry:    r.gauge("postern_credential_expiry_timestamp_seconds", "When the current credentials expire, in seconds since 1970."),
	}
	return u
}

// BusConnected records that the bus was connected or lost.
func (u *Uplink) BusConnected(connected bool) {
	switch {
	case u == nil:
	case connected:
		u.connected.Set(1)
		u.changes.WithLabelValues("connected").Inc()
	default:
		u.connected.Set(0)
		u.changes.WithLabelValues("lost").Inc()
	}
}

// RTT records a round-trip time over the bus.
func (u *Uplink) RTT(d time.Duration) {
	if u != nil {
		u.rtt.Set(d.Seconds())
	}
}

// Renewed records an attempt to get or renew credentials. If err is nil, the
// new ones are valid until expires.
func (u *Uplink) Renewed(err error, expires time.Time) {
	if u == nil {
		return
	}
	u.renewals.WithLabelValues(code(err)).Inc()
	if err == nil {
		u.expiry.Set(float64(expires.Unix()))
	}
}
