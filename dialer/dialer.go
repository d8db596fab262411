// Package dialer lets a Go program reach what is behind Postern's agents, without a
// proxy in between: the program enrols at the hub by itself and gets a net.Conn.
//
//	d, err := dialer.New(ctx, dialer.Options{
//		ConnectURL: "tls://hub.example.org", CAFile: "ca.crt",
//		Organization: "acme", TokenFile: "token.json",
//	})
//	if err != nil {
//		return err
//	}
//	defer d.Close()
//	conn, err := d.Dial(ctx, "office/tcp:db.example.org:5432")
//
// A Dialer is made once and used for everything: it holds the connections to the hub and
// to the agents' replicas, renews its credentials, and finds another replica when one
// goes. Names are resolved where the agent stands, and the agent's rules and the
// organization's access grants decide what may be reached, at each Dial and from then on.
//
// Clients of HTTP use [Dialer.Transport], clients that take a function to dial with, such
// as database drivers, [Dialer.DialContext]. Clients of Kubernetes find both ways to a
// cluster, the tunnel and the hub's gateway, in the module postern.dev/postern/dialer/kube.
//
// # Errors
//
// Whatever fails on the way to a target is an [*Error], which tells where (the leg), what
// (a stable code), and what to do about it.
package dialer

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// Dialer opens connections through the agents of one organization. It is safe for
// concurrent use. Make one with New and close it.
type Dialer struct {
	router  proxy.Router
	opener  *proxy.Dialer
	member  *party.Party
	end     context.CancelFunc
	running sync.WaitGroup
	done    chan struct{} // closed when the Dialer has ended
	closing atomic.Bool

	mu  sync.Mutex
	err error // why it ended by itself
}

// New enrols at the hub and returns a Dialer. What passes, such as a hub that is down, is
// waited for until ctx ends; what somebody has to mend, such as a token that was revoked,
// is an *Error at once. Once New has returned, the end of ctx has no effect.
func New(ctx context.Context, o Options) (*Dialer, error) {
	cfg, err := o.party()
	if err != nil {
		return nil, public(err)
	}
	member, err := party.Start(ctx, cfg)
	if err != nil {
		return nil, public(err)
	}
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	opener, err := proxy.NewDialer(work, proxy.DialerConfig{
		Organization: cfg.Settings.Organization, Zone: o.Zone, Bus: member.Bus, Credentials: member.Credentials, Join: member.JoinPipe, Log: cfg.Log,
	}, o.Warm...)
	if err != nil {
		end()
		member.Close()
		return nil, public(err)
	}
	d := &Dialer{
		router: proxy.Router{Suffix: o.suffix(), Organization: cfg.Settings.Organization, Agent: o.Agent},
		opener: opener, member: member, end: end, done: make(chan struct{}),
	}
	d.running.Go(func() { _ = opener.Run(work) })
	d.running.Go(func() {
		if err := member.Run(work); err != nil {
			d.mu.Lock()
			d.err = public(err)
			d.mu.Unlock()
			end()
		}
	})
	context.AfterFunc(work, func() {
		d.running.Wait()
		member.Close()
		close(d.done)
	})
	return d, nil
}

// Close ends the Dialer: connections that are open are cut, so that their reads and
// writes fail, and nothing goes on in the background once it has returned. It is safe to
// call it more than once. Its error is nil.
func (d *Dialer) Close() error {
	d.closing.Store(true)
	d.end()
	<-d.done
	return nil
}

// Done returns a channel that is closed when the Dialer has ended: after Close, or by
// itself when the hub has refused to renew its credentials and they have expired. Err
// tells the two apart.
func (d *Dialer) Done() <-chan struct{} { return d.done }

// Err returns why the Dialer has ended by itself, an *Error; nil if it has not.
func (d *Dialer) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Dial opens a connection to a target: AGENT/tcp:HOST:PORT, or AGENT/kubernetes for the
// API server of the agent's own cluster. AGENT/ may be left out for Options.Agent. Dial
// returns when the agent has reached the target. The end of ctx ends that, and has no
// effect afterwards; each step has limits of its own, too. The connection has a method
// CloseWrite() error, which ends one direction as that of a *net.TCPConn does.
//
// The error is an *Error.
func (d *Dialer) Dial(ctx context.Context, target string) (net.Conn, error) {
	agent, text, ok := strings.Cut(target, "/")
	if !ok {
		agent, text = d.router.Agent, target
	}
	t, err := wire.ParseTarget(text)
	if err == nil && agent == "" {
		err = badOption("%q names no agent: want AGENT/%s, or Options.Agent", target, text)
	}
	if err == nil {
		err = identity.ValidateName("agent ID", agent)
	}
	if err != nil {
		return nil, badRequest(err)
	}
	return d.open(ctx, proxy.AgentRef{Organization: d.router.Organization, Agent: agent}, t)
}

// DialContext opens a connection to HOST:PORT behind Options.Agent, or to
// HOST.AGENT.postern.internal:PORT behind any agent. It has the form that [http.Transport]
// and many drivers take; network is one of tcp, tcp4 and tcp6, which mean the same, since
// the agent resolves the name. The error is an *Error.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, badRequest(badOption("network %q: only tcp leads through agents", network))
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, badRequest(err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, badRequest(badOption("address %q: want a port number", address))
	}
	ref, target, err := d.router.Route(proxy.AgentRef{}, host, uint16(port))
	if err != nil {
		return nil, public(err)
	}
	return d.open(ctx, ref, target)
}

func (d *Dialer) open(ctx context.Context, agent proxy.AgentRef, t wire.Target) (net.Conn, error) {
	if err := d.over(); err != nil {
		return nil, err
	}
	s, err := d.opener.Open(ctx, proxy.Request{Agent: agent, Target: t, For: proxy.Identity{Organization: agent.Organization}})
	if err == nil {
		return &conn{s, s}, nil
	}
	if over := d.over(); over != nil {
		err = over
	}
	return nil, public(err)
}

// over returns an error if the Dialer has ended.
func (d *Dialer) over() error {
	if err := d.Err(); err != nil {
		return err
	}
	if d.closing.Load() {
		return public(wire.Fail(wire.LegClient, wire.CodeCanceled, "the dialer is closed").WithCause(net.ErrClosed))
	}
	return nil
}

// Transport returns a new transport for HTTP and HTTPS through an agent, with the
// defaults of [http.DefaultTransport] and no proxy. Hosts are resolved by the agent, and
// names below postern.internal mean nothing special. An empty agent is Options.Agent.
//
// Its connections belong to the Dialer; CloseIdleConnections gives them back sooner.
func (d *Dialer) Transport(agent string) *http.Transport {
	if agent == "" {
		agent = d.router.Agent
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return d.Dial(ctx, agent+"/tcp:"+address)
		},
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          100,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}
