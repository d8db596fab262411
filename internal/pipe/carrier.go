package pipe

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// errWouldBlock is what a carrier's Read returns in polling mode when nothing has
// arrived. It says that it is temporary, so that crypto/tls goes on afterwards.
type errWouldBlock struct{}

func (errWouldBlock) Error() string   { return "nothing to read now" }
func (errWouldBlock) Timeout() bool   { return true }
func (errWouldBlock) Temporary() bool { return true }

// carrier is the bare connection under the inner TLS. It reads in large pieces
// into borrowed memory, so that one system call serves several records and an idle
// pipe holds none; and it gathers the records of a frame and writes them in one
// call. A write that times out keeps what is left for the next flush: crypto/tls,
// which a failed write would ruin, never sees it.
//
// The reading half belongs to the goroutine that reads the pipe, the writing half
// to the one that holds the pipe's write lock. But crypto/tls writes while it reads
// too, an alert or the answer to a KeyUpdate, when the peer gives it reason: so what is
// sealed has a lock of its own, which is not held while the network is waited for.
type carrier struct {
	net.Conn
	raw  syscall.RawConn // nil where the connection is not a socket
	bufs *Buffers

	in         *Buffer
	r, w       int
	polling    bool
	waiting    atomic.Bool   // a reader waits for bytes
	arrivals   atomic.Uint64 // reads that brought something
	readReady  func(fd uintptr) bool
	readN      int
	readErr    error
	writeReady func(fd uintptr)

	gather bool // false during the handshake, which flushes by itself
	omu    sync.Mutex
	out    *Buffer // guarded by omu
	sealed []byte  // what TLS wrote and the network has not taken; aliases out; guarded by omu
}

func newCarrier(c net.Conn, bufs *Buffers) *carrier {
	cr := &carrier{Conn: c, bufs: bufs}
	if sc, ok := c.(syscall.Conn); ok && canReadFD {
		if raw, err := sc.SyscallConn(); err == nil {
			cr.raw = raw
			cr.readReady, cr.writeReady = cr.tryRead, cr.tryWrite
		}
	}
	return cr
}

// Read gives crypto/tls what has arrived, and waits when nothing has.
func (c *carrier) Read(b []byte) (int, error) {
	if c.r == c.w {
		if c.raw == nil {
			return c.readPlain(b)
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.in[c.r:c.w])
	if c.r += n; c.r == c.w {
		c.bufs.Put(c.in)
		c.in, c.r, c.w = nil, 0, 0
	}
	return n, nil
}

// buffered tells how many bytes have been read from the network and not yet been
// asked for.
func (c *carrier) buffered() int { return c.w - c.r }

func (c *carrier) fill() error {
	c.readN, c.readErr = 0, nil
	err := c.raw.Read(c.readReady)
	if c.waiting.Load() {
		c.waiting.Store(false)
	}
	if err == nil {
		err = c.readErr
	}
	if err != nil {
		return err
	}
	c.r, c.w = 0, c.readN
	c.arrivals.Add(1)
	return nil
}

// tryRead is called by the runtime whenever the socket may be readable. Memory
// is borrowed only for the moment of the call.
func (c *carrier) tryRead(fd uintptr) bool {
	c.in = c.bufs.Get()
	n, again, err := readFD(fd, c.in[:])
	if n > 0 {
		c.readN = n
		return true
	}
	c.bufs.Put(c.in)
	c.in = nil
	switch {
	case again && c.polling:
		c.readErr = errWouldBlock{}
	case again:
		c.waiting.Store(true)
		return false
	default:
		c.readErr = err
	}
	return true
}

// readPlain serves connections that are not sockets, such as TLS to an HTTP
// proxy.
func (c *carrier) readPlain(b []byte) (int, error) {
	if c.polling {
		_ = c.Conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		defer func() { _ = c.Conn.SetReadDeadline(time.Time{}) }()
	} else {
		c.waiting.Store(true)
		defer c.waiting.Store(false)
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.arrivals.Add(1)
	}
	return n, err
}

// Write takes a record from crypto/tls.
func (c *carrier) Write(b []byte) (int, error) {
	if !c.gather {
		return c.Conn.Write(b)
	}
	c.omu.Lock()
	defer c.omu.Unlock()
	if c.out == nil {
		c.out = c.bufs.Get()
		c.sealed = c.out[:0]
	}
	c.sealed = append(c.sealed, b...)
	return len(b), nil
}

// pending reports whether something is sealed that the network has not taken.
func (c *carrier) pending() bool {
	c.omu.Lock()
	defer c.omu.Unlock()
	return len(c.sealed) > 0
}

// flush hands the gathered records to the network. What could not be written
// before the deadline stays for the next call.
func (c *carrier) flush() error {
	c.omu.Lock()
	defer c.omu.Unlock()
	for len(c.sealed) > 0 {
		now := c.sealed
		c.omu.Unlock() // what is added meanwhile stands behind it, and comes next
		n, err := c.Conn.Write(now)
		c.omu.Lock()
		c.sealed = c.sealed[n:]
		if err != nil {
			return err
		}
	}
	c.drop()
	return nil
}

// tryFlush writes what the network takes at once; raw is not nil.
func (c *carrier) tryFlush() error {
	c.omu.Lock()
	defer c.omu.Unlock()
	if len(c.sealed) > 0 {
		// Control and not Write: a deadline that has passed is for those who wait.
		if err := c.raw.Control(c.writeReady); err != nil {
			return err
		}
	}
	if len(c.sealed) == 0 {
		c.drop()
	}
	return nil
}

// tryWrite is called by tryFlush, with omu held.
func (c *carrier) tryWrite(fd uintptr) {
	n, _ := writeFD(fd, c.sealed)
	c.sealed = c.sealed[n:]
}

// drop returns the memory of the writing half; the caller holds omu.
func (c *carrier) drop() {
	if c.out != nil {
		c.bufs.Put(c.out)
		c.out, c.sealed = nil, nil
	}
}
