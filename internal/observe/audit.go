package observe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WatchSpool makes the audit records visible that an agent holds; waiting returns
// how many the hub has not taken yet, and how many had no room since the start. It
// is called whenever metrics are collected, concurrently.
func WatchSpool(r *Registry, waiting func() (n int, lost uint64)) {
	r.gaugeFunc("postern_audit_spool_records", "Audit records that the hub has not acknowledged yet.",
		func() float64 { n, _ := waiting(); return float64(n) }, nil)
	r.gaugeFunc("postern_audit_spool_lost_records", "Audit records that had no room in the agent's memory, since its start.",
		func() float64 { _, lost := waiting(); return float64(lost) }, nil)
}

// Audit counts what a hub's audit log does. It is an audit.Metrics.
type Audit struct {
	queue     prometheus.Gauge
	written   prometheus.Counter
	dropped   prometheus.Counter
	failures  prometheus.Counter
	repeated  prometheus.Counter
	duration  prometheus.Histogram
	delivered *prometheus.CounterVec
	sinkFails *prometheus.CounterVec
	missed    *prometheus.CounterVec
	lag       *prometheus.GaugeVec
}

// NewAudit adds the metrics of an audit log to a registry.
func NewAudit(r *Registry) *Audit {
	return &Audit{
		queue:     r.gauge("postern_audit_queue_records", "Audit records that are not on disk yet."),
		written:   r.counter("postern_audit_records_total", "Audit records written to disk."),
		dropped:   r.counter("postern_audit_dropped_total", "Audit records that had no room in the queue and are lost; a record says how many."),
		failures:  r.counter("postern_audit_write_failures_total", "Attempts to write audit records that failed; they are repeated."),
		repeated:  r.counter("postern_audit_repeated_total", "Audit records that agents sent again, and that were there already."),
		duration:  r.histogram("postern_audit_write_duration_seconds", "Time to bring a block of audit records to disk.", openBuckets()),
		delivered: r.counterVec("postern_audit_sink_records_total", "Audit records that a sink took: file, webhook or syslog.", "sink"),
		sinkFails: r.counterVec("postern_audit_sink_failures_total", "Attempts to give records to a sink that failed; they are repeated.", "sink"),
		missed:    r.counterVec("postern_audit_sink_missed_total", "Audit records that were removed at the end of their time before a sink took them.", "sink"),
		lag:       r.gaugeVec("postern_audit_sink_lag_seconds", "Age of the oldest audit record that a sink has not taken; 0 if it has all.", "sink"),
	}
}

// Queued says how many records wait now.
func (a *Audit) Queued(n int) {
	if a != nil {
		a.queue.Set(float64(n))
	}
}

// Written counts records that are on disk.
func (a *Audit) Written(n int) {
	if a != nil {
		a.written.Add(float64(n))
	}
}

// Dropped counts records that are lost.
func (a *Audit) Dropped(n int) {
	if a != nil {
		a.dropped.Add(float64(n))
	}
}

// Failed counts an attempt to write that failed.
func (a *Audit) Failed(error) {
	if a != nil {
		a.failures.Inc()
	}
}

// Repeated counts records that came twice.
func (a *Audit) Repeated(n int) {
	if a != nil {
		a.repeated.Add(float64(n))
	}
}

// Took counts how long a block took to be written.
func (a *Audit) Took(d time.Duration) {
	if a != nil {
		a.duration.Observe(d.Seconds())
	}
}

// Delivered counts records that a sink took.
func (a *Audit) Delivered(sink string, n int) {
	if a != nil {
		a.delivered.WithLabelValues(sink).Add(float64(n))
	}
}

// SinkFailed counts an attempt to give records to a sink that failed.
func (a *Audit) SinkFailed(sink string) {
	if a != nil {
		a.sinkFails.WithLabelValues(sink).Inc()
	}
}

// Missed counts records that vanished before a sink took them.
func (a *Audit) Missed(sink string, n uint64) {
	if a != nil {
		a.missed.WithLabelValues(sink).Add(float64(n))
	}
}

// Lag says how old the oldest record is that a sink has not taken.
func (a *Audit) Lag(sink string, d time.Duration) {
	if a != nil {
		a.lag.WithLabelValues(sink).Set(d.Seconds())
	}
}
