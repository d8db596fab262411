package pipe

import (
	"io"
	"net"
	"syscall"

	"postern.dev/postern/internal/wire"
)

// Source reads a local connection into borrowed buffers, leaving room for a
// frame's header in front. While it waits on a socket it holds no memory. It is for
// one goroutine.
type Source struct {
	conn  net.Conn
	raw   syscall.RawConn
	bufs  *Buffers
	buf   *Buffer
	n     int
	err   error
	ready func(fd uintptr) bool
}

// NewSource returns a source that reads conn.
func NewSource(conn net.Conn, bufs *Buffers) *Source {
	s := &Source{conn: conn, bufs: bufs}
	if sc, ok := conn.(*net.TCPConn); ok && canReadFD {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw, s.ready = raw, s.tryRead
		}
	}
	return s
}

// Read waits for bytes and returns a buffer with n of them behind
// wire.HeaderLen bytes of room; the caller gives the buffer back. It takes all that
// has arrived, up to wire.MaxPayloadLen bytes, and if the end has arrived too, it
// returns io.EOF with them. Behind the bytes there is room for another header. The
// buffer is nil when there are none.
func (s *Source) Read() (buf *Buffer, n int, err error) {
	if s.raw == nil {
		buf = s.bufs.Get()
		if n, err = s.conn.Read(buf[wire.HeaderLen:wire.MaxFrameLen]); n == 0 {
			s.bufs.Put(buf)
			buf = nil
		}
		return buf, n, err
	}
	s.n, s.err = 0, nil
	if err = s.raw.Read(s.ready); err == nil {
		err = s.err
	}
	if err != nil && err != io.EOF {
		err = &net.OpError{Op: "read", Net: "tcp", Source: s.conn.LocalAddr(), Addr: s.conn.RemoteAddr(), Err: err}
	}
	buf, s.buf = s.buf, nil
	return buf, s.n, err
}

// tryRead is called by the runtime whenever the socket may be readable. Memory is
// borrowed only for the moment of the call.
func (s *Source) tryRead(fd uintptr) bool {
	buf := s.bufs.Get()
	for s.n < wire.MaxPayloadLen {
		n, again, err := readFD(fd, buf[wire.HeaderLen+s.n:wire.MaxFrameLen])
		s.n += n
		if again || err != nil {
			s.err = err
			break
		}
	}
	if s.n == 0 {
		s.bufs.Put(buf)
		return s.err != nil
	}
	s.buf = buf
	return true
}

// ReadNow reads what has arrived on a fresh connection, up to len(b) bytes, without
// waiting. It returns 0 when there is nothing, or no telling.
func ReadNow(conn net.Conn, b []byte) int {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || !canReadFD {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if err := raw.Read(func(fd uintptr) bool {
		n, _, _ = readFD(fd, b) // an error, or the end, comes again
		return true
	}); err != nil {
		return 0
	}
	return n
}
