// Package agent is the role in the private network: it dials out to the hub, says
// who it is, comes to the relay when a proxy asks for a meeting, and reaches targets
// that its owner's rules allow. It listens on nothing.
package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/impersonate"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/wire"
)

// Limits of an agent.
const (
	maxPipes    = 8192 // at once
	maxJoining  = 256  // at once; further ones are refused
	joinTimeout = 15 * time.Second
	partingTime = time.Second // for proxies to hear that the agent stops
)

// Options is what an agent needs beside its settings.
type Options struct {
	Version  string
	Getenv   func(string) string
	Registry *observe.Registry // nil: nothing is counted
	Health   *observe.Health   // nil: nobody asks
	Log      *slog.Logger

	// Resolver finds the addresses of targets; nil means the system's.
	Resolver reach.Resolver

	// MaxPipes bounds the pipes of each organization at once. 0 means 8192, or fewer
	// where the process may not open so many files.
	MaxPipes int

	// Retry is the pause before an organization that cannot be served is tried again,
	// for the first time; further ones are longer, up to 12 times as long. 0 means 5 s.
	// It is for Members.
	Retry time.Duration
}

// Agent is one replica of an agent in one organization. Make one with New and run it once.
type Agent struct {
	cfg   config.Agent
	opt   Options
	limit int    // of pipes at once
	ready func() // is called when it serves
	log   *slog.Logger
	reach *reach.Dialer
	guard *guard
	quota *limit.Book
	epoch string
	start time.Time

	*meters
	visits *audit.Streams // the streams, as the audit log has them

	buffers *pipe.Buffers
	keeper  *pipe.Keeper
	inner   *tls.Config // shared by all pipes
	party   *party.Party
	orders  hubOrders
	gateway *impersonate.Server // nil: switched off

	life context.Context // until the end of the drain: of joining pipes and dialling targets

	wg       sync.WaitGroup // lanes and what they start
	mu       sync.Mutex
	lanes    map[*lane]struct{}
	joining  int
	draining bool
	since    time.Time
	lastErr  error
	lastAt   time.Time

	serving           atomic.Int64  // streams, from their OPEN on
	open              atomic.Int64  // those of them that are open
	bytesIn, bytesOut atomic.Uint64 // from the pipes, to the pipes
}

// New checks the settings of one organization, reads the policy file if there is one,
// and prepares an agent. A policy file that cannot be used is a *policy.FileError.
func New(cfg config.Agent, opt Options) (*Agent, error) {
	return newAgent(cfg, opt, newMeters(opt.Registry, cfg.Label()), opt.pipesFor(1), func() {})
}

func newAgent(cfg config.Agent, opt Options, m *meters, limit int, ready func()) (*Agent, error) {
	kube, err := kubernetesOf(&cfg, opt.Getenv)
	if err != nil {
		return nil, err
	}
	g, err := newGuard(cfg, kube)
	if err != nil {
		return nil, err
	}
	log := opt.Log.With("organization", cfg.Organization, "agent", cfg.AgentID, "replica", cfg.Name)
	if cfg.Alias != "" {
		log = log.With("alias", cfg.Alias)
	}
	a := &Agent{
		cfg: cfg, opt: opt, limit: limit, ready: ready, log: log, meters: m,
		guard: g, quota: newQuota(cfg, log), epoch: rand.Text(), start: time.Now(), since: time.Now(),
		buffers: pipe.NewBuffers(), keeper: pipe.NewKeeper(), lanes: make(map[*lane]struct{}),
		orders: hubOrders{given: make(chan struct{}, 1)},
	}
	a.reach = &reach.Dialer{Policy: g.current.Load, Resolver: opt.Resolver, Permit: func(rule string) string { return permit(cfg, rule) }}
	a.visits = audit.NewStreams(m.spool, cfg.AuditOpenAfter)
	if a.gateway, err = a.newGateway(); err != nil {
		return nil, err
	}
	m.agent.Store(a)
	return a, nil
}

// Run serves until ctx ends, then lets streams finish for the drain time of the
// settings. It returns nil after a stop that was asked for, and the *wire.Failure
// that a person has to mend otherwise.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("starting", "version", a.opt.Version, "connect_url", a.cfg.ConnectURL)
	allowed, status := a.guard.allowed()
	switch {
	case len(allowed) > 0:
		a.log.Info("may be reached through this agent", "allow", allowed, "rules", status.Rules, "policy", status.Version)
	case a.cfg.PolicyFile != "":
		a.log.Warn("nothing may be reached: the policy file allows nothing", "file", a.cfg.PolicyFile)
	default:
		a.log.Warn("nothing may be reached: there is no rule that allows, and this is not a pod", "hint", permit(a.cfg, "tcp:HOST:PORT"))
	}
	if a.gateway != nil {
		a.log.Info("this agent is a cluster at the hub's gateway", "api", a.cfg.Kubernetes.API, "token_file", a.cfg.Kubernetes.TokenFile)
	}
	p, err := party.Start(ctx, party.Config{
		Settings: a.cfg.Party, Role: identity.RoleAgent, Name: a.cfg.AgentID, Replica: a.cfg.Name,
		Version: a.opt.Version, Getenv: a.opt.Getenv, Metrics: a.uplink, Log: a.log,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	a.party, a.inner = p, identity.InnerServerConfig(p.Credentials, a.welcome)
	defer p.Close()
	a.obey(p.Session.Grant())
	p.Session.OnRenew(a.obey) // a hub that was upgraded begins to give orders

	defer a.runAudit(ctx)()
	// What serves streams outlives ctx by the drain time.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	a.life = work
	var bg sync.WaitGroup
	failed := make(chan error, 1)
	bg.Go(func() {
		if err := p.Run(work); err != nil {
			failed <- err
		}
	})
	bg.Go(func() { _ = a.keeper.Run(work) })
	bg.Go(func() { a.watch(work) })
	bg.Go(func() { a.follow(work) })
	bg.Go(func() { a.guard.expire(work) })
	if a.gateway != nil {
		bg.Go(func() { _ = a.gateway.Run(work) })
	}
	stop, err := p.Bus.ServeMeet(a.cfg.AgentID, a.cfg.Name, a.epoch, a.meet)
	if err == nil {
		bg.Go(func() { // whoever hears of this replica may ask it at once
			if err := p.Bus.Announce(work, a.presence); err != nil {
				failed <- err
			}
		})
		a.log.Info("ready", "hub", p.Uplink.Endpoint().Address(), "identity", p.Credentials().ID)
		if a.opt.Health != nil {
			a.opt.Health.Register("bus", a.checkBus)
			a.opt.Health.Register("relay", a.checkRelay)
		}
		a.ready()
		select {
		case <-ctx.Done():
			if a.opt.Health != nil {
				a.opt.Health.Drain()
			}
		case err = <-failed:
		}
		a.drain(stop)
	}
	end()
	bg.Wait()
	a.wg.Wait()
	a.log.Info("stopped")
	return err
}

// drain stops taking work and waits for streams to end. Idle pipes are left to the
// proxies for a moment, who close them when they hear of the drain: a pipe that closes
// just when a stream is asked for would leave the proxy in doubt whether the target has
// heard of it, and a refusal does not.
func (a *Agent) drain(stop func()) {
	a.mu.Lock()
	a.draining, a.since = true, time.Now()
	a.mu.Unlock()
	a.party.Bus.Kick()
	stop()
	if a.gateway != nil {
		a.gateway.Drain()
	}
	if n := a.serving.Load(); n > 0 {
		a.log.Info("draining", "streams", n, "limit", a.cfg.DrainTimeout)
	}
	limit := time.NewTimer(a.cfg.DrainTimeout)
	defer limit.Stop()
	parting := time.NewTimer(partingTime)
	defer parting.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for parted := false; a.serving.Load() > 0 || !parted; {
		select {
		case <-limit.C:
			if n := a.serving.Load(); n > 0 {
				a.log.Warn("cutting streams that did not end in time", "streams", n)
			}
			return
		case <-parting.C:
			parted = true
		case <-look.C:
			a.mu.Lock()
			parted = parted || len(a.lanes)+a.joining == 0
			a.mu.Unlock()
			if parted && a.gateway != nil {
				a.gateway.CloseIdle()
			}
		}
	}
}

func (a *Agent) checkBus(context.Context) error {
	if !a.party.Bus.Connected() {
		_, err := a.party.LastError()
		return wire.Fail(wire.LegBus, wire.CodeLost, "not connected: %v", err)
	}
	return nil
}

// checkRelay sends bytes the way that pipes go.
func (a *Agent) checkRelay(ctx context.Context) error {
	_, err := a.party.Probe(ctx)
	return err
}

// presence is what this replica says of itself.
func (a *Agent) presence() bus.Presence {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	rtt, err := a.party.Bus.RTT(ctx)
	if err == nil {
		a.uplink.RTT(rtt)
	}
	idle, busy := a.count()
	allowed, status := a.guard.allowed()
	a.mu.Lock()
	defer a.mu.Unlock()
	p := bus.Presence{
		Agent: a.cfg.AgentID, Replica: a.cfg.Name, Epoch: a.epoch, Version: a.opt.Version, Zone: a.cfg.Zone,
		State: bus.StateReady, Started: a.start, Since: a.since, Streams: int(a.open.Load()), Pipes: idle + busy,
		BytesIn: a.bytesIn.Load(), BytesOut: a.bytesOut.Load(), RTT: rtt, Allow: allowed, Policy: &status,
		Orders: a.guard.orders(), Gateway: a.gateway != nil,
	}
	if a.draining {
		p.State = bus.StateDraining
	}
	if at, err := a.party.LastError(); err != nil {
		p.LastError, p.LastErrorAt = err.Error(), at
	}
	if a.lastErr != nil && a.lastAt.After(p.LastErrorAt) {
		p.LastError, p.LastErrorAt = a.lastErr.Error(), a.lastAt
	}
	p.Address = localAddress(a.lanes)
	return p
}

// localAddress is where the agent connects from, as far as its pipes show.
func localAddress(lanes map[*lane]struct{}) string {
	for l := range lanes {
		if host, _, err := net.SplitHostPort(l.pipe.LocalAddr().String()); err == nil {
			return host
		}
	}
	return ""
}

func (a *Agent) count() (idle, busy int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for l := range a.lanes {
		if l.busy {
			busy++
		} else {
			idle++
		}
	}
	return idle, busy
}

// failed remembers the latest error for the status.
func (a *Agent) failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastErr, a.lastAt = err, time.Now()
}
