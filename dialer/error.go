package dialer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// Leg is the part of the way to a target on which something failed.
type Leg string

// The legs, in the order in which a connection travels.
const (
	LegClient Leg = "client" // this program: its options, or what it asked for
	LegProxy  Leg = "proxy"  // this package
	LegHub    Leg = "hub"    // enrolling at the hub
	LegBus    Leg = "bus"    // the message bus: requests to agents, presence
	LegRelay  Leg = "relay"  // the meeting place of the two sides
	LegAgent  Leg = "agent"  // the agent process
	LegPolicy Leg = "policy" // a rule of the agent's owner, or an access grant that is not there
	LegDNS    Leg = "dns"    // the target's name, at the agent
	LegTCP    Leg = "tcp"    // the connection from the agent to the target
	LegTLS    Leg = "tls"    // a TLS handshake of Postern's own
	LegTarget Leg = "target" // the target, after it was connected
)

// Code says what went wrong. There may be more codes than these, in this version or in
// later ones.
type Code string

// Codes that programs branch on.
const (
	CodeBadRequest      Code = "bad_request"     // what was asked for cannot be meant
	CodeDenied          Code = "denied"          // it is not allowed
	CodeUnauthenticated Code = "unauthenticated" // credentials are missing, wrong, expired or revoked
	CodeNoAgent         Code = "no_agent"        // no replica of the agent is connected
	CodeOverloaded      Code = "overloaded"      // a limit was reached
	CodeDraining        Code = "draining"        // the other side is shutting down
	CodeTimeout         Code = "timeout"         // it took too long
	CodeNameNotFound    Code = "name_not_found"  // the target's name does not exist, at the agent
	CodeNameFailed      Code = "name_failed"     // the agent's resolver failed
	CodeRefused         Code = "refused"         // the target refused the connection
	CodeUnreachable     Code = "unreachable"     // there is no route to the target
	CodeReset           Code = "reset"           // the connection was reset
	CodeLost            Code = "lost"            // the connection between here and the agent broke
	CodeCanceled        Code = "canceled"        // the context ended, or the Dialer was closed
	CodeWrongPeer       Code = "wrong_peer"      // the hub or the agent is not who it has to be
	CodeInternal        Code = "internal"        // what no other code tells
)

// Error is a failure on the way to a target. It is a [net.Error].
type Error struct {
	Leg  Leg
	Code Code
	Text string // one sentence, with names and addresses, without secrets
	Hint string // what to do; may be empty

	failure *wire.Failure
}

// Error returns "leg: text (hint)".
func (e *Error) Error() string { return e.failure.Error() }

// Unwrap returns the cause within this program, such as context.DeadlineExceeded, if
// there is one.
func (e *Error) Unwrap() error { return e.failure.Err }

// Timeout reports whether it took too long.
func (e *Error) Timeout() bool { return e.failure.Timeout() }

// Temporary reports whether trying again soon may help.
func (e *Error) Temporary() bool { return e.failure.Temporary() }

// public returns err as an *Error; nil for nil.
func public(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	f := wire.AsFailure(err, wire.LegProxy)
	switch {
	case f.Code != wire.CodeInternal:
	case errors.Is(err, context.Canceled):
		f = wire.Fail(wire.LegClient, wire.CodeCanceled, "%s", err).WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		f = wire.Fail(wire.LegClient, wire.CodeTimeout, "%s", err).WithCause(err)
	}
	return &Error{Leg: Leg(f.Leg.String()), Code: Code(f.Code.String()), Text: f.Text, Hint: f.Hint, failure: f}
}

func badOption(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s", fmt.Sprintf(format, args...))
}

// badRequest returns what is wrong with the caller's wishes as an *Error.
func badRequest(err error) error {
	f, ok := errors.AsType[*wire.Failure](err)
	if !ok {
		f = badOption("%s", err).WithCause(err)
	}
	return public(f)
}

// conn is a connection with public errors.
type conn struct {
	net.Conn
	stream proxy.Stream // the same
}

// Read reads from the target. It returns io.EOF only after the target has ended its
// direction; a connection that broke gives an *Error.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, ofConn(err)
}

// Write writes to the target.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, ofConn(err)
}

// CloseWrite ends the direction to the target.
func (c *conn) CloseWrite() error { return ofConn(c.stream.CloseWrite()) }

// Close ends the connection, both ways.
func (c *conn) Close() error { return ofConn(c.Conn.Close()) }

// ofConn leaves the errors alone that every net.Conn has.
func ofConn(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return public(err)
}
