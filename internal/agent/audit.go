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

// runSpool brings audit records to the hub until the function that it returns is
// called, which waits for the last of them.
func (a *Agent) runSpool(ctx context.Context) (stop func()) {
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	final, give := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { a.spool.Run(work, final, a.sendAudit, a.log) })
	return func() {
		end()
		defer time.AfterFunc(auditParting, give).Stop()
		wg.Wait()
		give()
	}
}

// visit is one stream as the audit log has it.
type visit struct {
	spool *audit.Spool
	start time.Time
	r     audit.Record
}

// visit begins the record of a stream. Who acts is on whose behalf the proxy's
// certificate was issued. The hub's own proxies serve several: they are taken at
// their word for whom they ask.
func (l *lane) visit(in *stream.Incoming, start time.Time) *visit {
	peer := l.pipe.Peer()
	r := audit.Record{Actor: l.pipe.Holder().Principal, Through: peer.String(), Target: in.Target, Stream: hex.EncodeToString(in.Stream[:])}
	if r.Actor.Kind == identity.KindHub && in.For != "" {
		if p, err := identity.ParsePrincipal(in.For); err == nil {
			r.Actor = p
		}
	}
	if t := observe.TraceOf(in.Trace); t.Valid() {
		r.Trace = hex.EncodeToString(t.TraceID[:])
	}
	return &visit{spool: l.agent.spool, start: start, r: r}
}

// admitted records that the stream was opened, and by which rules.
func (v *visit) admitted(address, why string) { v.open(address, why, nil) }

// opened records how the attempt to open the stream ended.
func (v *visit) opened(address string, err error) { v.open(address, "", err) }

func (v *visit) open(address, why string, err error) {
	r := v.r
	r.Action, r.Address, r.Time, r.Reason = audit.Open, address, v.start, why
	r.Duration = time.Since(v.start)
	r.Outcome(err, wire.LegAgent)
	v.spool.Record(r)
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

// closed records the end of the stream.
func (v *visit) closed(stats stream.Stats, err error) {
	r := v.r
	r.Action, r.Time, r.Duration = audit.Close, time.Now(), time.Since(v.start)
	r.BytesIn, r.BytesOut = uint64(stats.Out), uint64(stats.In) //nolint:gosec // not negative
	r.Outcome(err, wire.LegAgent)
	v.spool.Record(r)
}

// changed records a change of what the agent goes by.
func (a *Agent) changed(object, what string, err error) {
	r := audit.Record{Action: audit.Change, Object: object, What: what}
	r.Outcome(err, wire.LegAgent)
	a.spool.Record(r)
}
