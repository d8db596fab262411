package wire

import (
	"errors"
	"fmt"
)

// Leg names the part of the road from client to target on which something
// failed. The order is the order in which a connection travels.
type Leg uint8

// The legs, from the client's side to the target's.
const (
	LegUnknown Leg = iota
	LegClient      // the program that uses the proxy, and what it sent
	LegProxy       // the proxy itself: its configuration, its limits
	LegHub         // the hub's HTTPS API: enrolment, administration
	LegBus         // the message bus: requests to agents, presence
	LegRelay       // the rendezvous: tickets, pairing
	LegAgent       // the agent process
	LegPolicy      // a rule said no
	LegDNS         // the target's name did not resolve at the agent
	LegTCP         // the agent could not open a connection to the target
	LegTLS         // a TLS handshake failed
	LegTarget      // the target itself misbehaved after it was connected
)

var legNames = [...]string{
	"unknown", "client", "proxy", "hub", "bus", "relay", "agent", "policy", "dns", "tcp", "tls", "target",
}

// String returns the leg's name as it stands in errors, logs and metrics.
func (l Leg) String() string {
	if int(l) < len(legNames) {
		return legNames[l]
	}
	return fmt.Sprintf("leg-%d", uint8(l))
}

// Code says what went wrong, in one of a stable, closed set of ways. Numbers
// travel on the wire and are never reused; names are used in metrics, logs
// and the Proxy-Status field.
type Code uint16

// The codes. New ones are appended; a peer that does not know a number treats
// it as CodeInternal.
const (
	CodeNone            Code = 0
	CodeInternal        Code = 1  // a defect, or something no other code tells
	CodeBadRequest      Code = 2  // the request could not be understood
	CodeDenied          Code = 3  // a policy refused it
	CodeUnauthenticated Code = 4  // credentials are missing, wrong, expired or revoked
	CodeNoAgent         Code = 5  // no replica of the agent is connected
	CodeOverloaded      Code = 6  // a configured limit was reached
	CodeDraining        Code = 7  // the other side is shutting down
	CodeTimeout         Code = 8  // it took longer than allowed
	CodeNameNotFound    Code = 9  // the target's name does not exist
	CodeNameFailed      Code = 10 // the resolver failed to answer
	CodeRefused         Code = 11 // the target refused the connection
	CodeUnreachable     Code = 12 // there is no route to the target
	CodeReset           Code = 13 // the connection was reset
	CodeLost            Code = 14 // the pipe under the stream died
	CodeCanceled        Code = 15 // the side that asked gave up
	CodeTicketUsed      Code = 16 // a rendezvous ticket was presented twice
	CodeTicketExpired   Code = 17 // a rendezvous ticket came too late, or its peer did
	CodeWrongPeer       Code = 18 // the peer is not who it has to be
	CodeProtocol        Code = 19 // the peer broke the protocol
)

var codeNames = [...]string{
	"none", "internal", "bad_request", "denied", "unauthenticated", "no_agent", "overloaded", "draining",
	"timeout", "name_not_found", "name_failed", "refused", "unreachable", "reset", "lost", "canceled",
	"ticket_used", "ticket_expired", "wrong_peer", "protocol",
}

// String returns the code's name as it stands in logs, metrics and headers.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code-%d", uint16(c))
}

// Failure is the error of everything that travels: it names the leg that
// failed, says what went wrong in a stable code, and tells a person what to do.
// It crosses the wire in REFUSED and RESET frames.
type Failure struct {
	Leg  Leg
	Code Code
	Text string // one sentence: what failed, with names and addresses, no secrets
	Hint string // what to do next; may be empty
	Err  error  // the local cause; does not cross the wire
}

// Fail makes a Failure whose text is formatted as by fmt.Sprintf.
func Fail(leg Leg, code Code, format string, args ...any) *Failure {
	return &Failure{Leg: leg, Code: code, Text: fmt.Sprintf(format, args...)}
}

// WithHint returns the failure with advice for the person who reads it.
func (f *Failure) WithHint(format string, args ...any) *Failure {
	f.Hint = fmt.Sprintf(format, args...)
	return f
}

// WithCause returns the failure with err as its local cause, for errors.Is.
func (f *Failure) WithCause(err error) *Failure {
	f.Err = err
	return f
}

// Error returns "leg: text (hint)".
func (f *Failure) Error() string {
	s := f.Leg.String() + ": " + f.Text
	if f.Text == "" {
		s = f.Leg.String() + ": " + f.Code.String()
	}
	if f.Hint != "" {
		s += " (" + f.Hint + ")"
	}
	return s
}

// Unwrap returns the local cause, if there is one.
func (f *Failure) Unwrap() error { return f.Err }

// Timeout reports whether the failure is a time-out, as net.Error wants it.
func (f *Failure) Timeout() bool { return f.Code == CodeTimeout }

// Temporary reports whether trying again soon may work, as net.Error wants it.
func (f *Failure) Temporary() bool {
	switch f.Code {
	case CodeTimeout, CodeNoAgent, CodeOverloaded, CodeDraining, CodeLost:
		return true
	default:
		return false
	}
}

// AsFailure returns the Failure in err's chain, or one that blames leg with
// CodeInternal and err's text. It returns nil for a nil err.
func AsFailure(err error, leg Leg) *Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Leg: leg, Code: CodeInternal, Text: err.Error(), Err: err}
}
