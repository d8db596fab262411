package pipe

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"postern.dev/postern/internal/wire"
)

// Join presents a ticket to the relay at the other end of conn, a fresh
// connection, and returns the bare connection to the ticket's other bearer. cfg is
// the outer TLS (uplink.Dialer.TLSConfig with wire.ALPNPipe). It waits until the
// other bearer has come, the relay refuses, or ctx ends. It closes conn when it
// fails; errors are *wire.Failure.
func Join(ctx context.Context, conn net.Conn, cfg *tls.Config, join wire.Join) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	bare, err := joinOver(ctx, conn, cfg, join)
	if !stop() && err == nil { // the deadline may have fallen on a connection that works
		err = ctx.Err()
	}
	if err == nil {
		return bare, nil
	}
	_ = conn.Close()
	var f *wire.Failure
	switch {
	case errors.As(err, &f):
		return nil, f
	case ctx.Err() != nil:
		return nil, wire.Fail(wire.LegRelay, wire.CodeTimeout, "joining at the relay: %v", context.Cause(ctx)).WithCause(err)
	default:
		return nil, wire.Fail(wire.LegRelay, wire.CodeLost, "joining at the relay: %v", err).WithCause(err)
	}
}

func joinOver(ctx context.Context, conn net.Conn, cfg *tls.Config, join wire.Join) (net.Conn, error) {
	rc := NewRecordConn(conn)
	tc := tls.Client(rc, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != wire.ALPNPipe {
		return nil, wire.Fail(wire.LegRelay, wire.CodeProtocol, "the server chose protocol %q, not %q", p, wire.ALPNPipe).
			WithHint("is the connect URL that of a Postern hub or relay?")
	}
	if _, err := tc.Write(join.Append(nil)); err != nil {
		return nil, err
	}
	answer := make([]byte, wire.MaxJoinAnswerLen)
	n, err := tc.Read(answer) // one record, one read
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	refusal, err := wire.ParseJoinAnswer(answer[:n])
	switch {
	case err != nil:
		return nil, wire.Fail(wire.LegRelay, wire.CodeProtocol, "%v", err)
	case refusal != nil:
		return nil, refusal
	case !rc.AtBoundary():
		return nil, wire.Fail(wire.LegRelay, wire.CodeProtocol, "the relay's answer does not end with a record")
	}
	return conn, nil
}

// Probe asks the relay to return a few bytes over a connection that left its
// outer TLS, as pipes do, and tells how long they took. It closes conn.
func Probe(ctx context.Context, conn net.Conn, cfg *tls.Config) (time.Duration, error) {
	bare, err := Join(ctx, conn, cfg, wire.Join{Kind: wire.JoinProbe, Ticket: wire.NewTicket("")})
	if err != nil {
		return 0, err
	}
	defer func() { _ = bare.Close() }()
	if d, ok := ctx.Deadline(); ok {
		_ = bare.SetDeadline(d)
	}
	start := time.Now()
	var sent, got [wire.ProbeLen]byte
	for i := range sent {
		sent[i] = byte(i)
	}
	if _, err := bare.Write(sent[:]); err != nil {
		return 0, wire.Fail(wire.LegRelay, wire.CodeLost, "probing the relay: %v", err).WithCause(err)
	}
	if _, err := io.ReadFull(bare, got[:]); err != nil {
		return 0, wire.Fail(wire.LegRelay, wire.CodeLost, "probing the relay: %v", err).WithCause(err)
	}
	if got != sent {
		return 0, wire.Fail(wire.LegRelay, wire.CodeProtocol, "the relay returned other bytes than were sent")
	}
	return time.Since(start), nil
}
