package bus

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/wire"
)

// errClosed is what calls return after Close.
var errClosed = wire.Fail(wire.LegBus, wire.CodeCanceled, "the connection to the bus is closed")

// connectFailure explains why there is no link.
func connectFailure(err error) error {
	var f *wire.Failure
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return wire.Fail(wire.LegBus, wire.CodeUnauthenticated, "the bus credentials have expired").
			WithHint("if they were not renewed: check the connection to the hub, and this machine's clock").WithCause(err)
	case errors.Is(err, nats.ErrAuthRevoked):
		return wire.Fail(wire.LegBus, wire.CodeUnauthenticated, "the bus credentials were revoked").WithCause(err)
	case errors.Is(err, nats.ErrAuthorization):
		return wire.Fail(wire.LegBus, wire.CodeUnauthenticated, "the bus refused the credentials").
			WithHint("they may be expired, revoked, or of an organization that was deleted").WithCause(err)
	case refusedCertificate(err):
		return wire.Fail(wire.LegBus, wire.CodeUnauthenticated, "the hub does not accept this party's certificate").
			WithHint("its token or key was revoked, or its organization deleted; or this machine's clock is wrong").WithCause(err)
	case errors.Is(err, nats.ErrMaxConnectionsExceeded), errors.Is(err, nats.ErrMaxAccountConnectionsExceeded):
		return wire.Fail(wire.LegBus, wire.CodeOverloaded, "the organization has too many connections to the bus").WithCause(err)
	case errors.Is(err, nats.ErrStaleConnection):
		return wire.Fail(wire.LegBus, wire.CodeTimeout, "the bus stopped answering").WithCause(err)
	case isTimeout(err):
		return wire.Fail(wire.LegBus, wire.CodeTimeout, "the bus did not answer").WithCause(err)
	case errors.Is(err, context.Canceled):
		return wire.Fail(wire.LegBus, wire.CodeCanceled, "connecting to the bus was given up").WithCause(err)
	default:
		return wire.Fail(wire.LegBus, wire.CodeLost, "the connection to the bus ended: %s", err).WithCause(err)
	}
}

// refusedCertificate reports whether the other side broke TLS off with an alert.
// After a TLS 1.3 handshake that succeeded for us, which it did if the bus is
// spoken to at all, our certificate is its only reason.
func refusedCertificate(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// requestFailure explains why a request that was sent to who failed.
func requestFailure(err error, who string) error {
	var f *wire.Failure
	switch {
	case errors.As(err, &f):
		return f
	case isTimeout(err):
		return wire.Fail(wire.LegBus, wire.CodeTimeout, "%s did not answer over the bus", who).WithCause(err)
	case errors.Is(err, context.Canceled):
		return wire.Fail(wire.LegBus, wire.CodeCanceled, "the request to %s was given up", who).WithCause(err)
	case errors.Is(err, nats.ErrMaxPayload):
		return wire.Fail(wire.LegBus, wire.CodeBadRequest, "the request to %s is too long", who).WithCause(err)
	default:
		return wire.Fail(wire.LegBus, wire.CodeLost, "the connection to the bus ended during a request to %s", who).WithCause(err)
	}
}

// isAuth reports whether the server does not or no longer accept the credentials.
func isAuth(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) ||
		errors.Is(err, nats.ErrAuthRevoked) || errors.Is(err, nats.ErrAccountAuthExpired)
}

func isTimeout(err error) bool {
	return errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}

// clip bounds a text to n bytes without cutting a character.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
