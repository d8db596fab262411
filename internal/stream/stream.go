package stream

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// Host is what a stream needs of the process that it runs in: the proxy's pool,
// the agent's loop.
type Host interface {
	// Done takes the pipe back, exactly once per stream. clean tells that both
	// directions have ended, so that the pipe may carry the next stream.
	Done(p *pipe.Pipe, clean bool)

	// Go runs f in a goroutine that the host waits for before it ends.
	Go(f func())

	// Buffers lends memory.
	Buffers() *pipe.Buffers

	// Count adds bytes that streams have moved: in from the pipe, out to it.
	Count(in, out int)
}

// Stream is one conversation over a pipe. It is a net.Conn, with CloseWrite for
// half-close, and keeps to its contract, deadlines and concurrency included. Make
// one with Open or Accept.
type Stream struct {
	p    *pipe.Pipe
	host Host
	id   wire.StreamID
	far  net.Addr

	rmu      sync.Mutex // held by the reader
	rest     int        // unread bytes of the current DATA frame
	received uint64     // offset of the next byte
	readErr  error      // io.EOF after the peer's EOF, a failure after RESET or loss

	wmu      sync.Mutex // held by the writer
	sent     uint64     // offset of the next byte
	eofSent  bool
	writeErr error

	dmu        sync.Mutex // orders deadlines against the end
	readLimit  deadline
	writeLimit deadline

	peerDone atomic.Bool // the peer sent EOF
	peerGone atomic.Bool // the peer reads no more: EOF with FlagClosed
	closed   atomic.Bool
	finished atomic.Bool
	reason   atomic.Pointer[wire.Failure] // of the first RESET, ours or the peer's
	carrying atomic.Pointer[carry]        // set by Carry
	use      *limit.Use                   // nil for no limits
}

var _ net.Conn = (*Stream)(nil)

func newStream(p *pipe.Pipe, host Host, id wire.StreamID) *Stream {
	return &Stream{p: p, host: host, id: id, far: peer{p}}
}

// peer is the address of whoever is at the other end of a pipe.
type peer struct{ *pipe.Pipe }

func (peer) Network() string  { return "postern" }
func (p peer) String() string { return p.Peer().String() }

// addr is the address of the far end as text.
type addr string

func (addr) Network() string  { return "postern" }
func (a addr) String() string { return string(a) }

// Limit makes the stream's bytes wait for what a use may take. Call it before the
// first byte; whoever admitted the use also ends it, after the stream.
func (s *Stream) Limit(u *limit.Use) { s.use = u }

// pace waits until n bytes may pass. It is no error to give up: what follows finds
// out that the stream has ended.
func (s *Stream) pace(n int) {
	if s.use.Throttled() {
		s.use.Take(n, s)
	}
}

// Alive reports whether the stream may still move bytes; it implements
// limit.Living.
func (s *Stream) Alive() bool { return !s.closed.Load() && s.p.Dead() == nil }

// Quiet reports whether a stream that nobody has read for a time may still move bytes,
// and nothing has come: no bytes, and no end. It does not wait.
func (s *Stream) Quiet(left time.Duration) bool {
	if !s.Alive() || !s.rmu.TryLock() {
		return false
	}
	defer s.rmu.Unlock()
	return s.rest == 0 && s.readErr == nil && s.p.Quiet(left)
}

// ID returns the stream's ID, for logs and audit.
func (s *Stream) ID() wire.StreamID { return s.id }

// Pipe returns the pipe that carries the stream. It is for asking about; what moves over
// it is the stream's alone.
func (s *Stream) Pipe() *pipe.Pipe { return s.p }

// LocalAddr returns this end's address on the network.
func (s *Stream) LocalAddr() net.Addr { return s.p.LocalAddr() }

// RemoteAddr returns the address that the agent reached, or at the agent the
// identity of the proxy that asked.
func (s *Stream) RemoteAddr() net.Addr { return s.far }

// Read reads from the stream. It returns io.EOF only after the peer's EOF frame:
// a pipe that breaks gives a *wire.Failure, never a short but clean end.
func (s *Stream) Read(b []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed // at once, though linger holds rmu
	}
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(b) == 0 {
		return 0, nil
	}
	if s.readLimit.passed() {
		return 0, s.closedError(os.ErrDeadlineExceeded)
	}
	if err := s.await(); err != nil {
		return 0, s.closedError(err)
	}
	n, err := s.take(b)
	s.pace(n)
	return n, s.closedError(err)
}

// await makes sure that a DATA frame has unread bytes; the caller holds rmu.
func (s *Stream) await() error {
	for s.rest == 0 {
		if s.readErr != nil {
			return s.readErr
		}
		h, err := s.p.Next()
		if err != nil {
			if !timedOut(err) {
				s.readErr = err
			}
			return err
		}
		if err := s.frame(h); err != nil {
			s.readErr = err
			return err
		}
	}
	return nil
}

// frame acts on a frame's header; the caller holds rmu. An error ends the
// reading direction.
func (s *Stream) frame(h wire.Header) error {
	switch h.Type {
	case wire.FrameData:
		if h.Offset != s.received {
			return s.protocolError("DATA at offset %d where %d was due", h.Offset, s.received)
		}
		s.rest = h.Length
		return nil
	case wire.FrameEOF:
		if h.Offset != s.received {
			return s.protocolError("EOF at offset %d where %d was due", h.Offset, s.received)
		}
		if h.Flags&wire.FlagClosed != 0 {
			s.peerGone.Store(true)
		}
		s.peerDone.Store(true)
		return io.EOF
	case wire.FrameReset:
		f, err := readFailure(s.p, h.Length)
		if err != nil {
			return err
		}
		s.reason.CompareAndSwap(nil, f) // before a writer sees that the pipe is closed
		s.p.Close()                     // the peer waits for this
		return f
	case wire.FrameAck:
		return nil // resumption's; a sender that keeps no copy needs none
	default:
		return s.protocolError("unexpected %s", h.Type)
	}
}

func (s *Stream) protocolError(format string, args ...any) error {
	s.p.Close()
	return wire.Fail(wire.LegRelay, wire.CodeProtocol, format, args...)
}

// take reads payload of the current frame; the caller holds rmu.
func (s *Stream) take(b []byte) (int, error) {
	n, err := s.p.Read(b[:min(len(b), s.rest)])
	s.rest -= n
	s.received += uint64(n) //nolint:gosec // not negative
	if err != nil && !timedOut(err) {
		s.readErr = err
	}
	if n > 0 {
		s.host.Count(n, 0)
	}
	return n, err
}

// Write writes to the stream. It returns when the network has taken the bytes.
func (s *Stream) Write(b []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed // at once, though linger holds wmu
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	buf := s.host.Buffers().Get()
	defer s.host.Buffers().Put(buf)
	total := 0
	for first := true; len(b) > 0 || first; first = false {
		if err := s.writable(); err != nil {
			return total, s.closedError(err)
		}
		if s.writeLimit.passed() {
			return total, s.closedError(os.ErrDeadlineExceeded)
		}
		n := copy(buf[wire.HeaderLen:wire.MaxFrameLen], b)
		if n == 0 {
			break
		}
		s.pace(n)
		accepted, err := s.send(buf[:wire.HeaderLen+n])
		if accepted {
			total += n
			b = b[n:]
		}
		if err != nil {
			return total, s.closedError(err)
		}
	}
	return total, nil
}

// writable tells why no more may be written; the caller holds wmu.
func (s *Stream) writable() error {
	switch {
	case s.writeErr != nil:
		return s.writeErr
	case s.closed.Load(), s.eofSent:
		return net.ErrClosed
	case s.peerGone.Load():
		return wire.Fail(wire.LegTarget, wire.CodeReset, "the other side has closed the stream").WithCause(syscall.EPIPE)
	}
	return nil
}

// send sends a DATA frame whose payload stands behind room for the header; the
// caller holds wmu.
func (s *Stream) send(frame []byte) (accepted bool, err error) { return s.sendWith(frame, frame) }

// sendWith is send for a frame that whole begins with; what follows it is sent
// along.
func (s *Stream) sendWith(frame, whole []byte) (accepted bool, err error) {
	n := len(frame) - wire.HeaderLen
	wire.Header{Type: wire.FrameData, Length: n, Offset: s.sent}.Put(frame)
	accepted, err = s.p.Send(whole)
	if accepted {
		s.sent += uint64(n) //nolint:gosec // not negative
		s.host.Count(0, n)
	}
	if err != nil && !timedOut(err) {
		s.writeErr = err
	}
	return accepted, err
}
