package observe

import "github.com/prometheus/client_golang/prometheus"

// Requests counts what an agent's end of the gateway answers. A nil one counts
// nothing.
type Requests struct{ total *prometheus.CounterVec }

// NewRequests adds the metrics of an agent's end of the gateway to a registry.
func NewRequests(r *Registry) *Requests {
	return &Requests{r.counterVec("postern_agent_requests_total",
		"Requests through the gateway that the agent answered, by class of the answer's status; none: cut before there was one.", "status")}
}

// Answered counts a request by the status of its answer, 0 for none.
func (q *Requests) Answered(status int) {
	if q == nil {
		return
	}
	class := "none"
	if status >= 100 && status <= 599 {
		class = string(rune('0'+status/100)) + "xx"
	}
	q.total.WithLabelValues(class).Inc()
}
