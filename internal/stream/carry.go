package stream

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// Stats is what a stream moved, in bytes.
type Stats struct {
	In  int64 // from the pipe to the local connection
	Out int64 // from the local connection to the pipe
}

// Carry joins the stream to a local connection: it moves bytes both ways until
// both directions have ended, and then closes both. early is what was already read
// from the local connection. An end on one side becomes an end on the other, with
// the opposite direction going on; a reset, or a pipe that breaks, becomes a reset,
// so that neither side takes a part for the whole. leg is the one that the local
// connection belongs to (wire.LegClient or wire.LegTarget), for the error, which is
// nil when both directions ended properly.
func (s *Stream) Carry(local net.Conn, early []byte, leg wire.Leg) (Stats, error) {
	c := &carry{s: s, local: local, leg: leg}
	c.stats.Out = int64(s.sent) //nolint:gosec // what Open sent along
	s.carrying.Store(c)
	if f := s.reason.Load(); f != nil { // Reset came first
		c.abort(f, true)
		return c.stats, c.failure
	}
	var up sync.WaitGroup
	up.Go(func() { c.outward(early) })
	c.inward()
	up.Wait()
	c.once.Do(func() { // unless something failed, or Reset comes just now
		_ = local.Close()
		s.finish(true)
	})
	if c.failure != nil {
		return c.stats, c.failure
	}
	return c.stats, nil
}

// carry is the state of one Carry. Its two directions share only the way they
// fail.
type carry struct {
	s     *Stream
	local net.Conn
	leg   wire.Leg
	stats Stats // In by inward, Out by outward

	outDone  atomic.Bool // the local connection has ended, and the peer knows
	watching atomic.Bool // the peer has ended, and inward watches over outward

	once    sync.Once // the end, by abort or in order
	failure *wire.Failure
}

// abort ends both directions for the first reason that is given. tell says that
// the peer does not know it yet.
func (c *carry) abort(f *wire.Failure, tell bool) {
	c.once.Do(func() {
		if reason := c.s.reason.Load(); reason != nil {
			f = reason // what else went wrong came from it
		}
		c.failure = f
		if tcp, ok := c.local.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // the client or target sees a reset, not an end
		}
		_ = c.local.Close()
		if !tell {
			c.s.p.Close()
		}
		c.s.reset(f)
	})
}

// inward moves bytes from the pipe to the local connection.
func (c *carry) inward() {
	s := c.s
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for {
		switch err := s.await(); {
		case err == nil:
		case err == io.EOF:
			if c.outDone.Load() {
				return // Carry closes all of it
			}
			if err := closeWrite(c.local); err != nil && !gone(err) {
				c.localFailed(err)
			}
			c.watch()
			return
		default:
			c.abort(wire.AsFailure(err, wire.LegRelay), false)
			return
		}
		if err := c.forward(); err != nil {
			return
		}
	}
}

// watch reads on after the peer's end, while this side may still send: without
// signs of life a peer that froze would not be found, and it may yet reset the stream.
// outward ends it.
func (c *carry) watch() {
	s := c.s
	for c.watching.Store(true); !c.outDone.Load(); {
		h, err := s.p.Next()
		switch {
		case err != nil && timedOut(err) && c.outDone.Load():
			return
		case err != nil:
		case h.Type == wire.FrameOpen: // the next stream's: the peer has our end by now
			s.p.Unread()
			return
		case h.Type == wire.FrameReset, h.Type == wire.FrameAck:
			err = s.frame(h)
		default:
			err = s.protocolError("%s after EOF", h.Type)
		}
		if err != nil {
			c.abort(wire.AsFailure(err, wire.LegRelay), false)
			return
		}
	}
}

// forward moves what is left of the current DATA frame: everything that has
// arrived in one write, and no waiting for what has not.
func (c *carry) forward() error {
	s := c.s
	buf := s.host.Buffers().Get()
	defer s.host.Buffers().Put(buf)
	n := 0
	for s.rest > 0 && n < len(buf) && (n == 0 || s.p.Buffered()) {
		m, err := s.p.Read(buf[n:min(len(buf), n+s.rest)])
		n += m
		s.rest -= m
		s.received += uint64(m) //nolint:gosec // not negative
		if err != nil {
			c.abort(wire.AsFailure(err, wire.LegRelay), false)
			return err
		}
	}
	s.host.Count(n, 0)
	s.pace(n)
	n, err := c.local.Write(buf[:n])
	c.stats.In += int64(n)
	if err != nil {
		c.localFailed(err)
	}
	return err
}

// outward moves bytes from the local connection to the pipe.
func (c *carry) outward(early []byte) {
	s := c.s
	if len(early) > 0 {
		n, err := s.Write(early)
		c.stats.Out += int64(n)
		if err != nil {
			c.abort(wire.AsFailure(err, wire.LegRelay), false)
			return
		}
	}
	src := pipe.NewSource(c.local, s.host.Buffers())
	for {
		buf, n, err := src.Read()
		if buf != nil {
			s.pace(n)
			serr := c.send(buf, n, err == io.EOF)
			s.host.Buffers().Put(buf)
			if serr != nil {
				c.abort(wire.AsFailure(serr, wire.LegRelay), s.peerGone.Load())
				return
			}
			c.stats.Out += int64(n)
		} else if err == io.EOF {
			if serr := s.CloseWrite(); serr != nil {
				c.abort(wire.AsFailure(serr, wire.LegRelay), false)
				return
			}
		}
		switch {
		case err == io.EOF:
			c.outDone.Store(true)
			if c.watching.Load() {
				_ = s.p.SetReadDeadline(past)
			}
			return
		case err != nil:
			c.localFailed(err)
			return
		}
	}
}

// send sends n bytes that stand in buf behind room for a header, and with them the
// end if it is known already: one record, and one wake-up of the peer, for both.
func (c *carry) send(buf *pipe.Buffer, n int, end bool) error {
	s := c.s
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	frame := buf[:wire.HeaderLen+n]
	if !end {
		_, err := s.send(frame)
		return err
	}
	wire.Header{Type: wire.FrameEOF, Offset: s.sent + uint64(n)}.Put(buf[len(frame) : len(frame)+wire.HeaderLen]) //nolint:gosec // not negative
	_, err := s.sendWith(frame, buf[:len(frame)+wire.HeaderLen])
	s.eofSent = err == nil
	return err
}

// localFailed aborts because the client or the target failed.
func (c *carry) localFailed(err error) {
	f := wire.Fail(c.leg, wire.CodeReset, "the %s's connection broke: %v", c.leg, err).WithCause(err)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		f.Text = "the " + c.leg.String() + " reset the connection"
	}
	c.abort(f, true)
}

// gone tells that a connection had already ended when its writing half was to be
// closed: there was nothing left to lose.
func gone(err error) bool { return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, net.ErrClosed) }

// closeWrite ends the writing half of a connection that has one, and otherwise
// all of it, as there is no other way to tell its peer.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
