package agent

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/impersonate"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// kubernetesOf returns the API server of the settings, or that of the pod; nil if
// there is none.
func kubernetesOf(cfg *config.Agent, getenv func(string) string) (*policy.KubernetesAPI, error) {
	if cfg.Kubernetes.API == "" {
		return policy.KubernetesFromEnv(getenv)
	}
	t, err := cfg.Kubernetes.Address()
	if err != nil {
		return nil, err
	}
	return &policy.KubernetesAPI{Host: t.Host, Port: t.Port}, nil
}

// newGateway returns the agent's end of the gateway, or nil if it is switched off.
func (a *Agent) newGateway() (*impersonate.Server, error) {
	if !a.cfg.Gateway {
		return nil, nil
	}
	k := a.cfg.Kubernetes
	address, err := k.Address()
	if err != nil {
		return nil, err
	}
	s, err := impersonate.New(impersonate.Config{
		API:      impersonate.API{Address: address, TokenFile: k.TokenFile, CAFile: k.CAFile, ServiceCAFile: k.ServiceCAFile},
		Verifier: assertion.NewVerifier(a.orders.public, a.cfg.Organization, a.cfg.AgentID),
		Judge:    judge{a}, Log: a.log, Metrics: a.answers,
	})
	if err != nil {
		return nil, wire.Fail(wire.LegAgent, wire.CodeBadRequest, "the gateway cannot be served: %v", err).WithCause(err).
			WithHint("see --kubernetes-token-file, --kubernetes-ca-file and --service-ca-file, or leave --gateway out")
	}
	return s, nil
}

// public returns the hub's keys of the moment; none before the first.
func (o *hubOrders) public() []string {
	if keys := o.keys.Load(); keys != nil {
		return *keys
	}
	return nil
}

// end is what a stream leads to: a target that was dialled, or the agent itself.
type end struct {
	conn    net.Conn
	gateway *impersonate.Server // nil: conn is set
	under   *standing           // under which it was reached; nil once it was admitted
}

// reach reaches what a stream asks for.
func (l *lane) reach(ctx context.Context, who policy.Asker, t wire.Target) (end, error) {
	a := l.agent
	if t.Kind != wire.KindGateway {
		conn, under, err := a.guard.dial(ctx, a.reach, who, t)
		return end{conn: conn, under: under}, err
	}
	// Whom the hub asks for is told by each request, and judged then.
	if l.pipe.Holder().Principal.Kind != identity.KindHub {
		return end{}, wire.Fail(wire.LegPolicy, wire.CodeDenied, "the gateway of an agent is for the hub alone").
			WithHint("use the hub's URL: https://HUB/%s/", a.cfg.AgentID)
	}
	under := a.guard.standing(who)
	if d := under.owner.Check(t); !d.Allowed {
		return end{}, reach.Denied(d)
	}
	return end{gateway: a.gateway, under: under}, nil
}

// String returns what was reached, for the proxy and the log.
func (e end) String() string {
	if e.gateway != nil {
		return wire.Gateway().String()
	}
	return e.conn.RemoteAddr().String()
}

// addr returns the address that was dialled; one that is not valid if there is none.
func (e end) addr() netip.AddrPort {
	if e.conn == nil {
		return netip.AddrPort{}
	}
	return addrOf(e.conn)
}

func addrOf(conn net.Conn) netip.AddrPort {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (e end) close() {
	if e.conn != nil {
		_ = e.conn.Close()
	}
}

// carry joins a stream to what it leads to, until it ends. It is not for the gateway.
func (e end) carry(s *stream.Stream) (stream.Stats, error) {
	return s.Carry(e.conn, nil, wire.LegTarget)
}

// hand gives a stream to the gateway, and goes on with its lane when it has ended. No
// goroutine waits for that: there may be a stream for each of thousands of watches.
func (o *serving) hand() {
	l, a := o.lane, o.agent
	c := &counted{Stream: o.s}
	a.wg.Add(1)
	o.to.gateway.Take(c, func() {
		go func() {
			defer a.wg.Done()
			o.end(stream.Stats{In: c.in.Load(), Out: c.out.Load()}, nil)
			<-l.done
			o.leave()
			l.vacate()
			a.serve(l)
		}()
	})
}

// counted is a stream that counts its bytes.
type counted struct {
	*stream.Stream
	in, out atomic.Int64
}

// Bond implements assertion.Bonded. It is the pipe's, whose streams follow each other.
func (c *counted) Bond() *assertion.Bond { return assertion.BondOf(c.Pipe()) }

// Read implements net.Conn.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	c.in.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Stream.Write(b)
	c.out.Add(int64(n))
	return n, err
}

// hubProxy is the name of the hub's own proxies, through which requests come.
const hubProxy = "hub"

// judge decides about requests through the gateway, as the guard does about streams.
type judge struct{ *Agent }

// Admit implements impersonate.Judge. Who is denied the gateway by the owner has none
// of its services either.
func (j judge) Admit(ctx context.Context, v impersonate.Visit) (leave func(), err error) {
	g := j.guard
	v.Who.Proxy = hubProxy
	if !v.Own {
		if err := g.await(ctx); err != nil {
			return nil, err
		}
	}
	under := g.standing(v.Who)
	s := under.sides
	s.free = s.free || v.Own
	d := s.Check(v.Target)
	if d.Allowed && v.Target.Kind != wire.KindGateway {
		if owner := s.owner.Check(wire.Gateway()); !owner.Allowed {
			d = owner
		}
	}
	if !d.Allowed {
		return nil, j.denied(d)
	}
	a := &admission{who: v.Who, target: v.Target, own: v.Own, what: cutter(v.Cut)}
	if f := g.enter(a, under); f != nil {
		return nil, f
	}
	return func() { g.leave(a) }, nil
}

// Dial implements impersonate.Judge.
func (j judge) Dial(ctx context.Context, who policy.Asker, t wire.Target) (net.Conn, error) {
	who.Proxy = hubProxy
	conn, under, err := j.guard.dial(ctx, j.reach, who, t)
	if err != nil {
		return nil, err
	}
	c := &admitted{Conn: conn, guard: j.guard}
	c.admission = &admission{who: who, target: t, addr: addrOf(conn), what: c}
	if f := j.guard.enter(c.admission, under); f != nil {
		_ = conn.Close()
		return nil, f
	}
	return c, nil
}

func (j judge) denied(d policy.Decision) *wire.Failure {
	f := reach.Denied(d)
	if d.Hint == "" && d.Missing != "" {
		f.Hint = permit(j.cfg, d.Missing)
	}
	return f
}

// cutter is a request as an admission is about.
type cutter func(*wire.Failure)

// Reset implements resetter.
func (c cutter) Reset(f *wire.Failure) { c(f) }

// admitted is a connection to a service, which breaks when it is no longer allowed.
type admitted struct {
	net.Conn
	guard     *guard
	admission *admission
	once      sync.Once
}

// Reset implements resetter.
func (c *admitted) Reset(*wire.Failure) { _ = c.Conn.Close() }

// Close implements net.Conn.
func (c *admitted) Close() error {
	c.once.Do(func() { c.guard.leave(c.admission) })
	return c.Conn.Close()
}
