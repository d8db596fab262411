package pipe

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// ErrIdle is returned by Poll when a pipe is sound and nothing has arrived.
var ErrIdle = errors.New("nothing has arrived")

// Pipe is one connection from a proxy to an agent, encrypted from end to end,
// that carries frames. One goroutine reads it at a time (Next, Read, Poll); any
// number may write (Send). Deadlines leave a pipe usable: what was read or written
// in part is continued by the next call.
type Pipe struct {
	c    *carrier
	tls  *tls.Conn
	peer identity.ID

	holder identity.Holder // of the peer's certificate

	header [wire.HeaderLen]byte
	have   int // bytes of header

	wmu     sync.Mutex // held while a frame is sealed and flushed
	frames  uint64     // sent; guarded by wmu
	held    bool       // a frame is sealed that waits for the next; guarded by wmu
	release *time.Timer

	dead      atomic.Pointer[wire.Failure]
	watch     watch
	companion companion
}

// Client runs the inner TLS over a connection as the side that opens streams.
// cfg comes from identity.InnerClientConfig, which checks who the peer is. It
// closes conn when it fails.
func Client(ctx context.Context, conn net.Conn, cfg *tls.Config, bufs *Buffers) (*Pipe, error) {
	c := newCarrier(conn, bufs)
	return establish(ctx, c, tls.Client(c, cfg))
}

// Server is Client for the side that accepts streams.
func Server(ctx context.Context, conn net.Conn, cfg *tls.Config, bufs *Buffers) (*Pipe, error) {
	c := newCarrier(conn, bufs)
	return establish(ctx, c, tls.Server(c, cfg))
}

func establish(ctx context.Context, c *carrier, tc *tls.Conn) (*Pipe, error) {
	// crypto/tls closes the carrier when ctx ends during the handshake.
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Conn.Close()
		return nil, wire.Fail(wire.LegTLS, tlsCode(err), "inner handshake: %v", err).WithCause(err)
	}
	leaf := tc.ConnectionState().PeerCertificates[0]
	peer, err := identity.CertificateID(leaf)
	var holder identity.Holder
	if err == nil {
		holder, err = identity.CertificateHolder(leaf)
	}
	if err != nil {
		_ = c.Conn.Close()
		return nil, wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "inner handshake: %v", err)
	}
	c.gather = true
	return &Pipe{c: c, tls: tc, peer: peer, holder: holder}, nil
}

func tlsCode(err error) wire.Code {
	var f *wire.Failure
	var timeout net.Error
	switch {
	case errors.As(err, &f):
		return f.Code
	case errors.As(err, &timeout) && timeout.Timeout():
		return wire.CodeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return wire.CodeLost
	default:
		return wire.CodeWrongPeer
	}
}

// Peer returns the identity that the other side proved.
func (p *Pipe) Peer() identity.ID { return p.peer }

// Holder returns on whose behalf the other side's certificate was issued. Pipes
// share its slice with nobody who writes.
func (p *Pipe) Holder() identity.Holder { return p.holder }

// LocalAddr returns this end's address on the network.
func (p *Pipe) LocalAddr() net.Addr { return p.c.LocalAddr() }

// RemoteAddr returns the address this end is connected to, which is a relay's.
func (p *Pipe) RemoteAddr() net.Addr { return p.c.RemoteAddr() }

// SetReadDeadline limits Next and Read, as net.Conn does.
func (p *Pipe) SetReadDeadline(t time.Time) error { return p.c.SetReadDeadline(t) }

// SetWriteDeadline limits Send, as net.Conn does.
func (p *Pipe) SetWriteDeadline(t time.Time) error { return p.c.SetWriteDeadline(t) }

// Next waits for the next frame and returns its header; signs of life are dealt
// with on the way. The caller reads the whole payload before it calls Next again.
// Errors are time-outs, which may be retried, or a *wire.Failure with CodeLost or
// CodeProtocol, after which the pipe is dead.
func (p *Pipe) Next() (wire.Header, error) {
	for {
		h, err := p.next()
		if err != nil || h.Type != wire.FramePing && h.Type != wire.FramePong {
			return h, err
		}
	}
}

// Unread makes Next give the header again that it has just given.
func (p *Pipe) Unread() { p.have = wire.HeaderLen }

// next is Next, signs of life included.
func (p *Pipe) next() (wire.Header, error) {
	for p.have < wire.HeaderLen {
		n, err := p.tls.Read(p.header[p.have:])
		p.have += n
		if err != nil {
			return wire.Header{}, p.readFailed(err)
		}
	}
	p.have = 0
	h, err := wire.ParseHeader(p.header[:])
	if err != nil {
		return wire.Header{}, p.fail(wire.Fail(wire.LegRelay, wire.CodeProtocol, "pipe to %s: %v", p.peer, err))
	}
	if h.Type == wire.FramePing && h.Flags&wire.FlagEcho != 0 {
		p.signal(wire.FramePong, 0, h.Offset, always)
	}
	return h, nil
}

// Read reads payload of the current frame, up to len(b) bytes; the caller knows
// how much there is.
func (p *Pipe) Read(b []byte) (int, error) {
	n, err := p.tls.Read(b)
	if n > 0 {
		return n, nil
	}
	return 0, p.readFailed(err)
}

// Buffered reports whether more has already arrived than has been read, so that
// a reader that gathers can tell whether to go on.
func (p *Pipe) Buffered() bool { return p.c.buffered() > 0 }

// Poll deals with the signs of life that have arrived on an idle pipe, without
// waiting. It returns ErrIdle when the pipe is sound; any other error means that
// the pipe is dead.
func (p *Pipe) Poll() error {
	p.c.polling = true
	h, err := p.Next()
	p.c.polling = false
	var wb errWouldBlock
	switch {
	case err == nil:
		return p.fail(wire.Fail(wire.LegRelay, wire.CodeProtocol, "%s on an idle pipe from %s", h.Type, p.peer))
	case errors.As(err, &wb), p.c.raw == nil && isDeadline(err):
		return ErrIdle
	default:
		return err
	}
}

// Quiet reports whether a pipe that nobody has read for a time is sound, without
// waiting: no frame has come, but for signs of life, and of those at least one, if it
// was left for longer than they take.
func (p *Pipe) Quiet(left time.Duration) bool {
	if p.c.raw == nil || p.Dead() != nil { // one cannot look at what is no socket
		return p.Dead() == nil
	}
	before := p.c.arrivals.Load()
	p.c.polling = true
	_, err := p.Next()
	p.c.polling = false
	var wb errWouldBlock
	if err == nil {
		p.Unread()
		return false
	}
	return errors.As(err, &wb) && (left < SilentBeats*BeatInterval || p.c.arrivals.Load() != before)
}

func always() bool { return true }

// Ping sends an echo over an idle pipe and waits for its return: the proof that
// bytes pass from end to end. An error other than a time-out means that the pipe is
// dead; after a time-out it is no longer fit for use, and is closed.
func (p *Pipe) Ping(ctx context.Context) (time.Duration, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	start := time.Now()
	number := uint64(start.UnixNano())
	p.signal(wire.FramePing, wire.FlagEcho, number, always)
	for {
		h, err := p.next()
		switch {
		case isDeadline(err):
			return 0, p.fail(wire.Fail(wire.LegAgent, wire.CodeTimeout, "no echo over the pipe to %s within %s",
				p.peer, time.Since(start).Round(time.Millisecond)))
		case err != nil:
			return 0, err
		case h.Type == wire.FramePong && h.Offset == number:
			if !stop() { // the deadline may yet fall on whoever uses the pipe next
				return 0, p.fail(wire.Fail(wire.LegAgent, wire.CodeTimeout, "the echo over the pipe to %s came too late", p.peer))
			}
			return time.Since(start), nil
		}
	}
}

// Close ends the pipe at once. Streams end properly before (package stream).
func (p *Pipe) Close() {
	_ = p.fail(wire.Fail(wire.LegRelay, wire.CodeCanceled, "pipe to %s was closed", p.peer))
}

// Dead returns why the pipe ended, or nil while it lives.
func (p *Pipe) Dead() *wire.Failure { return p.dead.Load() }

// fail declares the pipe dead, for the first reason that is given, and unblocks
// whoever reads or writes.
func (p *Pipe) fail(f *wire.Failure) error {
	if p.dead.CompareAndSwap(nil, f) {
		_ = p.c.Conn.Close()
	}
	return p.dead.Load()
}

func (p *Pipe) readFailed(err error) error {
	var wb errWouldBlock
	if isDeadline(err) || errors.As(err, &wb) {
		return err
	}
	if err == io.EOF { // it must not pass for the end of a stream, not even with errors.Is
		err = io.ErrUnexpectedEOF
	}
	return p.fail(wire.Fail(wire.LegRelay, wire.CodeLost, "pipe to %s broke: %v", p.peer, err).WithCause(err))
}

func (p *Pipe) writeFailed(err error) error {
	if isDeadline(err) {
		return err
	}
	return p.fail(wire.Fail(wire.LegRelay, wire.CodeLost, "pipe to %s broke: %v", p.peer, err).WithCause(err))
}

// isDeadline tells a deadline of ours from ETIMEDOUT, which is also a time-out to
// net.Error but means that the network gave up.
func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
