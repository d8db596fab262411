package identitytoken

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Metrics counts what a Keeper does.
type Metrics struct {
	tokens   *prometheus.CounterVec
	wanted   prometheus.Gauge
	failing  prometheus.Gauge
	unusable prometheus.Gauge
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
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_operator_identity_tokens_failing", Help: "Identity tokens that pods want now and that could not be had or renewed when last tried.",
		}),
		unusable: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_operator_identity_tokens_unusable", Help: "Identity tokens that pods want now and that are not there, or have expired.",
		}),
	}
	for _, c := range []prometheus.Collector{m.tokens, m.wanted, m.failing, m.unusable} {
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

func (m *Metrics) kept(wanted, failing, unusable int) {
	if m == nil {
		return
	}
	m.wanted.Set(float64(wanted))
	m.failing.Set(float64(failing))
	m.unusable.Set(float64(unusable))
}

// count counts how things are after a sweep. What is in have is as it was before it.
func (k *Keeper) count(wanted map[key]demand, have map[key]*corev1.Secret) {
	now := k.c.Now()
	failing, unusable := 0, 0
	k.mu.Lock()
	for at := range wanted {
		if k.failed[at].times == 0 {
			continue
		}
		failing++
		s := have[at]
		if s == nil {
			unusable++
		} else if expires, err := time.Parse(time.RFC3339, s.Annotations[annotationExpires]); err != nil || !now.Before(expires) {
			unusable++
		}
	}
	k.mu.Unlock()
	k.c.Metrics.kept(len(wanted), failing, unusable)
}
