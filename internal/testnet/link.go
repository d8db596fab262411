// Package testnet makes networks for tests and benchmarks, in user space and on
// loopback: a Link is a path with delay, rate and a bounded queue that can be
// frozen, cut or made deaf in one direction while it is in use; a Pair is an
// in-memory connection whose two directions can be blocked.
//
// It needs no privileges and changes nothing outside the process. What it cannot
// imitate is what the kernel does below a connected socket: there is no loss and
// no retransmission, and a TCP handshake itself is not delayed.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direction is one of the two ways through a Link.
type Direction int

// The directions of a Link.
const (
	Up   Direction = iota // from the side that dialled the link to the target
	Down                  // from the target to the side that dialled the link
)

// String returns "up" or "down".
func (d Direction) String() string {
	if d == Up {
		return "up"
	}
	return "down"
}

// Config describes a Link. Only Target is required.
type Config struct {
	// Target is the HOST:PORT that each accepted connection is forwarded to.
	Target string
	// Listen is the address to listen on; empty means a free port of 127.0.0.1.
	Listen string
	// Delay is added one way: a round trip through the link takes twice as long.
	Delay time.Duration
	// Rate bounds each direction, in bytes per second; 0 means unbounded.
	Rate int64
	// Shared makes all connections of the link share Rate and Queue, first come
	// first served, as a real line does. Otherwise each connection has its own.
	Shared bool
	// Queue bounds the bytes that wait for their turn on the line; a full queue
	// holds its senders back, nothing is dropped. 0 means one bandwidth-delay
	// product (Rate × 2 × Delay), and at least 256 KiB. It has no meaning
	// without Rate.
	Queue int64
	// Idle is for how long both ends may be silent before the link cuts their
	// connection, as proxies and load balancers do. 0 means for ever.
	Idle time.Duration
}

// minQueue keeps short paths at their rate across the hiccups of a scheduler.
const minQueue = 256 << 10

// unboundedWindow bounds what one direction of a connection holds in flight
// when there is no rate to compute it from.
const unboundedWindow = 16 << 20

// noBudget is the value of a byte budget that is not in force.
const noBudget = math.MaxInt64

// Link forwards TCP connections between a listener and a target over an
// imitated path. Its methods may be called from any goroutine.
type Link struct {
	cfg      Config
	listener net.Listener
	ctx      context.Context // ends with Close; stops dials
	cancel   context.CancelFunc
	lines    [2]*line // shared lines; nil when each connection has its own

	gate      gate
	refuse    atomic.Bool
	accepted  atomic.Int64
	idled     atomic.Int64
	delivered [2]atomic.Int64
	budget    [2]atomic.Int64 // bytes until Cut; noBudget when not in force

	mu    sync.Mutex
	conns map[*conn]struct{}
	wg    sync.WaitGroup
}

// Listen starts a link. The caller closes it.
func Listen(cfg Config) (*Link, error) {
	if cfg.Target == "" {
		return nil, errors.New("testnet: a link needs a target")
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Rate > 0 && cfg.Queue == 0 {
		cfg.Queue = max(minQueue, int64(float64(cfg.Rate)*2*cfg.Delay.Seconds()))
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for link: %w", err)
	}
	l := &Link{cfg: cfg, listener: ln, conns: make(map[*conn]struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for d := range l.budget {
		l.budget[d].Store(noBudget)
		if cfg.Shared {
			l.lines[d] = newLine(cfg.Rate, cfg.Queue)
		}
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr returns the HOST:PORT to dial instead of the target.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Conns returns the number of connections that are open now.
func (l *Link) Conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Accepted returns how many connections the link has accepted since it started.
func (l *Link) Accepted() int64 { return l.accepted.Load() }

// Idled returns how many connections the link has cut because both ends
// were silent.
func (l *Link) Idled() int64 { return l.idled.Load() }

// Delivered returns how many bytes have left the link in direction d.
func (l *Link) Delivered(d Direction) int64 { return l.delivered[d].Load() }

// Freeze stops every byte, end-of-stream and reset in both directions without
// closing anything, as when a cable is pulled: both ends still see a connected
// socket. New connections are accepted and get no further.
func (l *Link) Freeze() { l.gate.shut() }

// Thaw undoes Freeze. Nothing was lost.
func (l *Link) Thaw() { l.gate.open() }

// Refuse makes the link reset new connections at once (true), or accept them
// again (false). Connections that exist are not touched.
func (l *Link) Refuse(on bool) { l.refuse.Store(on) }

// Cut resets both ends of every connection that exists now. Bytes in flight
// are lost.
func (l *Link) Cut() {
	for _, c := range l.snapshot() {
		c.reset()
	}
}

// CutAfter lets n more bytes leave the link in direction d, counted over all
// its connections, and then cuts. The bytes before the cut are handed to the
// receiver's kernel; whether it still reads them after the reset is up to it.
// A later call replaces an earlier one of the same direction.
func (l *Link) CutAfter(d Direction, n int64) {
	if n <= 0 {
		l.Cut()
		return
	}
	l.budget[d].Store(n)
}

// HalfOpen makes every connection that exists now deaf in direction d: what is
// sent that way is acknowledged and thrown away, the end of the stream too. The
// other direction goes on. It cannot be undone; new connections are whole.
func (l *Link) HalfOpen(d Direction) {
	for _, c := range l.snapshot() {
		c.deaf[d].Store(true)
	}
}

// Close cuts everything, stops listening and waits for the link's goroutines.
func (l *Link) Close() error {
	err := l.listener.Close()
	l.cancel()
	l.Cut()
	l.wg.Wait()
	return err
}

func (l *Link) snapshot() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	return all
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		tcp := near.(*net.TCPConn)
		if l.refuse.Load() {
			abort(tcp)
			continue
		}
		l.accepted.Add(1)
		c := newConn(l, tcp)
		l.mu.Lock()
		l.conns[c] = struct{}{}
		l.mu.Unlock()
		if l.ctx.Err() != nil { // Close may have cut before c was in the map
			c.reset()
		}
		l.wg.Go(func() {
			c.run()
			l.mu.Lock()
			delete(l.conns, c)
			l.mu.Unlock()
		})
	}
}

// spend takes up to n bytes from the budget of direction d. It reports how many
// may still be delivered and whether the link has to be cut after them.
func (l *Link) spend(d Direction, n int) (allowed int, cut bool) {
	b := &l.budget[d]
	for {
		left := b.Load()
		if left == noBudget {
			return n, false
		}
		if int64(n) < left {
			if b.CompareAndSwap(left, left-int64(n)) {
				return n, false
			}
			continue
		}
		if b.CompareAndSwap(left, noBudget) {
			return int(left), true
		}
	}
}

// gate lets goroutines pass while it is open. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil while open; closed when the gate opens again
	isShut atomic.Bool   // mirrors closed != nil, to pass without the lock
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
		g.isShut.Store(true)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
		g.isShut.Store(false)
	}
}

// wait returns true once the gate is open and false when done ends first.
func (g *gate) wait(done <-chan struct{}) bool {
	for g.isShut.Load() {
		g.mu.Lock()
		opened := g.closed
		g.mu.Unlock()
		if opened == nil {
			continue
		}
		select {
		case <-opened:
		case <-done:
			return false
		}
	}
	return true
}

// abort closes c so that its peer sees a reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
