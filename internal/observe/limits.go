package observe

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern.dev/postern/internal/limit"
)

// limits collects what a limit.Book counts, when it is asked.
type limits struct {
	sums          func() []limit.Usage
	organizations bool // organizations are a label of these metrics, not of the registry

	most, used, pipes, refusals, throttled *prometheus.Desc
}

// NewLimits adds the metrics of limits to a registry. sums is called whenever metrics
// are collected, concurrently; it returns what limit.Book.Sum does. Where the
// registry is not one of an organization, the metrics have it as a label: only a hub's
// administrator makes organizations, and no agent or proxy is named.
func NewLimits(r *Registry, sums func() []limit.Usage) {
	l := &limits{sums: sums, organizations: len(r.labels) == 0}
	desc := func(kind, name, help string, labels ...string) *prometheus.Desc {
		if l.organizations {
			labels = append(labels, "organization")
		}
		r.docs = append(r.docs, Metric{Name: name, Type: kind, Help: help, Labels: append(append([]string(nil), r.labels...), labels...)})
		return prometheus.NewDesc(name, help+".", labels, nil)
	}
	l.most = desc("gauge", "postern_limit", "Limits that hold: of organizations at a hub, of the replica at an agent; none where there is no limit", "level", "limit")
	l.used = desc("gauge", "postern_limit_used", "What is used now of what has a limit, summed over all of a level", "level", "limit")
	l.pipes = desc("gauge", "postern_limit_pipes", "Pipes counted at the relay, idle ones too, summed over all of a level", "level")
	l.refusals = desc("counter", "postern_limit_refusals_total", "Times that something was refused because a limit was reached, summed over all of a level", "level", "limit")
	l.throttled = desc("counter", "postern_limit_throttled_seconds_total",
		"Time that bytes have waited for a limit on bytes per second, summed over all streams and pipes of a level", "level")
	r.into.MustRegister(l)
}

// Describe implements prometheus.Collector.
func (l *limits) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.most, l.used, l.pipes, l.refusals, l.throttled} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *limits) Collect(ch chan<- prometheus.Metric) {
	for _, u := range l.sums() {
		send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
			if l.organizations {
				labels = append(labels, u.Organization)
			}
			ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
		}
		level := u.Level.String()
		for k := range limit.Kind(limit.Kinds) {
			if !u.Level.Has(k) {
				continue
			}
			if v := u.Limits.Get(k); v > 0 {
				send(l.most, prometheus.GaugeValue, float64(v), level, k.String())
			}
			if n, ok := u.Used(k); ok {
				send(l.used, prometheus.GaugeValue, float64(n), level, k.String())
			}
			send(l.refusals, prometheus.CounterValue, float64(u.Refused[k]), level, k.String())
		}
		send(l.pipes, prometheus.GaugeValue, float64(u.Pipes), level)
		send(l.throttled, prometheus.CounterValue, u.Throttled.Seconds(), level)
	}
}
