package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of the payloads, in bytes.
const (
	MaxAddressLen = 64 // of the address in OPENED
	MaxTextLen    = 1024
	TraceLen      = 25 // W3C trace context: trace ID 16, span ID 8, flags 1

	maxAttributesLen = 20 << 10
	maxOpenLen       = 16 + 4 + 1 + TraceLen + 2 + MaxTargetLen + maxAttributesLen
	maxFailureLen    = 1 + 2 + 2 + MaxTextLen + 2 + MaxTextLen
)

// StreamID names a stream for logs, audit and resumption; it is random.
type StreamID [16]byte

// String returns the ID in hexadecimal.
func (id StreamID) String() string { return fmt.Sprintf("%x", id[:]) }

// MarshalText returns what String does, which is how an ID stands in logs.
func (id StreamID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// Open asks the agent for a stream. Its payload:
//
//	 0            16           20       21              21+T      23+T
//	+------------+------------+--------+---------------+---------+--------+-------------+
//	| stream ID  | time limit | T: 0/25| trace context | H       | target | attributes… |
//	+------------+------------+--------+---------------+---------+--------+-------------+
//
// The time limit for reaching the target is in milliseconds, 0 for the agent's
// own. An attribute is a type (1), a length (2) and a value; a receiver skips
// types that it does not know, which is how later versions add things:
//
//	1  who asked the proxy for the stream, as KIND:NAME
//	2  a group that he is in, by its name; repeated, MaxGroups times at most
type Open struct {
	Stream      StreamID
	LimitMillis uint32
	Trace       []byte // nil, or TraceLen bytes
	Target      string // as ParseTarget reads it; the agent checks it

	// For is who asked the proxy, as identity.Principal prints it; empty when the
	// proxy asks for no credentials. It is the proxy's word: only the hub's own
	// proxies are taken at it. So are Groups, those that a user is in: MaxGroups at
	// most, of 256 bytes each.
	For    string
	Groups []string
}

// MaxGroups bounds the groups in an OPEN; further ones are left out.
const MaxGroups = 64

const (
	attributeFor   = 1
	attributeGroup = 2
	maxForLen      = 300
	maxGroupLen    = 256
)

// Append appends the payload to b.
func (o Open) Append(b []byte) []byte {
	b = append(b, o.Stream[:]...)
	b = binary.BigEndian.AppendUint32(b, o.LimitMillis)
	if len(o.Trace) == TraceLen {
		b = append(append(b, TraceLen), o.Trace...)
	} else {
		b = append(b, 0)
	}
	b = appendString(b, o.Target, MaxTargetLen)
	if o.For != "" {
		b = appendString(append(b, attributeFor), o.For, maxForLen)
	}
	for _, g := range o.Groups[:min(len(o.Groups), MaxGroups)] {
		if len(g) <= maxGroupLen { // a part of a name would be another group's
			b = appendString(append(b, attributeGroup), g, maxGroupLen)
		}
	}
	return b
}

// ParseOpen reads the payload of an OPEN frame. It keeps no reference to b.
func ParseOpen(b []byte) (Open, error) {
	var o Open
	if len(b) > maxOpenLen || len(b) < 21 {
		return o, fmt.Errorf("%w: OPEN of %d bytes", ErrFrame, len(b))
	}
	copy(o.Stream[:], b)
	o.LimitMillis = binary.BigEndian.Uint32(b[16:])
	t := int(b[20])
	b = b[21:]
	if t != 0 && t != TraceLen || len(b) < t {
		return o, fmt.Errorf("%w: OPEN with a trace context of %d bytes", ErrFrame, t)
	}
	if t > 0 {
		o.Trace = append([]byte(nil), b[:t]...)
		b = b[t:]
	}
	var err error
	if o.Target, b, err = cutString(b, MaxTargetLen); err != nil {
		return o, fmt.Errorf("%w: target of OPEN: %w", ErrFrame, err)
	}
	for len(b) > 0 {
		if len(b) < 3 || len(b)-3 < int(binary.BigEndian.Uint16(b[1:])) {
			return o, fmt.Errorf("%w: attribute of OPEN is cut short", ErrFrame)
		}
		kind, value := b[0], b[3:3+int(binary.BigEndian.Uint16(b[1:]))]
		b = b[3+len(value):]
		switch {
		case kind == attributeFor && len(value) <= maxForLen:
			o.For = printable(string(value))
		case kind == attributeGroup && len(value) <= maxGroupLen && len(o.Groups) < MaxGroups:
			if g := string(value); printable(g) == g { // made safe, it might be the name of another group
				o.Groups = append(o.Groups, g)
			}
		}
	}
	return o, nil
}

// Append appends the failure's payload, as in REFUSED, RESET and the answer to
// JOIN, to b:
//
//	+---------+----------+--------+------+--------+------+
//	| leg (1) | code (2) | T (2)  | text | H (2)  | hint |
//	+---------+----------+--------+------+--------+------+
//
// Texts longer than MaxTextLen are cut; Err does not travel.
func (f *Failure) Append(b []byte) []byte {
	b = append(b, byte(f.Leg))
	b = binary.BigEndian.AppendUint16(b, uint16(f.Code))
	b = appendString(b, f.Text, MaxTextLen)
	return appendString(b, f.Hint, MaxTextLen)
}

// ParseFailure reads a failure's payload. Texts are made safe to print: they
// come from the other side.
func ParseFailure(b []byte) (*Failure, error) {
	if len(b) < 3 {
		return nil, fmt.Errorf("%w: failure of %d bytes", ErrFrame, len(b))
	}
	f := &Failure{Leg: Leg(b[0]), Code: Code(binary.BigEndian.Uint16(b[1:]))}
	var err error
	b = b[3:]
	if f.Text, b, err = cutString(b, MaxTextLen); err != nil {
		return nil, fmt.Errorf("%w: text of failure: %w", ErrFrame, err)
	}
	if f.Hint, b, err = cutString(b, MaxTextLen); err != nil {
		return nil, fmt.Errorf("%w: hint of failure: %w", ErrFrame, err)
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after a failure", ErrFrame, len(b))
	}
	if int(f.Leg) >= len(legNames) {
		f.Leg = LegUnknown
	}
	if int(f.Code) >= len(codeNames) || f.Code == CodeNone {
		f.Code = CodeInternal
	}
	f.Text, f.Hint = printable(f.Text), printable(f.Hint)
	return f, nil
}

func appendString(b []byte, s string, limit int) []byte {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // at most limit
	return append(b, s...)
}

func cutString(b []byte, limit int) (string, []byte, error) {
	if len(b) < 2 {
		return "", nil, fmt.Errorf("length is cut short")
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if n > limit {
		return "", nil, fmt.Errorf("%d bytes; at most %d are allowed", n, limit)
	}
	if n > len(b) {
		return "", nil, fmt.Errorf("%d bytes of %d are there", len(b), n)
	}
	return string(b[:n]), b[n:], nil
}

// printable replaces what could forge a log line or a terminal's state.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
