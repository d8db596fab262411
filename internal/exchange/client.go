package exchange

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// lookEvery is how often connections that wait are looked at.
const lookEvery = 5 * time.Second

var (
	// ErrHeaderTooLong is what an answer fails with whose header is longer than
	// Config.MaxHeader.
	ErrHeaderTooLong = errors.New("the header of the answer is too long")

	// ErrNotAsked is what an answer fails with that changes to a protocol that nobody
	// asked for. What the caller sends next would otherwise go there as it is.
	ErrNotAsked = errors.New("the answer changes the protocol, and the request did not ask for that")
)

// Config is what a Client works with. All fields are needed.
type Config struct {
	// Dial opens a connection. It may implement Quieter, and CloseWrite for the
	// duplex streams of other protocols. leaving, if not nil, has its argument called
	// when the server is about to go; the connection then gets no further request.
	Dial func(ctx context.Context) (conn net.Conn, leaving func(f func()), err error)

	MaxIdle      int           // connections that wait for the next request
	IdleTime     time.Duration // for how long
	ContinueTime time.Duration // that a body waits for its 100 (Continue)
	MaxHeader    int           // bytes of an answer's header
	ReadBuffer   int           // bytes of each connection; larger reads pass it by
}

// Quieter is a connection of which one can tell that it is still good for a request.
type Quieter interface {
	// Quiet reports whether the connection, which nobody has read for a time, lives,
	// and nothing has arrived: no bytes, and no end. It does not wait.
	Quiet(left time.Duration) bool
}

// Client sends requests to one server. It keeps connections for the next request: the
// one used last comes first. Make one with New, and Close it. Safe for concurrent use.
type Client struct {
	cfg     Config
	writers sync.Pool // of *bufio.Writer

	mu     sync.Mutex
	idle   []*conn // by the time of their last use
	timer  *time.Timer
	closed bool
}

// New returns a client.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg}
	c.writers.New = func() any { return bufio.NewWriter(nil) }
	return c
}

// conn is a connection that carries one exchange after the other.
type conn struct {
	net.Conn
	in    *bufio.Reader // of limited
	room  int64         // bytes that may yet be read
	since time.Time     // when it was left
	gone  atomic.Bool   // the server is about to go
}

// limited is a connection as its reader sees it.
type limited struct{ *conn }

// Read implements io.Reader.
func (l limited) Read(b []byte) (int, error) {
	if l.room <= 0 {
		return 0, ErrHeaderTooLong
	}
	n, err := l.Conn.Read(b[:min(int64(len(b)), l.room)])
	l.room -= int64(n)
	return n, err
}

// good reports whether the connection may carry another request.
func (c *conn) good(now time.Time, idleTime time.Duration) bool {
	left := now.Sub(c.since)
	if c.gone.Load() || left > idleTime {
		return false
	}
	q, ok := c.Conn.(Quieter)
	return !ok || q.Quiet(left)
}

// Send sends a request and returns its answer, as http.RoundTripper does; the body of
// one with status 101 is an io.ReadWriteCloser with CloseWrite. Informational answers go
// to the httptrace.ClientTrace of the request's context.
//
// A request without a body is sent a second time, over a new connection, if it was over
// a kept one that turns out to have ended, and either nothing was sent, or the request
// changes nothing and nothing was answered.
//
// over is called with the connection before each time that the request is written, and
// may change the request's header.
func (c *Client) Send(r *http.Request, over func(net.Conn)) (*http.Response, error) {
	if err := valid(r); err != nil {
		closeBody(r)
		return nil, err
	}
	one := c.kept()
	for {
		again := one != nil
		if !again {
			var err error
			if one, err = c.dial(r.Context()); err != nil {
				closeBody(r)
				return nil, err
			}
		}
		over(one.Conn)
		x := &exchange{client: c, conn: one, r: r}
		answer, err := x.run()
		if err == nil {
			return answer, nil
		}
		if !again || !x.repeatable() {
			return nil, err
		}
		one = nil
	}
}

// valid refuses a request that would not arrive as it is meant.
func valid(r *http.Request) error {
	if r.URL == nil || r.Method != "" && !httpguts.ValidHeaderFieldName(r.Method) { // both are tokens
		return fmt.Errorf("exchange: method %.20q with URL %v cannot be sent", r.Method, r.URL)
	}
	for field, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(field) {
			return fmt.Errorf("exchange: field name %.50q cannot be sent", field)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return fmt.Errorf("exchange: the value of %s cannot be sent", field) // it may be a secret
			}
		}
	}
	return nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// kept returns a connection that was used before, or nil.
func (c *Client) kept() *conn {
	for {
		c.mu.Lock()
		n := len(c.idle) - 1
		if n < 0 {
			c.mu.Unlock()
			return nil
		}
		one := c.idle[n]
		c.idle[n] = nil
		c.idle = c.idle[:n]
		c.mu.Unlock()
		if one.good(time.Now(), c.cfg.IdleTime) {
			return one
		}
		_ = one.Close()
	}
}

func (c *Client) dial(ctx context.Context) (*conn, error) {
	raw, leaving, err := c.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	one := &conn{Conn: raw}
	one.in = bufio.NewReaderSize(limited{one}, c.cfg.ReadBuffer)
	if leaving != nil {
		leaving(func() {
			one.gone.Store(true)
			c.look()
		})
	}
	return one, nil
}

// keep keeps a connection for the next request, or closes it.
func (c *Client) keep(one *conn) {
	one.since = time.Now()
	if !c.add(one) || one.gone.Load() {
		c.drop(one)
	}
}

// add adds a connection to those that wait, if there is room.
func (c *Client) add(one *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= c.cfg.MaxIdle {
		return false
	}
	c.idle = append(c.idle, one)
	if c.timer == nil {
		c.timer = time.AfterFunc(lookEvery, c.look)
	}
	return true
}

// drop closes a connection that may be among those that wait.
func (c *Client) drop(one *conn) {
	c.take(one)
	_ = one.Close()
}

// take takes a connection from those that wait, if it is there.
func (c *Client) take(one *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, other := range c.idle {
		if other == one {
			c.idle = append(c.idle[:i], c.idle[i+1:]...)
			return true
		}
	}
	return false
}

// look closes the connections among those that wait that are good for nothing any more.
func (c *Client) look() {
	c.mu.Lock()
	all := append([]*conn(nil), c.idle...)
	c.mu.Unlock()
	for _, one := range all {
		if !c.take(one) { // in use again
			continue
		}
		if !one.good(time.Now(), c.cfg.IdleTime) || !c.add(one) {
			_ = one.Close()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.timer == nil:
	case len(c.idle) == 0:
		c.timer.Stop()
		c.timer = nil
	default:
		c.timer.Reset(lookEvery)
	}
}

// Close closes the connections that wait, and each other one with its exchange, which
// goes on to its end.
func (c *Client) Close() {
	c.mu.Lock()
	all := c.idle
	c.idle, c.closed = nil, true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.mu.Unlock()
	for _, one := range all {
		_ = one.Close()
	}
}
