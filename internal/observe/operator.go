package observe

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"postern.dev/postern/internal/wire"
)

// Operator counts what the operator of a Kubernetes cluster sees. Its methods do nothing on nil and
// are safe for concurrent use.
type Operator struct {
	proxies *prometheus.GaugeVec
	asked   *prometheus.CounterVec

	mu     sync.Mutex
	phases map[any]string // by Proxy
}

// NewOperator adds the operator's metrics to a registry.
func NewOperator(r *Registry) *Operator {
	return &Operator{
		proxies: r.gaugeVec("postern_operator_proxies", "Proxies by their phase.", "phase"),
		asked:   r.counterVec("postern_operator_hub_requests_total", "Questions to hubs whether an agent is connected, by what came of them.", "code"),
		phases:  make(map[any]string),
	}
}

// Asked counts a question to a hub.
func (o *Operator) Asked(err error) {
	if o == nil {
		return
	}
	code := "ok"
	if err != nil {
		code = wire.AsFailure(err, wire.LegHub).Code.String()
	}
	o.asked.WithLabelValues(code).Inc()
}

// Saw notes the phase of a Proxy, which anything comparable stands for.
func (o *Operator) Saw(proxy any, phase string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if was, known := o.phases[proxy]; known {
		if was == phase {
			return
		}
		o.proxies.WithLabelValues(was).Dec()
	}
	o.phases[proxy] = phase
	o.proxies.WithLabelValues(phase).Inc()
}

// Forgot notes that a Proxy is gone.
func (o *Operator) Forgot(proxy any) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if was, known := o.phases[proxy]; known {
		o.proxies.WithLabelValues(was).Dec()
		delete(o.phases, proxy)
	}
}
