package identitytoken

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what a Keeper does.
type Metrics struct {
	tokens *prometheus.CounterVec
	wanted prometheus.Gauge
}

// NewMetrics adds the metrics to a registry.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_operator_identity_tokens_total", Help: "Identity tokens asked for on behalf of pods, by result: ok or failed.",
		}, []string{"result"}),
		wanted: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_operator_identity_tokens", Help: "Identity tokens that pods want now.",
		}),
	}
	for _, c := range []prometheus.Collector{m.tokens, m.wanted} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of identity tokens: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) asked(err error) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.tokens.WithLabelValues(result).Inc()
}

func (m *Metrics) kept(n int) {
	if m != nil {
		m.wanted.Set(float64(n))
	}
}
