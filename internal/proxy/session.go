package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

// route is where a request goes, and on whose behalf.
type route struct {
	id     Identity
	agent  AgentRef
	target wire.Target
	trace  observe.Trace // that the client sent
	by     *userEntry    // of the credentials file; nil for any other login
}

func (r route) event(s *Server, c *client) Event {
	return Event{Front: s.front, Client: c.addr, Identity: r.id, Agent: r.agent, Target: r.target}
}

// find finds the way to host and port. On failure the
// route has what is known so far.
func (s *Server) find(g grant, host string, port uint16) (route, *wire.Failure) {
	agent, target, err := s.cfg.Router.Route(g.choice, host, port)
	r := route{id: g.id, agent: agent, target: target, by: g.by}
	if err != nil {
		return r, wire.AsFailure(err, wire.LegProxy)
	}
	if g.only && agent != g.choice {
		return r, wire.Fail(wire.LegPolicy, wire.CodeDenied, "%s may use agent %q only, not %q", g.id.Principal, g.choice.Agent, agent.Agent)
	}
	return r, nil
}

// login checks what the client presented.
func (s *Server) login(ctx context.Context, l Login) (grant, *wire.Failure) {
	g, err := s.access.login(ctx, s.required, l, s.cfg.Router)
	if err != nil {
		return g, wire.AsFailure(err, wire.LegProxy)
	}
	return g, nil
}

// refused reports a request that was turned away.
func (s *Server) refused(c *client, r route, f *wire.Failure) {
	e := r.event(s, c)
	e.Failure = f
	s.cfg.Observer.Refused(e)
	s.log.Info("request refused", append(r.attrs(c), slog.String("leg", f.Leg.String()), slog.String("code", f.Code.String()),
		slog.String("reason", f.Text))...)
}

// open opens a stream and reports how that went.
func (s *Server) open(ctx context.Context, c *client, r route, early []byte) (Stream, *wire.Failure) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OpenTimeout)
	defer cancel()
	start := time.Now()
	stream, err := s.cfg.Opener.Open(ctx, Request{Agent: r.agent, Target: r.target, For: r.id, Client: c.addr, Trace: r.trace, Early: early})
	if err == nil && r.by != nil {
		stream, err = s.access.lodge(r.by, stream)
	}
	e := r.event(s, c)
	e.Duration = time.Since(start)
	if err == nil {
		s.cfg.Observer.Opened(e)
		return stream, nil
	}
	f := wire.AsFailure(err, wire.LegProxy)
	if f.Code == wire.CodeInternal && errors.Is(err, context.DeadlineExceeded) {
		f = wire.Fail(wire.LegProxy, wire.CodeTimeout, "the stream to %s was not opened within %s", r.target, s.cfg.OpenTimeout).WithCause(err)
	}
	e.Failure = f
	s.cfg.Observer.Failed(e)
	s.log.Info("stream not opened", append(r.attrs(c), slog.String("leg", f.Leg.String()), slog.String("code", f.Code.String()),
		slog.String("reason", f.Text), slog.Duration("after", e.Duration))...)
	return nil, f
}

// carry moves the bytes of an open stream until it has ended. conn is the
// client's connection itself, without the wrapping that would keep the kernel
// from splicing.
func (s *Server) carry(c *client, r route, stream Stream, early []byte) {
	start := time.Now()
	stats, err := stream.Carry(c.Conn, early)
	s.ended(c, r, stats, time.Since(start), err)
}

// ended reports the end of a stream.
func (s *Server) ended(c *client, r route, stats Stats, life time.Duration, err error) {
	e := r.event(s, c)
	e.Stats, e.Duration, e.Failure = stats, life, wire.AsFailure(err, wire.LegUnknown)
	s.cfg.Observer.Closed(e)
	if !s.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	attrs := append(r.attrs(c), slog.Int64("bytes_in", stats.BytesIn), slog.Int64("bytes_out", stats.BytesOut), slog.Duration("life", life))
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	s.log.Debug("stream ended", attrs...)
}

func (r route) attrs(c *client) []any {
	attrs := []any{slog.String("client", c.addr.String())}
	if r.id.Principal != (identity.Principal{}) {
		attrs = append(attrs, slog.String("identity", r.id.Principal.String()))
	}
	if r.agent.Agent != "" {
		attrs = append(attrs, slog.String("agent", r.agent.String()))
	}
	if r.target.Kind != 0 {
		attrs = append(attrs, slog.String("target", r.target.String()))
	}
	return attrs
}

// Bounds of a lingering close.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// part sends a last message and closes the connection such that the client can
// read it: closing with unread bytes would reset the connection, and a reset
// may overtake the message.
func part(conn net.Conn, message []byte) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(lingerTime))
	if _, err := conn.Write(message); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
}
