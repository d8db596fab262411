package observe

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Gateway counts what happens at a hub's gateway. Labels are of closed sets: neither
// callers nor clusters make new series.
type Gateway struct {
	requests *prometheus.CounterVec
	duration prometheus.Histogram
	running  *prometheus.GaugeVec
	bytes    *prometheus.CounterVec
	dials    *prometheus.CounterVec
}

// NewGateway adds the metrics of a gateway to a registry.
func NewGateway(r *Registry) *Gateway {
	return &Gateway{
		requests: r.counterVec("postern_gateway_requests_total", "Requests at the gateway that ended, by how the caller proved who it is, Kubernetes verb, and status of the answer (a class, or one that the gateway itself gives).",
			"method", "verb", "status"),
		duration: r.histogram("postern_gateway_request_duration_seconds", "Time from a request to the end of its answer, for those other than watches and streams.", prometheus.DefBuckets),
		running:  r.gaugeVec("postern_gateway_requests_running", "Requests at the gateway now: short ones, or long ones such as watches and exec.", "kind"),
		bytes:    r.counterVec("postern_gateway_bytes_total", "Bytes of bodies and streams that the gateway carried, by direction: to_cluster or to_client.", "direction"),
		dials:    r.counterVec("postern_gateway_dials_total", "Connections that the gateway opened to agents, by outcome; requests share them.", "code"),
	}
}

// Request counts a request that ended, with its bytes to the client and to the cluster.
// A status of 0 is that of a client that left without an answer.
func (g *Gateway) Request(method, verb string, status int, long bool, d time.Duration, sent, received uint64) {
	if g == nil {
		return
	}
	if !slices.Contains([]string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy"}, verb) {
		verb = other
	}
	if !slices.Contains([]string{"none", "hub", "cluster", "oidc", "certificate"}, method) {
		method = other
	}
	g.requests.WithLabelValues(method, verb, gatewayStatus(status)).Inc()
	g.bytes.WithLabelValues("to_client").Add(float64(sent))
	g.bytes.WithLabelValues("to_cluster").Add(float64(received))
	if !long {
		g.duration.Observe(d.Seconds())
	}
}

func gatewayStatus(status int) string {
	switch status {
	case 0:
		return "none"
	case 101:
		return "101"
	case 401:
		return "401"
	case 403:
		return "403"
	case 404:
		return "404"
	case 429:
		return "429"
	case 502:
		return "502"
	case 503:
		return "503"
	case 504:
		return "504"
	}
	if status < 100 || status > 599 {
		return other
	}
	return string(rune('0'+status/100)) + "xx"
}

// Began counts a request that was let in; Ended must follow.
func (g *Gateway) Began(long bool) { g.run(long, 1) }

// Ended counts the end of one.
func (g *Gateway) Ended(long bool) { g.run(long, -1) }

func (g *Gateway) run(long bool, delta float64) {
	if g == nil {
		return
	}
	kind := "short"
	if long {
		kind = "long"
	}
	g.running.WithLabelValues(kind).Add(delta)
}

// Dialed counts an attempt to open a connection to an agent.
func (g *Gateway) Dialed(err error) {
	if g != nil {
		g.dials.WithLabelValues(code(err)).Inc()
	}
}
