package agent

import (
	"sync/atomic"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
)

// meters are what the agents of an organization count and record with. One registry takes them
// once, while an organization that fails is served by one Agent after the other.
type meters struct {
	streams *observe.Streams
	pipes   *observe.Pipes
	uplink  *observe.Uplink
	member  *observe.Membership
	answers *observe.Requests
	spool   *audit.Spool // of what the hub has yet to hear

	agent atomic.Pointer[Agent] // the newest, whose pipes are counted
}

// newMeters makes the meters of an organization. Without a registry they count nothing.
func newMeters(r *observe.Registry, organization string) *meters {
	m := &meters{spool: audit.NewSpool()}
	if r == nil {
		return m
	}
	r = r.Of(organization)
	m.streams, m.pipes, m.uplink, m.member = observe.NewStreams(r), observe.NewPipes(r), observe.NewUplink(r), observe.NewMembership(r)
	m.answers = observe.NewRequests(r)
	observe.WatchSpool(r, m.spool.Waiting)
	m.pipes.Watch(func() int { idle, _ := m.count(); return idle }, func() int { _, busy := m.count(); return busy })
	observe.NewLimits(r, m.limits)
	return m
}

func (m *meters) limits() []limit.Usage {
	if a := m.agent.Load(); a != nil {
		return a.quota.Sum(limit.Agent)
	}
	return nil
}

func (m *meters) count() (idle, busy int) {
	if a := m.agent.Load(); a != nil {
		return a.count()
	}
	return 0, 0
}
