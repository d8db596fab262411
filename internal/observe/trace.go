package observe

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
)

// Trace is a W3C trace context (https://www.w3.org/TR/trace-context/): which
// request of which client a stream serves. The zero value means that there is
// none.
type Trace struct {
	TraceID [16]byte // all zero means no trace
	SpanID  [8]byte  // the caller's span
	Flags   byte     // bit 0: the caller records this trace
}

// ErrTrace says that a text or frame holds no valid trace context; the receiver
// goes on without one.
var ErrTrace = errors.New("invalid trace context")

// NewTrace returns a new trace that is not recorded.
func NewTrace() Trace {
	var t Trace
	_, _ = rand.Read(t.TraceID[:]) // never fails
	_, _ = rand.Read(t.SpanID[:])
	return t
}

// Valid reports whether there is a trace.
func (t Trace) Valid() bool { return t.TraceID != [16]byte{} && t.SpanID != [8]byte{} }

// Child returns the same trace with a span of its own.
func (t Trace) Child() Trace {
	_, _ = rand.Read(t.SpanID[:])
	return t
}

// String returns the value of a traceparent header, or "" without a trace.
func (t Trace) String() string {
	if !t.Valid() {
		return ""
	}
	return "00-" + hex.EncodeToString(t.TraceID[:]) + "-" + hex.EncodeToString(t.SpanID[:]) + "-" + hex.EncodeToString([]byte{t.Flags})
}

// ParseTrace reads the value of a traceparent header. A later version's
// additions are ignored, as the standard wants.
func ParseTrace(s string) (Trace, error) {
	var t Trace
	var version [1]byte
	var flags [1]byte
	ok := len(s) >= 55 && s[2] == '-' && s[35] == '-' && s[52] == '-' &&
		decodeHex(version[:], s[:2]) && decodeHex(t.TraceID[:], s[3:35]) &&
		decodeHex(t.SpanID[:], s[36:52]) && decodeHex(flags[:], s[53:55])
	if !ok || version[0] == 0xff || version[0] == 0 && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return Trace{}, ErrTrace
	}
	t.Flags = flags[0]
	if !t.Valid() {
		return Trace{}, ErrTrace
	}
	return t, nil
}

// decodeHex decodes lower-case hexadecimal digits; the standard allows no others.
func decodeHex(dst []byte, s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// traceLen is the length of a trace in an OPEN frame (wire.TraceLen).
const traceLen = 16 + 8 + 1

// Bytes returns the trace as OPEN frames carry it (trace ID, span ID, flags), or
// nil without a trace.
func (t Trace) Bytes() []byte {
	if !t.Valid() {
		return nil
	}
	b := make([]byte, 0, traceLen)
	b = append(b, t.TraceID[:]...)
	b = append(b, t.SpanID[:]...)
	return append(b, t.Flags)
}

// TraceOf returns the trace of an OPEN frame; the zero Trace if b holds none.
func TraceOf(b []byte) Trace {
	var t Trace
	if len(b) != traceLen {
		return t
	}
	copy(t.TraceID[:], b)
	copy(t.SpanID[:], b[16:])
	t.Flags = b[24]
	return t
}
