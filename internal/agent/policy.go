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

// guard holds the policy and the hub's access grants of the moment, and the streams
// that live under them, so that a change cuts those which are no longer allowed. Both
// sides have to allow a stream. Safe for concurrent use.
type guard struct {
	agent    string // its ID
	settings policy.Settings
	kube     *policy.KubernetesAPI
	file     *policy.Watcher // nil without a policy file

	current  atomic.Pointer[policy.Policy]
	governed atomic.Bool             // the hub gives orders: without some nobody is let in
	granted  atomic.Pointer[granted] // nil before the first orders
	known    chan struct{}           // closed by the first orders
	expiry   chan struct{}           // holds one when grants have changed

	reviews atomic.Uint64 // how often live was looked through, as something had changed; written with mu held

	mu     sync.Mutex
	live   map[*admission]struct{}
	status bus.PolicyStatus
	told   []string // what is allowed, for the presence
}

// admission is a stream that was let in. Exactly these values were judged, and are
// judged again at each change.
type admission struct {
	who     policy.Asker
	target  wire.Target
	addr    netip.AddrPort // what target led to
	own     bool           // the hub's, for itself: access grants are not for it
	what    resetter
	verdict verdict // by which it was let in
}

// resetter is what an admission is about: a stream, a request through the gateway, or
// a connection for some. Reset ends it, telling why, and does not wait.
type resetter interface{ Reset(f *wire.Failure) }

// permit says how the agent's owner would allow what a rule says. It travels to whoever
// was refused, so it names no file.
func permit(cfg config.Agent, rule string) string {
	switch {
	case cfg.PolicyFile != "":
		return "add " + rule + " to the allow rules in the agent's policy file"
	case cfg.Listed:
		return "add " + rule + " to what the agent allows organization " + cfg.Organization + " in its configuration file"
	default:
		return "start the agent with --allow " + rule
	}
}

// newGuard reads the policy of the settings. A policy file that cannot be used is
// an error: there is no last good version yet.
func newGuard(cfg config.Agent, kube *policy.KubernetesAPI) (*guard, error) {
	g := &guard{
		settings: policy.Settings{
			Allow: cfg.Allow, Deny: cfg.Deny, File: cfg.PolicyFile != "", Gateway: cfg.Gateway,
			NoDefault: cfg.Kubernetes.API != "" && !cfg.Kubernetes.OfPod,
		},
		agent: cfg.AgentID, kube: kube, live: make(map[*admission]struct{}),
		known: make(chan struct{}), expiry: make(chan struct{}, 1),
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
	return g.review(), nil
}

// review judges all streams again and cuts those that are no longer allowed; g.mu is
// held.
func (g *guard) review() (cut int) {
	g.reviews.Add(1)
	for a := range g.live {
		if f := a.judge(g.sides(a.who)); f != nil {
			a.what.Reset(f)
			delete(g.live, a)
			cut++
		}
	}
	return cut
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

// standing is who decides about an asker, and up to which review that is so. It is
// handed on as a pointer: where a stream is served, the stack is dear.
type standing struct {
	sides
	reviews uint64
}

func (g *guard) standing(who policy.Asker) *standing {
	reviews := g.reviews.Load() // before what it tells of
	return &standing{g.sides(who), reviews}
}

// valid reports whether the same sides would decide now; g.mu is held.
func (g *guard) valid(s *standing) bool {
	return s.reviews == g.reviews.Load() && s.free == !g.governed.Load()
}

// dial reaches a target for somebody, if the policy and the access grants of the
// moment allow it.
func (g *guard) dial(ctx context.Context, d *reach.Dialer, who policy.Asker, t wire.Target) (net.Conn, *standing, error) {
	if err := g.await(ctx); err != nil {
		return nil, nil, err
	}
	s := g.standing(who)
	conn, err := d.DialUnder(ctx, s, t)
	return conn, s, err
}

// admit takes in a stream that was dialled for somebody under what stood then. It may
// have changed meanwhile: then the stream is judged by what stands now, and reset if
// that does not allow it. Every admission ends with leave.
func (g *guard) admit(s *stream.Stream, who policy.Asker, t wire.Target, reached end) *admission {
	a := &admission{who: who, target: t, what: s, addr: reached.addr(), own: reached.gateway != nil}
	if f := g.enter(a, reached.under); f != nil {
		s.Reset(f)
	}
	return a
}

// enter takes in what an admission is about, or returns why not.
func (g *guard) enter(a *admission, under *standing) *wire.Failure {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.valid(under) {
		under = g.standing(a.who)
	}
	f := a.judge(under.sides)
	if f == nil {
		g.live[a] = struct{}{}
	}
	return f
}

func (g *guard) leave(a *admission) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, a)
}

// judge returns why a stream is not allowed now, or nil, and notes the verdict; the
// guard's mu is held.
func (a *admission) judge(by sides) *wire.Failure {
	by.free = by.free || a.own
	v := by.verdict(a.target, a.addr)
	if v.allowed() {
		a.verdict = v
		return nil
	}
	if !v.access.Allowed {
		return wire.Fail(wire.LegPolicy, wire.CodeDenied, "access has changed: %s", v.access.Reason).WithHint("%s", v.access.Hint)
	}
	return wire.Fail(wire.LegPolicy, wire.CodeDenied, "the agent's policy has changed: %s", v.owner.Reason)
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
		a.changed("policy:"+status.Version, "put in force", nil)
		a.log.Info("policy in force", "version", status.Version, "rules", status.Rules, "file", a.cfg.PolicyFile, "streams_cut", cut)
		a.party.Bus.Kick()
	}, a.refusePolicy)
}

func (a *Agent) refusePolicy(err error) {
	a.guard.reject(err)
	a.failed(err)
	_, status := a.guard.allowed()
	a.changed("policy:"+status.Version, "kept, as the newer one is not used", err)
	a.log.Error("the new policy is not used; the one before stays in force", "error", err, "version", status.Version, "since", status.Since)
	a.party.Bus.Kick()
}
