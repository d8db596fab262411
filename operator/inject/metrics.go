package inject

import "github.com/prometheus/client_golang/prometheus"

// Results of a step.
const (
	resultChanged = "changed" // the pod was changed
	resultNone    = "none"    // there was nothing to do
	resultFailed  = "failed"  // the pod was made without the step
)

// Metrics counts what the webhook does. A nil Metrics counts nothing.
type Metrics struct {
	reviews *prometheus.CounterVec
}

// NewMetrics returns metrics that are registered at r.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_operator_webhook_pods_total",
		Help: "Pods that the webhook was asked about, by step and result: changed, none, or failed, with which the pod was made as it was.",
	}, []string{"step", "result"})}
	return m, r.Register(m.reviews)
}

func (m *Metrics) count(step, result string) {
	if m != nil {
		m.reviews.WithLabelValues(step, result).Inc()
	}
}
