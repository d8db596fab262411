package observe

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metric describes one metric, for the reference.
type Metric struct {
	Name   string
	Type   string // "counter", "gauge" or "histogram"
	Help   string
	Labels []string
}

// Registry holds the metrics of one role. It is not the global one: nothing
// that a library registers there appears, and one process may hold several.
// It is safe for concurrent use once its sets are made.
type Registry struct {
	reg    *prometheus.Registry
	into   prometheus.Registerer // reg, or what adds labels on the way to it
	labels []string              // the names of those labels
	docs   []Metric
	others prometheus.Gatherers // served beside reg
}

// NewRegistry returns a registry with the metrics of the Go runtime and of the
// process, and postern_build_info with the role and version.
func NewRegistry(role, version string) *Registry {
	reg := prometheus.NewRegistry()
	r := &Registry{reg: reg, into: reg}
	r.into.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.gaugeVec("postern_build_info", "What runs here; always 1.", "role", "version").WithLabelValues(role, version).Set(1)
	return r
}

// Of returns a registry whose metrics are served with those of r and have a further
// label, the organization. A set that is made in one of them must not be made in r,
// nor twice for one organization.
func (r *Registry) Of(organization string) *Registry {
	const label = "organization"
	return &Registry{reg: r.reg, into: prometheus.WrapRegistererWith(prometheus.Labels{label: organization}, r.into), labels: []string{label}}
}

// Include serves what a library gathers by itself with the metrics of the registry. No name may
// be in both. It must be called before Handler.
func (r *Registry) Include(g prometheus.Gatherer) { r.others = append(r.others, g) }

// Handler serves the metrics in the formats of Prometheus.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(append(prometheus.Gatherers{r.reg}, r.others...), promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Gatherer returns the registry for whoever collects metrics by other means.
func (r *Registry) Gatherer() prometheus.Gatherer { return r.reg }

// Metrics describes Postern's own metrics in the registry, sorted by name.
func (r *Registry) Metrics() []Metric {
	return slices.SortedFunc(slices.Values(r.docs), func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
}

// note remembers a metric for the reference. Registering panics if two sets use
// one name, which only a defect in this package can do.
func (r *Registry) note(kind, name, help string, labels []string, c prometheus.Collector) {
	r.docs = append(r.docs, Metric{Name: name, Type: kind, Help: strings.TrimSuffix(help, "."), Labels: slices.Concat(r.labels, labels)})
	r.into.MustRegister(c)
}

func (r *Registry) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.note("counter", name, help, nil, c)
	return c
}

func (r *Registry) counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.note("counter", name, help, labels, c)
	return c
}

func (r *Registry) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.note("gauge", name, help, nil, g)
	return g
}

func (r *Registry) gaugeVec(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.note("gauge", name, help, labels, g)
	return g
}

func (r *Registry) gaugeFunc(name, help string, f func() float64, labels prometheus.Labels) {
	g := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, f)
	r.into.MustRegister(g)
	for _, m := range r.docs {
		if m.Name == name { // a further member of a labelled family
			return
		}
	}
	names := slices.Sorted(maps.Keys(labels))
	r.docs = append(r.docs, Metric{Name: name, Type: "gauge", Help: strings.TrimSuffix(help, "."), Labels: slices.Concat(r.labels, names)})
}

func (r *Registry) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	r.note("histogram", name, help, nil, h)
	return h
}
