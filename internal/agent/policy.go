package agent

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// maxTold bounds how many rules the agent tells in its log and its presence.
const maxTold = 64

// guard holds the policy of the moment and the streams that live under it, so that
// a change cuts those which the new policy does not allow. Safe for concurrent use.
type guard struct {
	settings policy.Settings
	kube     *policy.KubernetesAPI
	file     *policy.Watcher // nil without a policy file

	current atomic.Pointer[policy.Policy]

	mu     sync.Mutex
	live   map[*admission]struct{}
	status bus.PolicyStatus
	told   []string // what is allowed, for the presence
}

// admission is a stream that the policy let in. The policy judged exactly these
// values, and a later one judges them again.
type admission struct {
	who    policy.Asker
	target wire.Target
	addr   netip.AddrPort // what target led to
	stream *stream.Stream
}

// newGuard reads the policy of the settings. A policy file that cannot be used is
// an error: there is no last good version yet.
func newGuard(cfg config.Agent, kube *policy.KubernetesAPI) (*guard, error) {
	g := &guard{
		settings: policy.Settings{Allow: cfg.Allow, Deny: cfg.Deny, File: cfg.PolicyFile != ""},
		kube:     kube, live: make(map[*admission]struct{}),
	}
	var entries []policy.Entry
	if g.settings.File {
		g.file = &policy.Watcher{Path: cfg.PolicyFile}
		var err error
		if entries, err = g.file.Load(); err != nil {
			return nil, err
		}
	}
	_, err := g.use(entries)
	return g, err
}

// use puts the settings and the entries of a file in force, at once for new
// streams, and cuts the streams that they do not allow.
func (g *guard) use(entries []policy.Entry) (cut int, err error) {
	p, err := policy.Assemble(g.settings, entries, g.kube)
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if v := p.Version(); v != g.status.Version {
		g.status.Version, g.status.Since = v, time.Now()
	}
	all := p.Entries()
	g.status.Rules, g.status.Error, g.status.ErrorAt = len(all), "", time.Time{}
	g.told = nil
	for _, e := range all {
		if !e.Deny && len(g.told) < maxTold {
			g.told = append(g.told, e.Scope())
		}
	}
	g.current.Store(p)
	for a := range g.live {
		if f := a.judge(p); f != nil {
			a.stream.Reset(f)
			delete(g.live, a)
			cut++
		}
	}
	return cut, nil
}

// reject notes that a version of the file is not in force.
func (g *guard) reject(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.Error, g.status.ErrorAt = err.Error(), time.Now()
}

// allowed returns what the policy allows, for people, and its status.
func (g *guard) allowed() ([]string, bus.PolicyStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told, g.status
}

// dial reaches a target for somebody, if the policy of the moment allows it.
func (g *guard) dial(ctx context.Context, d *reach.Dialer, who policy.Asker, t wire.Target) (net.Conn, error) {
	return d.DialUnder(ctx, g.current.Load().For(who), t)
}

// admit takes in a stream that was dialled for somebody. The policy may have
// changed meanwhile: then the stream is reset. Every admission ends with leave.
func (g *guard) admit(s *stream.Stream, who policy.Asker, t wire.Target, reached net.Addr) *admission {
	a := &admission{who: who, target: t, stream: s}
	if tcp, ok := reached.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		a.addr = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := a.judge(g.current.Load()); f != nil {
		s.Reset(f)
	} else {
		g.live[a] = struct{}{}
	}
	return a
}

func (g *guard) leave(a *admission) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, a)
}

// judge returns why a policy does not allow the stream, or nil.
func (a *admission) judge(p *policy.Policy) *wire.Failure {
	p = p.For(a.who)
	d := p.Check(a.target)
	if d.Allowed {
		d = p.CheckAddr(a.target, a.addr)
	}
	if d.Allowed {
		return nil
	}
	return wire.Fail(wire.LegPolicy, wire.CodeDenied, "the agent's policy has changed: %s", d.Reason)
}

// watch follows the policy file until ctx ends.
func (a *Agent) watch(ctx context.Context) {
	if a.guard.file == nil {
		return
	}
	a.guard.file.Run(ctx, func(entries []policy.Entry) {
		cut, err := a.guard.use(entries)
		if err != nil { // the settings were good when the agent started
			a.refusePolicy(err)
			return
		}
		_, status := a.guard.allowed()
		a.log.Info("policy in force", "version", status.Version, "rules", status.Rules, "file", a.cfg.PolicyFile, "streams_cut", cut)
		a.party.Bus.Kick()
	}, a.refusePolicy)
}

func (a *Agent) refusePolicy(err error) {
	a.guard.reject(err)
	a.failed(err)
	_, status := a.guard.allowed()
	a.log.Error("the new policy is not used; the one before stays in force", "error", err, "version", status.Version, "since", status.Since)
	a.party.Bus.Kick()
}
