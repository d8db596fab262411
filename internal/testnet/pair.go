package testnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// PairConn is one end of an in-memory connection made by Pair. It is a net.Conn
// with half-close, and its directions can be blocked. It uses no file
// descriptor, so it works inside testing/synctest.
type PairConn struct {
	name    string
	in, out *half
}

// Pair returns the two ends of an in-memory connection. Each direction buffers
// up to size bytes before Write blocks; size must be at least 1.
func Pair(size int) (a, b *PairConn) {
	ab, ba := newHalf(size), newHalf(size)
	return &PairConn{name: "a", in: ba, out: ab}, &PairConn{name: "b", in: ab, out: ba}
}

// half is one direction of a pair.
type half struct {
	size int

	mu           sync.Mutex
	cond         sync.Cond
	buf          []byte
	eof          bool  // the writer is done: buf, then io.EOF
	gone         bool  // the reader is gone: writes fail
	reset        bool  // both ends fail at once; buf is dropped
	readBlocked  bool  // reads wait, whatever is there
	writeBlocked bool  // writes wait, whatever room there is
	readEnd      limit // deadlines
	writeEnd     limit
}

// limit is a deadline that wakes the waiters of a half when it passes.
type limit struct {
	timer *time.Timer
	at    time.Time
}

func (l *limit) passed() bool { return !l.at.IsZero() && !time.Now().Before(l.at) }

func newHalf(size int) *half {
	h := &half{size: max(size, 1)}
	h.cond.L = &h.mu
	return h
}

// set changes the state of a half and wakes everybody who waits on it.
func (h *half) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	h.cond.Broadcast()
}

func (h *half) setDeadline(l *limit, at time.Time) {
	h.set(func() {
		if l.timer != nil {
			l.timer.Stop()
			l.timer = nil
		}
		l.at = at
		if !at.IsZero() {
			l.timer = time.AfterFunc(time.Until(at), func() { h.set(func() {}) })
		}
	})
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.gone:
			return 0, net.ErrClosed
		case h.reset:
			return 0, io.ErrUnexpectedEOF
		case h.readEnd.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.readBlocked: // wait
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = append(h.buf[:0], h.buf[n:]...)
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.eof:
			return n, net.ErrClosed
		case h.gone, h.reset:
			return n, io.ErrClosedPipe
		case h.writeEnd.passed():
			return n, os.ErrDeadlineExceeded
		case n == len(p):
			return n, nil
		}
		if room := h.size - len(h.buf); room > 0 && !h.writeBlocked {
			k := min(room, len(p)-n)
			h.buf = append(h.buf, p[n:n+k]...)
			n += k
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
}

// Read reads what the other end wrote. After the other end's CloseWrite or
// Close it returns io.EOF, after a Reset io.ErrUnexpectedEOF.
func (c *PairConn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write blocks while the buffer is full. After the other end's Close it returns
// io.ErrClosedPipe.
func (c *PairConn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends the stream of bytes to the other end; reading goes on.
func (c *PairConn) CloseWrite() error {
	c.out.set(func() { c.out.eof = true })
	return nil
}

// Close ends both directions: the other end reads what is buffered, then EOF.
func (c *PairConn) Close() error {
	c.out.set(func() { c.out.eof = true })
	c.in.set(func() { c.in.gone = true })
	c.SetDeadline(time.Time{}) //nolint:errcheck // it cannot fail; this stops the timers
	return nil
}

// Reset ends both directions at once for both ends; buffered bytes are lost.
func (c *PairConn) Reset() {
	for _, h := range []*half{c.in, c.out} {
		h.set(func() { h.reset, h.buf = true, nil })
	}
}

// SetReadBlock makes Reads of this end wait although there is something to read
// (true), as when nothing arrives any more, or go on (false).
func (c *PairConn) SetReadBlock(on bool) { c.in.set(func() { c.in.readBlocked = on }) }

// SetWriteBlock makes Writes of this end wait although there is room (true), as
// when the peer's window is closed, or go on (false).
func (c *PairConn) SetWriteBlock(on bool) { c.out.set(func() { c.out.writeBlocked = on }) }

// SetDeadline sets both deadlines.
func (c *PairConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readEnd, t)
	c.out.setDeadline(&c.out.writeEnd, t)
	return nil
}

// SetReadDeadline sets the time after which Read fails.
func (c *PairConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readEnd, t)
	return nil
}

// SetWriteDeadline sets the time after which Write fails.
func (c *PairConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeEnd, t)
	return nil
}

// LocalAddr returns a name, not an address that can be dialled.
func (c *PairConn) LocalAddr() net.Addr { return pairAddr(c.name) }

// RemoteAddr returns a name, not an address that can be dialled.
func (c *PairConn) RemoteAddr() net.Addr { return pairAddr("peer of " + c.name) }

type pairAddr string

// Network returns "memory".
func (pairAddr) Network() string { return "memory" }

// String returns the name.
func (a pairAddr) String() string { return string(a) }
