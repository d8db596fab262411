package stream

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline limits Read; after a time-out reading can go on.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.readLimit.set(t)
	return s.p.SetReadDeadline(t)
}

// SetWriteDeadline limits Write; after a time-out writing can go on, and the
// number that Write returned is what will reach the peer.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.writeLimit.set(t)
	return s.p.SetWriteDeadline(t)
}

// deadline is one as the stream remembers it. The socket's own would not be
// asked when bytes lie ready, or when there is room for them, short of the network.
type deadline struct{ nanos atomic.Int64 }

func (l *deadline) set(t time.Time) {
	if t.IsZero() {
		l.nanos.Store(0)
	} else {
		l.nanos.Store(t.UnixNano())
	}
}

func (l *deadline) passed() bool {
	n := l.nanos.Load()
	return n != 0 && n <= time.Now().UnixNano()
}
