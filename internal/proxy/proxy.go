package proxy

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/wire"
)

// Options is what a proxy needs beside its settings.
type Options struct {
	Version  string
	Getenv   func(string) string
	Secret   enroll.Secret     // to enrol with instead of what the settings name; nil for none
	Registry *observe.Registry // nil: nothing is counted
	Health   *observe.Health   // nil: nobody asks
	Log      *slog.Logger

	// Listening, if not nil, is called once with the addresses that clients may
	// connect to, in the order HTTP, SOCKS5, forwards.
	Listening func([]net.Addr)
}

// Proxy is the role near the client, in a process of its own. Make one with New
// and run it once.
type Proxy struct {
	cfg     config.Proxy
	opt     Options
	log     *slog.Logger
	streams *observe.Streams
	pipes   *observe.Pipes
	uplink  *observe.Uplink
}

// New prepares a proxy.
func New(cfg config.Proxy, opt Options) *Proxy {
	p := &Proxy{cfg: cfg, opt: opt, log: opt.Log.With("organization", cfg.Organization, "proxy", cfg.Name)}
	if opt.Registry != nil {
		r := opt.Registry.Of(cfg.Organization)
		p.streams, p.pipes, p.uplink = observe.NewStreams(r), observe.NewPipes(r), observe.NewUplink(r)
	}
	return p
}

// Run serves until ctx ends, then lets streams finish for the drain time of the
// settings. It returns nil after a stop that was asked for.
func (p *Proxy) Run(ctx context.Context) error {
	p.log.Info("starting", "version", p.opt.Version, "connect_url", p.cfg.ConnectURL)
	member, err := party.Start(ctx, party.Config{
		Settings: p.cfg.Party, Role: identity.RoleProxy, Name: p.cfg.Name, Replica: p.cfg.Name, Secret: p.opt.Secret,
		Version: p.opt.Version, Getenv: p.opt.Getenv, Metrics: p.uplink, Log: p.log,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer member.Close()

	work, end := context.WithCancel(context.WithoutCancel(ctx)) // what serves streams outlives ctx by the drain time
	defer end()
	var warm []string
	if p.cfg.AgentID != "" {
		warm = append(warm, p.cfg.AgentID)
	}
	dialer, err := NewDialer(work, DialerConfig{
		Organization: p.cfg.Organization, Zone: p.cfg.Zone, Bus: member.Bus, Credentials: member.Credentials, Join: member.JoinPipe,
		Streams: p.streams, Pipes: p.pipes, Log: p.log,
	}, warm...)
	if err != nil {
		return err
	}
	p.pipes.Watch(func() int { idle, _ := dialer.Counts(); return idle }, func() int { _, busy := dialer.Counts(); return busy })

	guests := newGuests(dialer, func(ctx context.Context, c []bus.Credential) ([]bus.Credential, error) {
		return member.Bus.AskRevoked(ctx, p.cfg.Name, c)
	}, p.log)
	fronts, err := Listen(ctx, p.cfg.Listeners, p.verifier(member), FrontConfig{
		Opener: guests, Log: p.log,
		Router: Router{Suffix: p.cfg.Suffix, Organization: p.cfg.Organization, Agent: p.cfg.AgentID},
	})
	if err != nil {
		return err
	}
	p.register(member, dialer)
	if p.opt.Listening != nil {
		p.opt.Listening(fronts.Addrs())
	}
	var bg sync.WaitGroup
	failed := make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	if p.opt.Health != nil {
		defer context.AfterFunc(serving, p.opt.Health.Drain)()
	}
	bg.Go(func() {
		if err := member.Run(work); err != nil {
			failed <- err
			stop()
		}
	})
	bg.Go(func() { _ = dialer.Run(work) })
	bg.Go(func() { guests.run(work) })
	err = fronts.Run(serving, p.cfg.DrainTimeout)
	end()
	bg.Wait()
	p.log.Info("stopped")
	select {
	case lost := <-failed:
		return lost
	default:
		return err
	}
}

// register offers checks of the bus, and of the data path to the default agent.
func (p *Proxy) register(member *party.Party, dialer *Dialer) {
	if p.opt.Health == nil {
		return
	}
	p.opt.Health.Register("bus", func(context.Context) error {
		if !member.Bus.Connected() {
			_, err := member.LastError()
			return wire.Fail(wire.LegBus, wire.CodeLost, "not connected: %v", err)
		}
		return nil
	})
	p.opt.Health.Register("data-path", func(ctx context.Context) error {
		if p.cfg.AgentID == "" { // any agent may be asked for: the way to the relay is what is ours
			_, err := member.Probe(ctx)
			return err
		}
		_, err := dialer.Ping(ctx, p.cfg.AgentID)
		return err
	})
}

func (p *Proxy) verifier(member *party.Party) VerifyFunc {
	return func(ctx context.Context, organization, secret string) (Identity, error) {
		if organization != p.cfg.Organization {
			return Identity{}, wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "this proxy serves organization %s only", p.cfg.Organization)
		}
		h, item, err := member.VerifyToken(ctx, secret)
		if err != nil {
			return Identity{}, err
		}
		return Identity{Organization: organization, Principal: h.Principal, Groups: h.Groups, Item: item}, nil
	}
}
