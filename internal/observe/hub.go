package observe

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern.dev/postern/internal/wire"
)

// other is the label of what is not in a closed set.
const other = "other"

// Relay counts what happens on the one port.
type Relay struct {
	handshakes      *prometheus.CounterVec
	unauthenticated prometheus.Gauge
	rejected        *prometheus.CounterVec
	pairings        *prometheus.CounterVec
	waiting         prometheus.Gauge
	pairs           prometheus.Gauge
	bytes           prometheus.Counter
}

// NewRelay adds the metrics of a relay to a registry.
func NewRelay(r *Registry) *Relay {
	return &Relay{
		handshakes:      r.counterVec("postern_relay_handshakes_total", "TLS handshakes on the one port, by the protocol asked for and outcome.", "alpn", "code"),
		unauthenticated: r.gauge("postern_relay_unauthenticated_connections", "Connections that have not proved who they are yet."),
		rejected:        r.counterVec("postern_relay_rejected_total", "Connections closed before a handshake because a limit was reached, by limit: address, total or rate.", "limit"),
		pairings:        r.counterVec("postern_relay_pairings_total", "Tickets presented, by outcome; ok counts once per pair.", "code"),
		waiting:         r.gauge("postern_relay_waiting_tickets", "Tickets presented by one side that wait for the other."),
		pairs:           r.gauge("postern_relay_pairs", "Pipes that the relay carries now."),
		bytes:           r.counter("postern_relay_bytes_total", "Bytes carried for pipes in both directions, counted when a pipe ends."),
	}
}

// Accepted counts a connection that has not proved who it is yet. Proved or
// refused, it ends with Handshake.
func (r *Relay) Accepted() {
	if r != nil {
		r.unauthenticated.Inc()
	}
}

// Handshake counts the end of a connection's time as a stranger: the outcome of
// its handshake and the protocol it asked for.
func (r *Relay) Handshake(alpn string, err error) {
	if r == nil {
		return
	}
	r.unauthenticated.Dec()
	if !slices.Contains([]string{wire.ALPNBus, wire.ALPNPipe, "h2", "http/1.1"}, alpn) {
		alpn = other
	}
	r.handshakes.WithLabelValues(alpn, code(err)).Inc()
}

// Rejected counts a connection that was closed at once because a limit was
// reached: "address", "total" or "rate".
func (r *Relay) Rejected(limit string) {
	if r == nil {
		return
	}
	if !slices.Contains([]string{"address", "total", "rate"}, limit) {
		limit = other
	}
	r.rejected.WithLabelValues(limit).Inc()
}

// Waiting changes the number of tickets that wait for their other side.
func (r *Relay) Waiting(delta int) {
	if r != nil {
		r.waiting.Add(float64(delta))
	}
}

// Paired counts a pair that was made, or a ticket that was refused. If err is
// nil, Unpaired must follow.
func (r *Relay) Paired(err error) {
	if r == nil {
		return
	}
	r.pairings.WithLabelValues(code(err)).Inc()
	if err == nil {
		r.pairs.Inc()
	}
}

// Unpaired counts the end of a pair that carried so many bytes.
func (r *Relay) Unpaired(bytes uint64) {
	if r != nil {
		r.pairs.Dec()
		r.bytes.Add(float64(bytes))
	}
}

// Hub counts what happens in a hub's API.
type Hub struct {
	registry  *Registry
	exchanges *prometheus.CounterVec
	requests  *prometheus.CounterVec
	duration  prometheus.Histogram
}

// NewHub adds the metrics of a hub's API to a registry.
func NewHub(r *Registry) *Hub {
	return &Hub{
		registry:  r,
		exchanges: r.counterVec("postern_hub_token_exchanges_total", "Exchanges of a long-lived secret for credentials, by role and outcome.", "role", "code"),
		requests:  r.counterVec("postern_hub_api_requests_total", "Requests to the API, by class of the answer's status: 2xx, 3xx, 4xx or 5xx.", "status"),
		duration:  r.histogram("postern_hub_api_request_duration_seconds", "Time to answer a request to the API.", prometheus.DefBuckets),
	}
}

// Watch makes the number of connected agents visible; call it at most once. The
// function is called whenever metrics are collected, concurrently.
func (h *Hub) Watch(agents func() int) {
	if h != nil {
		h.registry.gaugeFunc("postern_hub_agent_replicas", "Replicas of agents that are connected now.",
			func() float64 { return float64(agents()) }, nil)
	}
}

// Exchanged counts an exchange of a secret for credentials of a role.
func (h *Hub) Exchanged(role string, err error) {
	if h == nil {
		return
	}
	if !slices.Contains([]string{"agent", "proxy"}, role) {
		role = other
	}
	h.exchanges.WithLabelValues(role, code(err)).Inc()
}

// Request counts a request to the API.
func (h *Hub) Request(status int, d time.Duration) {
	if h == nil {
		return
	}
	class := other
	if status >= 100 && status < 600 {
		class = string(rune('0'+status/100)) + "xx"
	}
	h.requests.WithLabelValues(class).Inc()
	h.duration.Observe(d.Seconds())
}
