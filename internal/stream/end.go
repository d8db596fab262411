package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"postern.dev/postern/internal/wire"
)

// lingerTime bounds how long a stream that was closed early waits for the other
// side's last frame, so that its pipe can be used again or ends in order.
const lingerTime = 10 * time.Second

// CloseWrite ends the writing direction: the peer reads io.EOF after what was
// written. Reading goes on.
func (s *Stream) CloseWrite() error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.closedError(s.sendEOF(0))
}

// sendEOF sends EOF once; the caller holds wmu.
func (s *Stream) sendEOF(flags uint8) error {
	if s.writeErr != nil {
		return s.writeErr
	}
	if s.eofSent {
		return s.p.Flush()
	}
	var frame [wire.HeaderLen]byte
	wire.Header{Type: wire.FrameEOF, Flags: flags, Offset: s.sent}.Put(frame[:])
	accepted, err := s.p.Send(frame[:])
	s.eofSent = accepted
	if err != nil && !timedOut(err) {
		s.writeErr = err
	}
	return err
}

// Close ends the stream. What was written still reaches the peer, which then
// reads io.EOF; what it writes from now on is discarded and soon refused. Close
// does not wait for that.
func (s *Stream) Close() error {
	if !s.shut() {
		return nil
	}
	if s.p.Dead() != nil {
		s.finish(false)
		return nil
	}
	s.host.Go(func() { s.finish(s.linger(s.sayClosed)) })
	return nil
}

// Reset ends the stream at once and tells the peer why: its Read and Write give
// f, and a connection that Carry joined to it is reset in turn. That goes for both
// ends: a Carry under way here resets its local connection and returns f.
func (s *Stream) Reset(f *wire.Failure) {
	s.reason.CompareAndSwap(nil, f)
	if c := s.carrying.Load(); c != nil {
		c.abort(f, true)
		return
	}
	s.reset(f)
}

func (s *Stream) reset(f *wire.Failure) {
	if !s.shut() {
		return
	}
	if s.p.Dead() != nil {
		s.finish(false)
		return
	}
	s.host.Go(func() {
		s.linger(func() error {
			_, err := s.p.Send(wire.Append(nil, wire.FrameReset, 0, s.sent, f.Append(nil)))
			return err
		})
		s.finish(false)
	})
}

// shut marks the stream closed and unblocks Read and Write, which then see it. It
// reports whether this was the first time.
func (s *Stream) shut() bool {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if s.closed.Swap(true) {
		return false
	}
	_ = s.p.SetReadDeadline(past)
	_ = s.p.SetWriteDeadline(past)
	return true
}

func (s *Stream) sayClosed() error { return s.sendEOF(wire.FlagClosed) }

// linger waits for the present reader and writer to leave, says the last word,
// and reads on to the peer's last word, so that nothing that is still under way is
// mistaken for the next stream's, or turns our end into a TCP reset that overtakes
// it. It tells whether the pipe is clean.
func (s *Stream) linger(lastWord func() error) bool {
	s.wmu.Lock()
	_ = s.p.SetWriteDeadline(time.Now().Add(lingerTime))
	err := lastWord()
	s.wmu.Unlock()
	if err != nil {
		return false
	}
	s.rmu.Lock()
	defer s.rmu.Unlock()
	_ = s.p.SetReadDeadline(time.Now().Add(lingerTime))
	buf := s.host.Buffers().Get()
	defer s.host.Buffers().Put(buf)
	for err = s.await(); err == nil; err = s.await() {
		if _, err = s.take(buf[:]); err != nil {
			break
		}
	}
	return err == io.EOF && s.p.Flushed()
}

// finish gives the pipe back, once.
func (s *Stream) finish(clean bool) {
	if s.finished.Swap(true) {
		return
	}
	s.dmu.Lock() // whoever sets a deadline meanwhile does it before the next user has the pipe
	s.closed.Store(true)
	s.dmu.Unlock()
	if clean {
		clean = s.p.SetReadDeadline(time.Time{}) == nil && s.p.SetWriteDeadline(time.Time{}) == nil
	}
	s.host.Done(s.p, clean)
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// closedError turns the time-out by which Close unblocks others into
// net.ErrClosed.
func (s *Stream) closedError(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && s.closed.Load() {
		return net.ErrClosed
	}
	return err
}

func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
