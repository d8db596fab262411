package cli

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/doctor"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// patient is what the doctor examines: the real hub behind an uplink. Each step
// is made once, where a role would try again and again.
type patient struct {
	uplink   *uplink.Dialer
	settings config.Doctor
	secret   enroll.Secret // of a person who is signed in; nil: what the settings name
	session  *enroll.Session
}

// Time implements doctor.Hub.
func (p *patient) Time(ctx context.Context) (now time.Time, took time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.uplink.BaseURL()+api.PathVersion, nil)
	if err != nil {
		return time.Time{}, 0, err
	}
	begin := time.Now()
	res, err := p.uplink.HTTPClient().Do(req)
	if err != nil {
		return time.Time{}, 0, wire.AsFailure(err, wire.LegHub)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	took = time.Since(begin)
	now, err = http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return time.Time{}, 0, wire.Fail(wire.LegHub, wire.CodeProtocol, "the answer has no date")
	}
	return now, took, nil
}

// Enrol implements doctor.Hub. The doctor enrols as a proxy, which an agent's token may do
// too, or as whom a key or workload token is for: a replica beside the others that nobody
// is told of.
func (p *patient) Enrol(ctx context.Context) (doctor.Identity, error) {
	s := p.settings
	request := enroll.Request{
		Organization: s.Organization, Role: identity.RoleProxy, Name: "doctor", Replica: s.Name, Version: command.Version(),
		Secret: p.secret, NewBusKey: bus.NewUserKey,
	}
	switch {
	case p.secret != nil: // of a person who is signed in
	case s.TokenFile != "" || s.Token != "":
		request.Secret = &enroll.RobotToken{File: s.TokenFile, Value: s.Token.Reveal()}
	case s.PrivateKeyFile != "" || s.PrivateKey != "":
		request.Key = &enroll.KeyPair{File: s.PrivateKeyFile, Value: s.PrivateKey.Reveal()}
	case s.WorkloadTokenFile != "":
		request.Secret, request.Name = &enroll.WorkloadToken{File: s.WorkloadTokenFile}, s.Proxy
	default:
		request.Key = &enroll.KeyPair{File: (&enroll.Joining{Dir: s.State}).KeyFile()}
	}
	if s.AsAgent() {
		request.Role, request.Name, request.Replica = identity.RoleAgent, s.AgentID, "doctor"
	}
	session := enroll.New(p.uplink, request, nil)
	if err := session.Start(ctx); err != nil {
		return doctor.Identity{}, err
	}
	p.session = session
	c := session.Credentials()
	return doctor.Identity{Name: c.ID.String(), NotAfter: c.NotAfter, Agent: s.AsAgent()}, nil
}

// certificate returns the certificate for the outer TLS.
func (p *patient) certificate() *tls.Certificate { return &p.session.Credentials().Certificate }

// Join implements doctor.Hub.
func (p *patient) Join(ctx context.Context) (doctor.Tunnel, time.Duration, error) {
	conn, err := bus.Connect(ctx, bus.Options{
		Dial:  func(ctx context.Context) (net.Conn, error) { return p.uplink.DialTLS(ctx, wire.ALPNBus, p.certificate) },
		Token: func() string { return p.session.Grant().BusToken },
		Seed:  func() []byte { return p.session.Grant().BusKey },
		Name:  "doctor/" + p.settings.Name,
	})
	if err != nil {
		return nil, 0, err
	}
	rtt, err := conn.RTT(ctx)
	if err != nil {
		conn.Close()
		return nil, 0, err
	}
	t := &tunnel{patient: p, bus: conn}
	// The directory and the dialer outlive the step, until Close.
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if p.settings.AsAgent() {
		return t, rtt, nil // it may not ask for others
	}
	t.dialer, err = proxy.NewDialer(t.ctx, proxy.DialerConfig{
		Organization: p.settings.Organization, Bus: conn, Credentials: p.session.Credentials, Join: t.joinPipe,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.cancel()
		conn.Close()
		return nil, 0, err
	}
	t.wg.Go(func() { _ = t.dialer.Run(t.ctx) })
	return t, rtt, nil
}

// tunnel implements doctor.Tunnel.
type tunnel struct {
	*patient
	bus    *bus.Conn
	dialer *proxy.Dialer
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// presenceWait is how long agents have to announce themselves after they were
// asked to.
const presenceWait = 2 * time.Second

// Agents implements doctor.Tunnel. It waits for the agent that is looked for, or
// a moment if there is none.
func (t *tunnel) Agents(ctx context.Context) ([]doctor.Agent, error) {
	wait := time.NewTimer(presenceWait)
	defer wait.Stop()
	dir := t.dialer.Directory()
	for {
		changed := dir.Changed()
		var all []doctor.Agent
		found := false
		for _, p := range dir.All() {
			all = append(all, doctor.Agent{ID: p.Agent, Replica: p.Replica, State: string(p.State), Version: p.Version, Allow: p.Allow})
			found = found || p.Agent == t.settings.AgentID && p.State == bus.StateReady
		}
		if found {
			return all, nil
		}
		select {
		case <-changed:
		case <-wait.C:
			return all, nil
		case <-ctx.Done():
			return all, nil
		}
	}
}

// joinPipe presents a ticket at the relay.
func (t *tunnel) joinPipe(ctx context.Context, ticket wire.Ticket) (net.Conn, error) {
	conn, err := t.uplink.DialRaw(ctx)
	if err != nil {
		return nil, err
	}
	return pipe.Join(ctx, conn, t.uplink.TLSConfig(wire.ALPNPipe, t.certificate), wire.Join{Kind: wire.JoinMeet, Ticket: ticket})
}

// Probe implements doctor.Tunnel.
func (t *tunnel) Probe(ctx context.Context) (time.Duration, error) {
	conn, err := t.uplink.DialRaw(ctx)
	if err != nil {
		return 0, err
	}
	return pipe.Probe(ctx, conn, t.uplink.TLSConfig(wire.ALPNPipe, t.certificate))
}

// Dial implements doctor.Tunnel.
func (t *tunnel) Dial(ctx context.Context, agent string, target wire.Target) (net.Conn, error) {
	return t.dialer.Open(ctx, proxy.Request{Agent: proxy.AgentRef{Agent: agent}, Target: target})
}

// Close implements doctor.Tunnel.
func (t *tunnel) Close() {
	t.cancel()
	t.wg.Wait()
	t.bus.Close()
}
