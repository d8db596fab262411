package wire

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

// TicketLen is the length of a ticket, in bytes.
const TicketLen = 40

// Ticket is the one-time secret by which a proxy and an agent meet at a relay
// node. Both present it inside their outer TLS; the relay pairs them. It names the
// node, so that any other node can tell where to forward:
//
//	+------------------------------+------------------+
//	| node: first 8 of SHA-256(name) | random (32)    |
//	+------------------------------+------------------+
type Ticket [TicketLen]byte

// NewTicket draws a ticket for a meeting at the named relay node. An empty name
// means whichever node the connect address leads to.
func NewTicket(node string) Ticket {
	var t Ticket
	if node != "" {
		sum := sha256.Sum256([]byte(node))
		copy(t[:8], sum[:8])
	}
	_, _ = rand.Read(t[8:]) // never fails: see crypto/rand
	return t
}

// At reports whether the ticket is for the named relay node.
func (t Ticket) At(node string) bool {
	sum := sha256.Sum256([]byte(node))
	return [8]byte(t[:8]) == [8]byte(sum[:8]) || [8]byte(t[:8]) == [8]byte{}
}

// MarshalText returns the ticket in base64url without padding. Tickets are
// secrets while they live: they travel over the bus and are not logged.
func (t Ticket) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, t[:]), nil
}

// UnmarshalText reads what MarshalText wrote.
func (t *Ticket) UnmarshalText(text []byte) error {
	if base64.RawURLEncoding.DecodedLen(len(text)) != TicketLen {
		return fmt.Errorf("ticket of %d characters; want %d", len(text), base64.RawURLEncoding.EncodedLen(TicketLen))
	}
	var got [TicketLen]byte
	if _, err := base64.RawURLEncoding.Strict().Decode(got[:], text); err != nil {
		return fmt.Errorf("ticket is not base64url: %w", err)
	}
	*t = got
	return nil
}

// String hides the ticket's value, should one slip into a log.
func (Ticket) String() string { return "ticket(hidden)" }

// JoinKind says what a party wants of a relay.
type JoinKind uint8

// The kinds of JOIN.
const (
	JoinMeet  JoinKind = 1 // to be paired with the other bearer of the ticket
	JoinProbe JoinKind = 2 // to see that bytes pass: after JOINED the relay returns what comes, up to ProbeLen bytes, then closes
)

// ProbeLen is how many bytes a relay returns to a probe.
const ProbeLen = 64

// JoinLen is the length of a JOIN message.
const JoinLen = 4 + TicketLen

// Join is the first and only thing that a party says to a relay inside its outer
// TLS, in one record. After the answer both sides leave the outer TLS and speak
// over the bare connection.
//
//	 0         1        2              4                    44
//	+---------+--------+--------------+--------------------+
//	| ver (1) |  kind  | reserved (0) |       ticket       |
//	+---------+--------+--------------+--------------------+
//
// The answer, also one record, is 0 (1 byte) when the two are paired, or 1 and a
// failure's payload.
type Join struct {
	Kind   JoinKind
	Ticket Ticket
}

// joinVersion is the version of JOIN and of what follows it.
const joinVersion = 1

// Append appends the message to b.
func (j Join) Append(b []byte) []byte {
	return append(append(b, joinVersion, byte(j.Kind), 0, 0), j.Ticket[:]...)
}

// ParseJoin reads a JOIN message of exactly JoinLen bytes.
func ParseJoin(b []byte) (Join, error) {
	switch {
	case len(b) != JoinLen:
		return Join{}, fmt.Errorf("%w: JOIN of %d bytes; want %d", ErrFrame, len(b), JoinLen)
	case b[0] != joinVersion:
		return Join{}, fmt.Errorf("%w: JOIN of version %d; this relay speaks %d", ErrFrame, b[0], joinVersion)
	case b[2] != 0 || b[3] != 0:
		return Join{}, fmt.Errorf("%w: reserved bytes of JOIN are not zero", ErrFrame)
	case JoinKind(b[1]) != JoinMeet && JoinKind(b[1]) != JoinProbe:
		return Join{}, fmt.Errorf("%w: JOIN of unknown kind %d", ErrFrame, b[1])
	}
	return Join{Kind: JoinKind(b[1]), Ticket: Ticket(b[4:])}, nil
}

// MaxJoinAnswerLen is the length of the longest answer to JOIN.
const MaxJoinAnswerLen = 1 + maxFailureLen

// AppendJoinAnswer appends the answer to JOIN to b: joined for a nil failure.
func AppendJoinAnswer(b []byte, f *Failure) []byte {
	if f == nil {
		return append(b, 0)
	}
	return f.Append(append(b, 1))
}

// ParseJoinAnswer reads the answer to JOIN. The first result is nil when the
// parties are paired, and what the relay said otherwise.
func ParseJoinAnswer(b []byte) (*Failure, error) {
	switch {
	case len(b) == 1 && b[0] == 0:
		return nil, nil
	case len(b) > 1 && b[0] == 1:
		return ParseFailure(b[1:])
	default:
		return nil, fmt.Errorf("%w: answer to JOIN of %d bytes", ErrFrame, len(b))
	}
}
