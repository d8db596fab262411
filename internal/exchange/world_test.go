package exchange

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// world is a client, and a server that does with each connection what its test says.
type world struct {
	t      *testing.T
	client *Client
	serve  func(n int, c net.Conn, in *bufio.Reader) // n counts connections from 1

	mu     sync.Mutex
	conns  []*watched // as the client has them
	leave  []func()
	server sync.WaitGroup
}

// watched is a connection of the client's.
type watched struct {
	net.Conn
	ended  atomic.Bool // it is not quiet any more
	closed chan struct{}
	once   sync.Once
}

// Close implements net.Conn.
func (c *watched) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Quiet implements Quieter.
func (c *watched) Quiet(time.Duration) bool { return !c.ended.Load() }

// CloseWrite ends one direction.
func (c *watched) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func newWorld(t *testing.T, serve func(n int, c net.Conn, in *bufio.Reader)) *world {
	t.Helper()
	w := &world{t: t, serve: serve}
	w.client = New(Config{
		Dial: w.dial, MaxIdle: 4, IdleTime: time.Minute, ContinueTime: 100 * time.Millisecond, MaxHeader: 8 << 10, ReadBuffer: 1 << 10,
	})
	t.Cleanup(func() {
		w.client.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			_ = c.Conn.Close()
		}
		w.mu.Unlock()
		w.server.Wait()
	})
	return w
}

func (w *world) dial(ctx context.Context) (net.Conn, func(func()), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = l.Close() }()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	far, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	c := &watched{Conn: near, closed: make(chan struct{})}
	w.mu.Lock()
	w.conns = append(w.conns, c)
	n := len(w.conns)
	w.mu.Unlock()
	w.server.Go(func() {
		defer func() { _ = far.Close() }()
		_ = far.SetDeadline(time.Now().Add(patience))
		w.serve(n, far, bufio.NewReader(far))
	})
	return c, func(f func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leave = append(w.leave, f)
	}, nil
}

// dialed returns how many connections there were.
func (w *world) dialed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// closed waits until the client has closed its n-th connection.
func (w *world) closed(n int) {
	w.t.Helper()
	w.mu.Lock()
	c := w.conns[n-1]
	w.mu.Unlock()
	select {
	case <-c.closed:
	case <-time.After(patience):
		w.t.Fatalf("connection %d was not closed", n)
	}
}

func (w *world) request(method, body string) *http.Request {
	w.t.Helper()
	var from io.Reader
	if body != "" {
		from = io.NopCloser(strings.NewReader(body))
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, "http://gateway/api", from)
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		r.ContentLength = int64(len(body))
	}
	return r
}

func (w *world) send(r *http.Request) (*http.Response, error) {
	return w.client.Send(r, func(net.Conn) {})
}

// do sends a request and returns the answer's status and body.
func (w *world) do(r *http.Request) (int, string) {
	w.t.Helper()
	answer, err := w.send(r)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		w.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// idle returns how many connections wait.
func (w *world) idle() int {
	w.client.mu.Lock()
	defer w.client.mu.Unlock()
	return len(w.client.idle)
}

// take reads a request with its body.
func take(in *bufio.Reader) (*http.Request, string, error) {
	r, err := http.ReadRequest(in)
	if err != nil {
		return nil, "", err
	}
	text, err := io.ReadAll(r.Body)
	return r, string(text), err
}

func say(c net.Conn, text string) { _, _ = io.WriteString(c, text) }

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// always answers each request alike.
func always(text string) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, c net.Conn, in *bufio.Reader) {
		for {
			if _, _, err := take(in); err != nil {
				return
			}
			say(c, text)
		}
	}
}
