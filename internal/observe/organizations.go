package observe

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// part is the health of one organization.
type part struct {
	name   string
	health *Health
}

// Organization returns the health of one organization of a process that serves
// several. It is made at the first call.
func (h *Health) Organization(name string) *Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.parts {
		if p.name == name {
			return p.health
		}
	}
	own := NewHealth()
	h.parts = append(h.parts, part{name, own})
	return own
}

func (h *Health) organizations() []part {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.parts)
}

// several is the outcome for a process that serves several organizations.
func (h *Health) several(ctx context.Context, parts []part) Readiness {
	own := h.one(ctx)
	r := Readiness{Starting: true, Draining: own.Draining, Checks: own.Checks, Organizations: make([]Readiness, len(parts))}
	var wg sync.WaitGroup
	for i, p := range parts {
		wg.Go(func() {
			r.Organizations[i] = p.health.one(ctx)
			r.Organizations[i].Organization = p.name
		})
	}
	wg.Wait()
	for _, o := range r.Organizations {
		r.Ready = r.Ready || o.Ready
		r.Starting = r.Starting && o.Starting
	}
	r.Ready = r.Ready && (own.Ready || own.Starting) && !own.Draining // it need not have checks of its own
	return r
}

// asked answers a request to /readyz; known is false if it is for an organization that
// there is not.
func (h *Health) asked(req *http.Request) (r Readiness, known bool) {
	query := req.URL.Query()
	if query.Has("organization") {
		name := query.Get("organization")
		for _, p := range h.organizations() {
			if p.name == name {
				r = p.health.one(req.Context())
				r.Organization = name
				return r, true
			}
		}
		return Readiness{}, false
	}
	r = h.Ready(req.Context())
	if query.Has("all") {
		for _, o := range r.Organizations {
			r.Ready = r.Ready && o.Ready
		}
	}
	return r, true
}

// Membership counts how an organization of an agent fares.
type Membership struct {
	failed   prometheus.Gauge
	failures prometheus.Counter
}

// NewMembership adds the metrics of a membership to a registry, which should be one
// of an organization.
func NewMembership(r *Registry) *Membership {
	return &Membership{
		failed:   r.gauge("postern_organization_failed", "1 while the organization cannot be served until a person mends something, such as a revoked token; else 0."),
		failures: r.counter("postern_organization_failures_total", "Times that serving the organization failed so, attempts to resume included."),
	}
}

// Failed records that the organization cannot be served.
func (m *Membership) Failed() {
	if m != nil {
		m.failed.Set(1)
		m.failures.Inc()
	}
}

// Served records that the organization is served.
func (m *Membership) Served() {
	if m != nil {
		m.failed.Set(0)
	}
}
