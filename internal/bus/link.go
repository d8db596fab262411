package bus

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"postern.dev/postern/internal/wire"
)

// link is one NATS connection: it never reconnects by itself. The library's own
// reconnect would hold its lock while it dials, so that a request could not be
// given up meanwhile; it would end for good at some errors of the server; and
// it could not bring the new connection up before the old one goes.
type link struct {
	nc   *nats.Conn
	done chan struct{} // closed when the connection has ended

	mu    sync.Mutex
	subs  map[*subscription]*nats.Subscription
	users int           // requests and handlers that need the connection
	idle  chan struct{} // if not nil, closed when there are no users any more
	cause error         // what the server said of the credentials before it hung up
}

// subscription is a subject that a Conn listens to, on whichever link.
type subscription struct {
	subject string
	queue   string // one of those that share it gets a message: two links overlap during a refresh
	handle  func(l *link, m *nats.Msg)
}

// open makes a link.
func (c *Conn) open(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	// Ends the dial when the Conn is closed, also during Connect's context.
	defer context.AfterFunc(c.ctx, cancel)()

	kp, err := nkeys.FromSeed(c.opts.Seed())
	if err != nil {
		return nil, wire.Fail(wire.LegBus, wire.CodeInternal, "the bus user's seed is unusable").WithCause(err)
	}
	defer kp.Wipe() // the one nonce is signed while nats.Connect runs
	user, err := kp.PublicKey()
	if err != nil {
		return nil, wire.Fail(wire.LegBus, wire.CodeInternal, "the bus user's seed is unusable").WithCause(err)
	}
	l := &link{done: make(chan struct{}), subs: make(map[*subscription]*nats.Subscription)}
	d := &dialer{ctx: ctx, dial: c.opts.Dial}
	defer d.settle()
	l.nc, err = nats.Connect("nats://127.0.0.1:4222", // never dialled: see dialer
		nats.SetCustomDialer(d),
		nats.NoReconnect(), nats.ReconnectBufSize(-1), nats.IgnoreDiscoveredServers(),
		nats.Name(c.opts.Name), nats.CustomInboxPrefix(inboxPrefix+user),
		nats.UserJWT(func() (string, error) { return c.opts.Token(), nil }, kp.Sign),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2),
		nats.Timeout(openTimeout), nats.FlusherTimeout(pingInterval),
		nats.ClosedHandler(func(*nats.Conn) { close(l.done) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			if isAuth(err) {
				l.note(err)
			}
			if s != nil {
				c.log.Warn("bus error", "subject", s.Subject, "error", err)
			} else {
				c.log.Debug("bus error", "error", err)
			}
		}),
	)
	if err != nil {
		return nil, connectFailure(errors.Join(d.err, err))
	}
	return l, nil
}

// dialer lends Options.Dial to the NATS library, which knows no contexts. The
// connection is closed when the context ends before settle.
type dialer struct {
	ctx  context.Context // the library's interface has no room for it
	dial func(context.Context) (net.Conn, error)
	err  error // the library drops some errors of dialling
	stop func() bool
}

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(string, string) (net.Conn, error) {
	conn, err := d.dial(d.ctx)
	if err != nil {
		d.err = err
		return nil, err
	}
	d.stop = context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	return conn, nil
}

func (d *dialer) settle() {
	if d.stop != nil {
		d.stop()
	}
}

func (l *link) isDone() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// note keeps what the server said of the credentials: the end of the
// connection that follows would hide it.
func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cause = err
}

// failure tells why a link that is done has ended.
func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := errors.Join(l.cause, l.nc.LastError())
	if err == nil {
		err = nats.ErrConnectionClosed
	}
	return connectFailure(err)
}

// hold and release count those who need the connection.
func (l *link) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users++
}

func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
}

// whenIdle returns a channel that is closed when nobody needs the connection.
// It is called once.
func (l *link) whenIdle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	idle := make(chan struct{})
	if l.users == 0 {
		close(idle)
	} else {
		l.idle = idle
	}
	return idle
}

// flush waits until the server has seen what was sent, for a while.
func (l *link) flush() { _ = l.nc.FlushTimeout(closeLimit) }

// subscribe listens to s, if it does not yet.
func (l *link) subscribe(s *subscription) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.subs[s] != nil {
		return nil
	}
	ns, err := l.nc.QueueSubscribe(s.subject, s.queue, func(m *nats.Msg) { s.handle(l, m) })
	if err == nil {
		l.subs[s] = ns
	}
	return err
}

// keepOnly stops listening to what is not wanted any more.
func (l *link) keepOnly(wanted map[*subscription]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, ns := range l.subs {
		if _, ok := wanted[s]; !ok {
			_ = ns.Unsubscribe() // fails only when the link is gone
			delete(l.subs, s)
		}
	}
}

// unsubscribe stops s on this link and waits until its last message is handled.
func (l *link) unsubscribe(s *subscription, limit time.Duration) {
	l.mu.Lock()
	ns := l.subs[s]
	delete(l.subs, s)
	l.mu.Unlock()
	if ns == nil {
		return
	}
	ended := make(chan struct{})
	ns.SetClosedHandler(func(string) { close(ended) })
	if ns.Drain() != nil {
		return // the link is gone
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-l.done:
	case <-timer.C:
	}
}

// retire ends a link: no more messages come in, what is under way finishes
// within limit, and then it is closed.
func (l *link) retire(limit time.Duration) {
	l.mu.Lock()
	subs := make([]*subscription, 0, len(l.subs))
	for s := range l.subs {
		subs = append(subs, s)
	}
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range subs {
		wg.Go(func() { l.unsubscribe(s, limit) })
	}
	wg.Wait()
	idle := l.whenIdle()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-idle:
		l.flush()
	case <-l.done:
	case <-timer.C:
	}
	l.nc.Close()
	<-l.done
	<-idle
}

// subscribe adds a subscription to all links, present and future. stop ends it
// and waits for its last message.
func (c *Conn) subscribe(subject, queue string, handle func(*link, *nats.Msg)) (stop func(), err error) {
	s := &subscription{subject: subject, queue: queue, handle: handle}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.link != nil && !c.link.isDone() {
		if err := c.link.subscribe(s); err != nil {
			return nil, requestFailure(err, "the bus")
		}
	}
	c.subs[s] = struct{}{}
	return func() {
		c.mu.Lock()
		_, there := c.subs[s]
		delete(c.subs, s)
		l := c.link
		c.mu.Unlock()
		if there && l != nil {
			l.unsubscribe(s, closeLimit)
		}
	}, nil
}

// publish sends a message if there is a link.
func (c *Conn) publish(ctx context.Context, subject string, data []byte) error {
	l, release, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.nc.Publish(subject, data); err != nil {
		return requestFailure(err, "the bus")
	}
	return nil
}
