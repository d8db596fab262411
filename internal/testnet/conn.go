package testnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	minChunk = 4 << 10
	maxChunk = 64 << 10
	// smallChunk is the size up to which a chunk gets memory of its own size:
	// small messages must not each hold maxChunk while they are on the way.
	smallChunk = 2 << 10
	// socketBuffer is asked for on the link's sockets. The path's queue is the
	// link's own; big kernel buffers beside it would be a second, hidden one.
	socketBuffer = 256 << 10
)

// errCut ends the loops of a connection that the link has reset.
var errCut = errors.New("connection cut by the link")

// chunks holds buffers of maxChunk bytes for all links of the process.
var chunks = sync.Pool{New: func() any { return new([maxChunk]byte) }}

// conn is one forwarded connection.
type conn struct {
	link *Link
	near *net.TCPConn // the side that dialled the link
	done chan struct{}
	deaf [2]atomic.Bool

	heard  atomic.Int64 // when something came last, by the clock in ns; for Idle
	silent atomic.Bool  // it was cut for that

	mu    sync.Mutex
	far   *net.TCPConn // the target's side; nil until it is dialled
	ended bool
}

func newConn(l *Link, near *net.TCPConn) *conn {
	return &conn{link: l, near: near, done: make(chan struct{})}
}

// reset ends the connection so that both ends see a reset. It may be called
// again and at any time.
func (c *conn) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	close(c.done)
	abort(c.near)
	if c.far != nil {
		abort(c.far)
	}
}

// run dials the target and forwards both directions until they have ended.
func (c *conn) run() {
	defer c.reset() // after two clean ends this closes what is already shut down
	if !c.link.gate.wait(c.done) {
		return
	}
	var d net.Dialer
	far, err := d.DialContext(c.link.ctx, "tcp", c.link.cfg.Target)
	if err != nil {
		return
	}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		abort(far.(*net.TCPConn))
		return
	}
	c.far = far.(*net.TCPConn)
	c.mu.Unlock()
	for _, tcp := range []*net.TCPConn{c.near, c.far} {
		_ = tcp.SetReadBuffer(socketBuffer)
		_ = tcp.SetWriteBuffer(socketBuffer)
	}

	up, down := c.flow(Up, c.near, c.far), c.flow(Down, c.far, c.near)
	var wg sync.WaitGroup
	wg.Go(up.read)
	wg.Go(up.write)
	wg.Go(down.read)
	wg.Go(down.write)
	wg.Wait()
	c.finish()
}

// finish closes both sockets in order after both directions ended cleanly.
func (c *conn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	close(c.done)
	_ = c.near.Close()
	_ = c.far.Close()
}

func (c *conn) flow(d Direction, src, dst *net.TCPConn) *flow {
	ln := c.link.lines[d]
	if ln == nil {
		ln = newLine(c.link.cfg.Rate, c.link.cfg.Queue)
	}
	f := &flow{conn: c, dir: d, src: src, dst: dst, line: ln, window: ln.window(c.link.cfg.Delay)}
	f.cond.L = &f.mu
	return f
}

// flow is one direction of a connection. Its reader gives each chunk the moment
// at which it arrives at the other end; its writer delivers it then.
type flow struct {
	conn     *conn
	dir      Direction
	src, dst *net.TCPConn
	line     *line
	window   int // bytes that may be held

	mu     sync.Mutex
	cond   sync.Cond
	queue  []packet
	held   int
	closed bool // no more will be read, or the writer is gone
}

// packet is what travels: bytes, or the end of the stream when err is not nil.
type packet struct {
	bytes []byte
	full  *[maxChunk]byte // the pooled memory of bytes; nil for a small one
	due   time.Time
	err   error // io.EOF for a clean end, anything else for a reset
}

func (f *flow) read() {
	timer := newTimer()
	defer timer.Stop()
	size := f.line.chunkSize()
	for {
		full := chunks.Get().(*[maxChunk]byte)
		n, err := f.hear(full[:size])
		now := time.Now()
		p := packet{bytes: full[:n], full: full}
		if n <= smallChunk {
			p.bytes = append([]byte(nil), full[:n]...)
			chunks.Put(full)
			p.full = nil
		}
		leaves, next := f.line.send(n, now)
		p.due = leaves.Add(f.conn.link.cfg.Delay)
		if n > 0 && !f.push(p) {
			return
		}
		if err != nil {
			f.push(packet{due: p.due, err: err})
			return
		}
		if !sleepUntil(timer, next, f.conn.done) {
			f.push(packet{err: errCut})
			return
		}
	}
}

// hear reads what comes, and ends a connection on which both ends are silent for
// longer than the link allows.
func (f *flow) hear(b []byte) (int, error) {
	idle := f.conn.link.cfg.Idle
	if idle == 0 {
		return f.src.Read(b)
	}
	for until := time.Now().Add(idle); ; {
		_ = f.src.SetReadDeadline(until)
		n, err := f.src.Read(b)
		now := time.Now()
		if n > 0 {
			f.conn.heard.Store(now.UnixNano())
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		// The other direction may have had something to say.
		if until = time.Unix(0, f.conn.heard.Load()).Add(idle); !until.After(now) {
			if f.conn.silent.CompareAndSwap(false, true) {
				f.conn.link.idled.Add(1)
			}
			return 0, errCut
		}
	}
}

// push hands p to the writer. It waits for room and returns false when the
// writer is gone.
func (f *flow) push(p packet) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.held+len(p.bytes) > f.window && !f.closed && p.err == nil {
		f.cond.Wait()
	}
	if f.closed {
		return false
	}
	f.held += len(p.bytes)
	f.queue = append(f.queue, p)
	f.cond.Broadcast()
	return true
}

// pop returns the next packet, waiting for it.
func (f *flow) pop() packet {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) == 0 {
		f.cond.Wait()
	}
	p := f.queue[0]
	f.queue[0] = packet{}
	f.queue = f.queue[1:]
	return p
}

func (f *flow) release(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held -= n
	f.cond.Broadcast()
}

// write delivers packets at their time until the end of the stream.
func (f *flow) write() {
	timer := newTimer()
	defer timer.Stop()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.closed = true
		f.cond.Broadcast()
	}()
	for {
		p := f.pop()
		if !sleepUntil(timer, p.due, f.conn.done) || !f.conn.link.gate.wait(f.conn.done) {
			return
		}
		deaf := f.conn.deaf[f.dir].Load()
		switch {
		case p.err == nil:
			if !deaf && !f.deliver(p.bytes) {
				return
			}
			f.release(len(p.bytes))
			if p.full != nil {
				chunks.Put(p.full)
			}
		case deaf:
			<-f.conn.done // a clean end must not close the connection by itself
			return
		case errors.Is(p.err, io.EOF):
			_ = f.dst.CloseWrite()
			return
		default:
			f.conn.reset()
			return
		}
	}
}

// deliver writes b to the destination, within the link's byte budget. It
// returns false when the connection has ended.
func (f *flow) deliver(b []byte) bool {
	n, cut := f.conn.link.spend(f.dir, len(b))
	written, err := f.dst.Write(b[:n])
	f.conn.link.delivered[f.dir].Add(int64(written))
	if cut {
		f.conn.link.Cut()
		return false
	}
	if err != nil {
		f.conn.reset()
		return false
	}
	return true
}

func newTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// sleepUntil returns true at the given moment and false when done ends first.
func sleepUntil(t *time.Timer, when time.Time, done <-chan struct{}) bool {
	d := time.Until(when)
	if d <= 0 {
		select {
		case <-done:
			return false
		default:
			return true
		}
	}
	t.Reset(d)
	select {
	case <-t.C:
		return true
	case <-done:
		t.Stop()
		return false
	}
}
