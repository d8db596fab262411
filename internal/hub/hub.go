package hub

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/relay"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// Options is what a hub needs beside its settings.
type Options struct {
	Version  string
	Registry *observe.Registry // nil: nothing is counted
	Health   *observe.Health   // required: the API answers with it
	Log      *slog.Logger
	Getenv   func(string) string // for HTTPS_PROXY and NO_PROXY on the way to issuers; nil for none

	// Started, if not nil, is called once when the hub serves.
	Started func(Info)
}

// Info tells people where a running hub is.
type Info struct {
	Fresh          bool     // this was its first start
	Listen         net.Addr // of the one port
	TrustDomain    string
	Pin            string // of the hub's CA, the one to tell people
	PublicCA       bool   // it presents a certificate of a public CA
	CAFile         string
	AdminTokenFile string
	Clients        []net.Addr // of its own proxies, in the order HTTP, SOCKS5, forwards
}

// Hub is the control side in one process: identity, registry, bus, relay, API,
// and proxies of its own if its settings have any. Make one with New and run it once.
type Hub struct {
	cfg config.Hub
	opt Options
	log *slog.Logger

	state    *State
	bus      *embedded.Server
	relay    *relay.Relay
	tenants  *tenants
	auth     *Authenticator
	api      *API
	gateway  *gateway.Gateway
	serving  *serving
	registry *registry.Registry
	issued   *Issued
	issuers  *oidc.Verifier
	pod      *podcluster.Cluster
	quotas   *Quotas
	rotation *Rotation
	orders   *Orders
	access   *Access
	audit    *auditLog
	identity *issuer.Issuer // of identity tokens; nil: there is none
}

// New prepares a hub. Nothing is touched before Run.
func New(cfg config.Hub, opt Options) *Hub { return &Hub{cfg: cfg, opt: opt, log: opt.Log} }

// Run serves until ctx ends, then lets streams finish for the drain time of the
// settings. It returns nil after a stop that was asked for. A busy port or a state
// directory that cannot be used ends it before anything was changed.
func (h *Hub) Run(ctx context.Context) error {
	var lc net.ListenConfig
	lc.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}
	ln, err := lc.Listen(ctx, "tcp", h.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer func() { _ = ln.Close() }()
	h.state, err = OpenState(h.cfg.Data, StateOptions{TrustDomain: h.cfg.TrustDomain, BusKeyFile: h.cfg.BusKeyFile, Log: h.log})
	if err != nil {
		return err
	}
	defer func() { _ = h.state.Close() }()
	if err := h.open(ctx); err != nil {
		h.close()
		return err
	}
	return h.serve(ctx, ln)
}

// open starts everything that does not face the network.
func (h *Hub) open(ctx context.Context) (err error) {
	if h.serving, err = newServing(h.cfg, h.state, h.log); err != nil {
		return err
	}
	seeds, err := h.state.busSeeds()
	if err != nil {
		return err
	}
	h.bus, err = embedded.Start(h.state.busConfig(h.log), seeds)
	if err != nil {
		return err
	}
	kv, err := h.bus.KV(ctx, "registry")
	if err != nil {
		return err
	}
	sessions, err := h.bus.ExpiringKV(ctx, "sessions", registry.SessionAge)
	if err != nil {
		return err
	}
	h.registry = registry.NewWithSessions(kv, sessions, nil)
	h.issuers = oidc.NewVerifier(oidc.Options{Getenv: h.opt.Getenv})
	h.pod = podcluster.New(h.opt.Getenv, podcluster.Dir)
	signIn, err := NewSignIn(h.cfg.SignIn, h.signInOptions())
	if err != nil {
		return err
	}
	h.auth = NewAuthenticator(h.state, h.registry, signIn, nil)
	credentials, err := h.bus.ExpiringKV(ctx, "grants", IssuedAge)
	if err != nil {
		return err
	}
	if h.issued, err = OpenIssued(ctx, credentials, h.registry, h.bus, h.log, nil); err != nil {
		return err
	}
	h.quotas = NewQuotas(QuotasConfig{
		Registry: h.registry, Bus: h.bus, Defaults: h.cfg.Limits(), Log: h.log,
		Count:   func(org string) (agents, connections int) { return h.issued.Agents(org), h.bus.ConnectionsOf(org) },
		Changed: func(org string) { h.orders.Changed(org) },
	})
	h.issued.Limit(h.quotas.Book())
	if err := h.openAudit(ctx); err != nil {
		return err
	}
	h.issued.Audit(h.audit)
	var streams *observe.Streams
	var pipes *observe.Pipes
	var relays *observe.Relay
	var metrics *observe.Hub
	var gateways *observe.Gateway
	if r := h.opt.Registry; r != nil {
		streams, pipes, relays, metrics = observe.NewStreams(r), observe.NewPipes(r), observe.NewRelay(r), observe.NewHub(r)
		gateways = observe.NewGateway(r)
		observe.NewLimits(r, func() []limit.Usage { return h.quotas.Book().Sum(limit.Organization) })
	}
	h.relay = relay.New(relay.Config{
		Node:        h.state.Node(),
		Certificate: h.serving.certificate,
		Roots:       func() *x509.CertPool { return h.state.Trust().Pool },
		Bus:         h.bus.Serve,
		HTTP:        true,
		Revoked:     h.issued.Revoked,
		Limits:      h.quotas.Book(),
		Metrics:     relays,
		Log:         h.log,
	})
	h.issued.Attach(h.relay)
	h.rotation = NewRotation(RotationConfig{
		State: h.state, Issued: h.issued, CredentialTTL: h.cfg.CredentialTTL, Changed: h.serving.look, Log: h.log,
	})
	h.access = NewAccess(h.registry, func(org string) { h.orders.Changed(org) }, h.log, nil)
	if h.orders, err = NewOrders(h.state, h.registry, h.log, h.access.Order, h.quotas.Order); err != nil {
		return err
	}
	h.tenants = &tenants{
		state: h.state, bus: h.bus, zone: h.cfg.Zone, audit: h.audit, join: h.relay.JoinLocal, streams: streams, pipes: pipes,
		orders: h.orders, access: h.access, quotas: h.quotas, issued: h.issued, log: h.log, all: make(map[string]*tenant),
	}
	h.tenants.ctx, h.tenants.end = context.WithCancel(context.WithoutCancel(ctx))
	pipes.Watch(func() int { idle, _ := h.tenants.counts(); return idle }, func() int { _, busy := h.tenants.counts(); return busy })
	metrics.Watch(h.tenants.replicas)
	orgs := NewOrganizations(h.state, h.registry, h.tenants.start, h.tenants.stop)
	if err := orgs.Open(ctx); err != nil {
		return err
	}
	if err := h.issued.VoidUsers(); err != nil {
		return err
	}
	if h.identity, err = h.openIssuer(); err != nil {
		return err
	}
	h.api, err = NewAPI(APIOptions{
		State: h.state, Registry: h.registry, Authenticator: h.auth, Issuers: h.issuers, SignIn: signIn, Organizations: orgs, Issued: h.issued,
		Rotation: h.rotation, Backup: h.backup, Orders: h.orders, Access: h.access, Quotas: h.quotas, Issuer: h.identity, Bus: h.bus, Presence: h.tenants, Explainer: h.tenants,
		Health: h.opt.Health, Metrics: metrics, Version: h.opt.Version, CredentialTTL: h.cfg.CredentialTTL,
		PublicCA: h.cfg.TLSCertFile != "", Audit: h.audit, Flood: h.audit.flood, AuditLog: h.audit, Log: h.log,
	})
	if err != nil {
		return err
	}
	return h.openGateway(signIn, gateways)
}

// backup writes a backup of the hub.
func (h *Hub) backup(ctx context.Context, w io.Writer) error {
	return Backup(ctx, w, h.state, h.bus, h.opt.Version)
}

// serve faces the network until ctx ends.
func (h *Hub) serve(ctx context.Context, ln net.Listener) error {
	side, err := h.listenGateway(ctx)
	if err != nil {
		h.close()
		return err
	}
	fronts, err := proxy.Listen(ctx, h.cfg.Listeners, h.verify, proxy.FrontConfig{
		Opener: h.tenants, Observer: h.audit, Log: h.log,
		Router: proxy.Router{Suffix: h.cfg.Suffix, Organization: registry.DefaultOrganization, Organizations: true},
	})
	if err != nil {
		side.close()
		h.close()
		return err
	}
	// Accepting goes on while streams finish, so that agents stay on the bus.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	web := &webEntrance{next: issuerEntrance(h.identity, newGatewayEntrance(h.api, h.gateway)), take: func(c net.Conn) { h.relay.Take(work, c) }, log: h.log}
	server := NewHTTPServer(web, h.log)
	gate := newWebGate(h.relay.HTTP(), maxWeb, maxWebPerSource)
	server.ConnState = gate.changed
	serving, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(serving, h.opt.Health.Drain)()
	var bg sync.WaitGroup
	failed := make(chan error, 3)
	bg.Go(func() { h.serving.run(work) })
	bg.Go(func() { h.issued.Run(work) })
	bg.Go(func() { sweepSessions(work, h.registry, h.issued, h.log) })
	bg.Go(func() { h.rotation.Run(work) })
	bg.Go(func() { h.access.Run(work) })
	if h.identity != nil {
		bg.Go(func() { h.identity.Run(work) })
	}
	drained := h.closeGateway(serving)
	if side != nil {
		if side.serving != h.serving {
			bg.Go(func() { side.serving.run(work) })
		}
		bg.Go(func() {
			if err := side.run(); err != nil {
				failed <- err
				stop()
			}
		})
	}
	bg.Go(func() {
		if err := h.relay.Serve(work, ln); err != nil {
			failed <- err
			stop()
		}
	})
	bg.Go(func() {
		if err := server.Serve(gate); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			failed <- err
			stop()
		}
	})
	h.opt.Health.Register("one-port", h.checkPort(ln.Addr()))
	h.opt.Health.Register("bus", h.checkBus)
	info := Info{
		Fresh: h.state.Fresh(), Listen: ln.Addr(), TrustDomain: h.state.TrustDomain(), Pin: h.state.Trust().Pin(),
		PublicCA: h.cfg.TLSCertFile != "", CAFile: h.state.CAFile(), AdminTokenFile: h.state.AdminTokenFile(), Clients: fronts.Addrs(),
	}
	h.log.Info("ready", "listen", info.Listen.String(), "trust_domain", info.TrustDomain, "ca_pin", info.Pin, "node", h.state.Node())
	h.audit.Record(audit.Record{Action: audit.Start, Object: "hub:" + h.state.Node(), What: "version " + h.opt.Version, OK: true})
	if h.opt.Started != nil {
		h.opt.Started(info)
	}

	err = fronts.Run(serving, h.cfg.DrainTimeout)
	h.audit.Record(audit.Record{Action: audit.Stop, Object: "hub:" + h.state.Node(), OK: true})
	h.drain()
	stop()
	drained()
	end()
	side.close()
	past, cancel := context.WithTimeout(context.Background(), time.Second)
	_ = server.Shutdown(past)
	cancel()
	_ = server.Close()
	h.close()
	web.wait()
	bg.Wait()
	h.log.Info("stopped")
	select {
	case lost := <-failed:
		return lost
	default:
		return err
	}
}

// drain waits, for at most the drain time, until no bytes pass over the pipes of
// other proxies.
func (h *Hub) drain() {
	limit := time.Now().Add(h.cfg.DrainTimeout)
	if h.relay.Pipes() == 0 {
		return
	}
	h.log.Info("draining", "pipes", h.relay.Pipes(), "limit", h.cfg.DrainTimeout)
	h.relay.Busy()
	for {
		time.Sleep(time.Second)
		if h.relay.Busy() == 0 || time.Now().After(limit) {
			return
		}
	}
}

// close ends what open started, in the opposite order.
func (h *Hub) close() {
	if h.relay != nil {
		h.relay.Close()
	}
	if h.tenants != nil {
		h.tenants.end()
		h.tenants.wait()
	}
	if h.audit != nil {
		h.audit.end() // after all who record, and before its store
	}
	if h.bus != nil {
		h.bus.Shutdown()
	}
	if h.issuers != nil {
		h.issuers.Close()
		h.pod.Close()
	}
}

// verify checks a robot token, or a person's session, that a client of the hub's own proxies shows as its
// password.
func (h *Hub) verify(ctx context.Context, organization, secret string) (proxy.Identity, error) {
	p, err := h.auth.Authenticate(ctx, secret)
	if err != nil {
		f := wire.AsFailure(err, wire.LegClient)
		if f.Code == wire.CodeUnauthenticated {
			f.Leg = wire.LegClient
		}
		return proxy.Identity{}, f
	}
	if p.Kind == identity.KindUser {
		if err := h.api.holds(ctx, p, organization, role.Read); err != nil {
			f := wire.AsFailure(err, wire.LegClient)
			f.Leg = wire.LegClient
			return proxy.Identity{}, f
		}
	} else if p.Admin() || p.Organization != organization {
		return proxy.Identity{}, wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the token is not one of organization %s", organization)
	}
	return proxy.Identity{Organization: organization, Principal: p.Principal, Groups: p.Groups, Item: p.Item}, nil
}
