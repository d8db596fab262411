package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A frame is a header of 16 bytes and a payload:
//
//	 0        1        2                 4                 8                                16
//	+--------+--------+-----------------+-----------------+--------------------------------+
//	|  type  | flags  |  reserved (0)   |     length      |             offset             |
//	+--------+--------+-----------------+-----------------+--------------------------------+
//	|  payload: length bytes …
//
// offset counts the stream's bytes in the frame's direction, from 0 at OPEN: of a
// DATA frame it is the place of its first byte, of EOF the number of bytes sent
// in all. A receiver that finds another offset than it expects has lost bytes and
// gives the pipe up. ACK and RESUME carry the offset that the sender expects next.
// PING and PONG carry an opaque number there.
const (
	HeaderLen = 16

	// MaxFrameLen is the length of the longest frame, header included. It is a
	// multiple of a TLS record's 16 KiB, so that a full DATA frame fills whole
	// records, and small enough to stay in a processor's cache.
	MaxFrameLen = 64 << 10

	// MaxPayloadLen is the most that one frame carries.
	MaxPayloadLen = MaxFrameLen - HeaderLen
)

// FrameType tells what a frame is.
type FrameType uint8

// The frames. "→" goes from the side that opens streams (the proxy) to the side
// that accepts them (the agent), "↔" either way.
const (
	FrameOpen    FrameType = 1  // → payload: Open; DATA may follow at once
	FrameOpened  FrameType = 2  // ← payload: text of the address that was reached, at most MaxAddressLen
	FrameRefused FrameType = 3  // ← payload: Failure; the opener still ends its direction by EOF
	FrameData    FrameType = 4  // ↔ payload: 1 to MaxPayloadLen bytes of the stream
	FrameEOF     FrameType = 5  // ↔ no payload; the direction has ended at offset
	FrameReset   FrameType = 6  // ↔ payload: Failure; the stream is void, and so is the pipe
	FrameAck     FrameType = 7  // ↔ no payload; everything before offset has arrived (reserved for resumption)
	FrameResume  FrameType = 8  // ↔ payload: stream ID (16); continue at offset (reserved for resumption)
	FramePing    FrameType = 9  // ↔ no payload; a sign of life; FlagEcho asks for a PONG
	FramePong    FrameType = 10 // ↔ no payload; offset as in the PING
)

var frameNames = [...]string{
	"invalid", "OPEN", "OPENED", "REFUSED", "DATA", "EOF", "RESET", "ACK", "RESUME", "PING", "PONG",
}

// String returns the frame's name as the protocol's description writes it.
func (t FrameType) String() string {
	if int(t) < len(frameNames) {
		return frameNames[t]
	}
	return fmt.Sprintf("frame-%d", uint8(t))
}

// The flags. A receiver ignores flags that it does not know.
const (
	FlagEcho   uint8 = 1 << 0 // PING: answer with PONG
	FlagClosed uint8 = 1 << 1 // EOF: the sender has stopped reading too; what comes is discarded
	FlagEarly  uint8 = 1 << 2 // OPEN: DATA follows in the same record
)

// Header is the fixed part of a frame.
type Header struct {
	Type   FrameType
	Flags  uint8
	Length int // of the payload, in bytes
	Offset uint64
}

// ErrFrame is wrapped by every error about a frame that breaks the protocol.
var ErrFrame = errors.New("malformed frame")

// maxLen gives the longest payload of each type of frame; -1 means that there
// is no such type.
var maxLen = [...]int{
	-1, maxOpenLen, MaxAddressLen, maxFailureLen, MaxPayloadLen, 0, maxFailureLen, 0, 16, 0, 0,
}

// Put writes the header into the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1], b[2], b[3] = byte(h.Type), h.Flags, 0, 0
	binary.BigEndian.PutUint32(b[4:], uint32(h.Length)) //nolint:gosec // Length is at most MaxPayloadLen
	binary.BigEndian.PutUint64(b[8:], h.Offset)
}

// ParseHeader reads a header from the first HeaderLen bytes of b. It refuses
// unknown types, and lengths that the type does not allow.
func ParseHeader(b []byte) (Header, error) {
	_ = b[HeaderLen-1]
	h := Header{Type: FrameType(b[0]), Flags: b[1], Offset: binary.BigEndian.Uint64(b[8:])}
	n := binary.BigEndian.Uint32(b[4:])
	switch {
	case int(h.Type) >= len(maxLen) || maxLen[h.Type] < 0:
		return Header{}, fmt.Errorf("%w: unknown type %d", ErrFrame, b[0])
	case b[2] != 0 || b[3] != 0:
		return Header{}, fmt.Errorf("%w: reserved bytes of %s are not zero", ErrFrame, h.Type)
	case n > uint32(maxLen[h.Type]): //nolint:gosec // maxLen is not negative here
		return Header{}, fmt.Errorf("%w: %s has a payload of %d bytes; at most %d are allowed", ErrFrame, h.Type, n, maxLen[h.Type])
	case h.Type == FrameData && n == 0:
		return Header{}, fmt.Errorf("%w: DATA without payload", ErrFrame)
	}
	h.Length = int(n)
	return h, nil
}

// Append appends a whole frame to b.
func Append(b []byte, t FrameType, flags uint8, offset uint64, payload []byte) []byte {
	var hdr [HeaderLen]byte
	Header{Type: t, Flags: flags, Length: len(payload), Offset: offset}.Put(hdr[:])
	return append(append(b, hdr[:]...), payload...)
}
