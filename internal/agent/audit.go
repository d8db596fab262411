package agent

import (
	"context"
	"encoding/hex"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// auditParting is how long the agent waits at its end for the hub to take the last
// audit records.
const auditParting = 3 * time.Second

// sendAudit brings audit records to the hub.
func (a *Agent) sendAudit(ctx context.Context, batch []byte) error {
	return a.party.Bus.SendAudit(ctx, a.cfg.AgentID, a.cfg.Name, batch)
}

// runAudit records streams, and brings audit records to the hub, until the function
// that it returns is called, which waits for the last of them.
func (a *Agent) runAudit(ctx context.Context) (stop func()) {
	live, endStreams := context.WithCancel(context.WithoutCancel(ctx))
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	final, give := context.WithCancel(context.WithoutCancel(ctx))
	var streams, wg sync.WaitGroup
	streams.Go(func() { a.visits.Run(live) })
	wg.Go(func() { a.spool.Run(work, final, a.sendAudit, a.log) })
	return func() {
		endStreams()
		streams.Wait()
		end()
		defer time.AfterFunc(auditParting, give).Stop()
		wg.Wait()
		give()
	}
}

// visit is one stream as the audit log has it.
type visit struct {
	agent  *Agent
	r      audit.Record
	stream *audit.Stream // once it was admitted
}

// visit begins the record of a stream. Who acts is on whose behalf the proxy's
// certificate was issued. The hub's own proxies serve several: they are taken at
// their word for whom they ask.
func (l *lane) visit(in *stream.Incoming, start time.Time) *visit {
	r := audit.Record{
		Action: audit.Open, Time: start, Actor: l.pipe.Holder().Principal, Through: l.through, Target: in.Target,
		Stream: hex.EncodeToString(in.Stream[:]),
	}
	if r.Actor.Kind == identity.KindHub && in.For != "" {
		if p, err := identity.ParsePrincipal(in.For); err == nil {
			r.Actor = p
		}
	}
	if t := observe.TraceOf(in.Trace); t.Valid() {
		r.Trace = hex.EncodeToString(t.TraceID[:])
	}
	return &visit{agent: l.agent, r: r}
}

// refused records that the stream was not opened.
func (v *visit) refused(address string, err error) {
	v.r.Address, v.r.Duration = address, time.Since(v.r.Time)
	v.r.Outcome(err, wire.LegAgent)
	v.agent.spool.Record(v.r)
}

// admitted takes note that the stream was opened, and by which rules. It ends
// with closed.
func (v *visit) admitted(address, why string) {
	v.r.Address, v.r.Reason, v.r.OK, v.r.Duration = address, why, true, time.Since(v.r.Time)
	v.stream = v.agent.visits.Opened(v.r)
}

// closed records the end of the stream.
func (v *visit) closed(stats stream.Stats, err error) {
	v.stream.Closed(uint64(stats.Out), uint64(stats.In), err, wire.LegAgent) //nolint:gosec // not negative
}

// why names the rules that let a stream in: the owner's, and the hub's grant if it
// takes one.
func (g *guard) why(a *admission) string {
	g.mu.Lock()
	v := a.verdict
	g.mu.Unlock()
	if v.owner.Rule == "" || v.access.Grant == "" {
		return v.owner.Rule
	}
	return v.owner.Rule + ", grant " + v.access.Grant
}

// changed records a change of what the agent goes by.
func (a *Agent) changed(object, what string, err error) {
	r := audit.Record{Action: audit.Change, Object: object, What: what}
	r.Outcome(err, wire.LegAgent)
	a.spool.Record(r)
}
