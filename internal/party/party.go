// Package party is what agents and proxies have in common: one membership of an
// organization at a hub. A Party dials the one port, keeps its credentials fresh,
// stays on the bus, and joins pipes.
package party

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// Config says who joins, and how.
type Config struct {
	Settings config.Party
	Role     identity.Role
	Name     string // the agent's ID, or the proxy's name
	Replica  string
	Version  string
	Secret   enroll.Secret       // to show instead of what the settings name; nil for none
	Getenv   func(string) string // for HTTPS_PROXY and NO_PROXY; nil for none
	Metrics  *observe.Uplink     // nil for none
	Log      *slog.Logger
}

// Party is a member of an organization: enrolled and on the bus. Safe for
// concurrent use. Make one with Start, run it, and close it.
type Party struct {
	cfg     Config
	Uplink  *uplink.Dialer
	Session *enroll.Session
	Bus     *bus.Conn

	busErr atomic.Pointer[busState]
	lost   atomic.Bool // the bus, since it was last connected
}

type busState struct {
	err error
	at  time.Time
}

// Start enrols and connects to the bus. What a person has to mend ends it at
// once, with a *wire.Failure; what may pass, such as a hub that is down, is tried
// again until ctx ends.
func Start(ctx context.Context, cfg Config) (*Party, error) {
	s := cfg.Settings
	d, err := uplink.New(uplink.Config{
		ConnectURL: s.ConnectURL, CAFile: s.CAFile, CAPin: s.CAPin,
		ProxyURL: s.ProxyURL, ProxyCAFile: s.ProxyCAFile, Getenv: cfg.Getenv,
	})
	if err != nil {
		return nil, err
	}
	p := &Party{cfg: cfg, Uplink: d}
	request := enroll.Request{
		Organization: s.Organization, Role: cfg.Role, Name: cfg.Name, Replica: cfg.Replica, Version: cfg.Version, NewBusKey: bus.NewUserKey,
	}
	var joining *enroll.Joining
	switch {
	case cfg.Secret != nil:
		request.Secret = cfg.Secret
	case s.PrivateKeyFile != "" || s.PrivateKey != "":
		request.Key = &enroll.KeyPair{File: s.PrivateKeyFile, Value: s.PrivateKey.Reveal(), Log: cfg.Log}
	case s.TokenFile != "" || s.Token != "":
		request.Secret = &enroll.RobotToken{File: s.TokenFile, Value: s.Token.Reveal(), Log: cfg.Log}
	case s.WorkloadTokenFile != "":
		request.Secret = &enroll.WorkloadToken{File: s.WorkloadTokenFile}
	default:
		joining = &enroll.Joining{Dir: s.State, String: s.JoinString.Reveal(), Log: cfg.Log}
		request.Key = &enroll.KeyPair{File: joining.KeyFile(), Log: cfg.Log}
	}
	p.Session = enroll.New(d, request, cfg.Log)
	p.Session.OnRenew(func(g *enroll.Grant) { d.Learn(g.Credentials.Roots) })
	if joining != nil {
		if err := p.insist(ctx, "join", func(ctx context.Context) error { return joining.Run(ctx, d) }); err != nil {
			d.CloseIdle()
			return nil, err
		}
		p.Session.OnRenew(func(g *enroll.Grant) { joining.Learn(g.Authorities) })
	}
	if err := p.insist(ctx, "enrol", p.Session.Start); err != nil {
		d.CloseIdle()
		return nil, err
	}
	p.Bus, err = bus.Connect(ctx, bus.Options{
		Dial:    func(ctx context.Context) (net.Conn, error) { return d.DialTLS(ctx, wire.ALPNBus, p.Certificate) },
		Token:   func() string { return p.Session.Grant().BusToken },
		Seed:    func() []byte { return p.Session.Grant().BusKey },
		Name:    string(cfg.Role) + "/" + cfg.Name + "/" + cfg.Replica,
		Log:     cfg.Log,
		OnState: p.busChanged,
	})
	if err != nil {
		d.CloseIdle()
		return nil, err
	}
	p.Session.OnRenew(func(g *enroll.Grant) {
		cfg.Metrics.Renewed(nil, g.Expires)
		p.Bus.Refresh()
	})
	cfg.Metrics.Renewed(nil, p.Session.Grant().Expires)
	return p, nil
}

// insist attempts something until it succeeds, or a person has to mend something.
func (p *Party) insist(ctx context.Context, step string, attempt func(context.Context) error) error {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		if enroll.Permanent(err) || wrongHub(err) || ctx.Err() != nil {
			return err
		}
		wait := pause/2 + rand.N(pause)
		p.cfg.Log.Warn("no credentials yet", "step", step, "error", err, "retry_in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// wrongHub tells that the server at the connect URL is not the hub that the
// configuration means: waiting does not help.
func wrongHub(err error) bool {
	f := wire.AsFailure(err, wire.LegUnknown)
	return f.Leg == wire.LegTLS && (f.Code == wire.CodeWrongPeer || f.Code == wire.CodeProtocol)
}

func (p *Party) busChanged(connected bool, err error) {
	if connected {
		p.lost.Store(false)
		p.cfg.Metrics.BusConnected(true)
		p.cfg.Log.Info("bus connected", "hub", p.Uplink.Endpoint().Address())
		return
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	p.busErr.Store(&busState{err: err, at: time.Now()})
	if wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeUnauthenticated {
		p.Session.Refused() // at the renewal the hub tells whether that is final, and why
	}
	if p.lost.Swap(true) {
		p.cfg.Log.Debug("bus still lost", "error", err)
		return
	}
	p.cfg.Metrics.BusConnected(false)
	p.cfg.Log.Warn("bus lost; trying to reach it again", "error", err)
}

// LastError returns the latest failure of the bus connection and when it was.
func (p *Party) LastError() (time.Time, error) {
	if s := p.busErr.Load(); s != nil {
		return s.at, s.err
	}
	return time.Time{}, nil
}

// Run keeps the credentials fresh until ctx ends. It returns an error when the
// hub has refused to renew them and they have expired.
func (p *Party) Run(ctx context.Context) error { return p.Session.Run(ctx) }

// Close leaves the bus.
func (p *Party) Close() {
	p.Bus.Close()
	p.Uplink.CloseIdle()
}

// Credentials returns the newest credentials.
func (p *Party) Credentials() *identity.Credentials { return p.Session.Credentials() }

// Certificate returns the newest certificate, as the outer TLS wants it.
func (p *Party) Certificate() *tls.Certificate {
	c := p.Session.Credentials()
	if c == nil {
		return nil
	}
	return &c.Certificate
}

// JoinPipe presents a ticket at the relay and returns the bare connection to its
// other bearer. Errors are *wire.Failure.
func (p *Party) JoinPipe(ctx context.Context, t wire.Ticket) (net.Conn, error) {
	conn, err := p.Uplink.DialRaw(ctx)
	if err != nil {
		return nil, err
	}
	return pipe.Join(ctx, conn, p.Uplink.TLSConfig(wire.ALPNPipe, p.Certificate), wire.Join{Kind: wire.JoinMeet, Ticket: t})
}

// Probe sends bytes through the relay and back, the way that pipes go.
func (p *Party) Probe(ctx context.Context) (time.Duration, error) {
	conn, err := p.Uplink.DialRaw(ctx)
	if err != nil {
		return 0, err
	}
	return pipe.Probe(ctx, conn, p.Uplink.TLSConfig(wire.ALPNPipe, p.Certificate))
}

// VerifyToken asks the hub whether a token is good for our organization, by an
// exchange whose credentials are thrown away, and returns whose it is, as the
// certificate tells on whose behalf it was issued, and the token's ID, empty if the
// hub does not tell. A token that is not good gives a *wire.Failure with
// CodeUnauthenticated.
func (p *Party) VerifyToken(ctx context.Context, token string) (h identity.Holder, item string, err error) {
	s := enroll.New(p.Uplink, enroll.Request{
		Organization: p.cfg.Settings.Organization, Role: identity.RoleProxy, Name: p.cfg.Name, Replica: "verify",
		Version: p.cfg.Version, Secret: &enroll.RobotToken{Value: token}, NewBusKey: bus.NewUserKey,
	}, nil)
	err = s.Start(ctx)
	if enroll.Permanent(err) {
		return identity.Holder{}, "", wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the hub does not accept the token given as password").WithCause(err)
	}
	if err != nil {
		return identity.Holder{}, "", err
	}
	h, err = identity.CertificateHolder(s.Credentials().Certificate.Leaf)
	switch {
	case err != nil:
		return identity.Holder{}, "", wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub does not tell whose the token is: %s", err).WithCause(err)
	case h.Principal.Kind == identity.KindAdmin:
		return identity.Holder{}, "", wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the administrator's token is no password of a proxy").
			WithHint("use the token of a robot of organization %s", p.cfg.Settings.Organization)
	}
	return h, s.Grant().Item, nil
}
