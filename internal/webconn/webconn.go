// Package webconn makes a plain connection of a WebSocket, for networks that let
// nothing but web traffic out. The side that calls uses Client, the hub Accept.
//
// A Conn carries a stream of bytes; the borders of messages mean nothing. It
// promises no secrecy and no identity: what ends TLS on the way reads along.
// Postern runs the whole TLS of its one port inside.
package webconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// lingerTime is how long what was written before Close may take to leave.
const lingerTime = 2 * time.Second

// A Conn starts with small buffers, as strangers get them, and takes large ones
// once it has moved growAfter bytes in the direction of the buffer. A large one
// holds a frame of a pipe with the TLS around it, so that it travels in one piece.
const (
	smallBuffer = 4 << 10
	largeBuffer = 68 << 10
	growAfter   = 64 << 10
)

// Addr is the local address of a Conn. It tells a server that what it serves comes
// out of a WebSocket.
type Addr struct{ net.Addr }

// Network returns "websocket".
func (Addr) Network() string { return "websocket" }

// Conn is a WebSocket as a net.Conn. Deadlines leave it usable, which is why two
// goroutines and a net.Pipe stand between it and the WebSocket: a read of the
// library that is given up ends the connection. It has no half-close.
type Conn struct {
	net.Conn      // the near end of a pipe in memory
	far           net.Conn
	ws            *websocket.Conn
	gather        *gatherer // nil on the server, whose frames need no masking
	local, remote net.Addr

	reading sync.Mutex
	in      buffer
	unread  []byte // of in

	closing sync.Once
	pumps   sync.WaitGroup
}

// RefusedError is an answer to the upgrade that is not one of a hub.
type RefusedError struct {
	Status int    // 403
	Text   string // "403 Forbidden"
	Server string // what the server calls itself, if it does
}

// Error tells the status.
func (e *RefusedError) Error() string { return "the upgrade was answered with " + e.Text }

// Client upgrades conn, on which HTTP can be spoken to the server of target (a
// https URL), and takes it over. It closes conn when it fails. A final answer other
// than 101 is a *RefusedError.
func Client(ctx context.Context, conn net.Conn, target *url.URL) (*Conn, error) {
	g := &gatherer{Conn: conn}
	used := false
	dial := func(context.Context, string, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the server closed the connection instead of answering")
		}
		used = true
		return g, nil
	}
	transport := &http.Transport{
		DialContext: dial, DialTLSContext: dial, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
	defer transport.CloseIdleConnections()
	ws, res, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{ //nolint:bodyclose // the library does
		HTTPHeader: http.Header{"User-Agent": {"postern"}},
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		_ = conn.Close()
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			return nil, &RefusedError{Status: res.StatusCode, Text: res.Status, Server: res.Header.Get("Server")}
		}
		return nil, err
	}
	return start(ws, g, conn.LocalAddr(), conn.RemoteAddr()), nil
}

// Accept upgrades a request. When it fails, the request has been answered.
func Accept(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || local == nil {
		http.Error(w, "no address", http.StatusInternalServerError)
		return nil, fmt.Errorf("accept WebSocket: no address of the caller: %w", err)
	}
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil, err
	}
	return start(ws, nil, local, net.TCPAddrFromAddrPort(remote)), nil
}

func start(ws *websocket.Conn, g *gatherer, local, remote net.Addr) *Conn {
	ws.SetReadLimit(-1) // a message is read piece by piece: its length costs nothing
	near, far := net.Pipe()
	c := &Conn{Conn: near, far: far, ws: ws, gather: g, local: Addr{local}, remote: remote}
	c.pumps.Go(c.receive)
	c.pumps.Go(c.send)
	return c
}

// receive moves bytes from the WebSocket to the reader until either ends.
func (c *Conn) receive() {
	// What was received has been read, for the pipe holds nothing back.
	defer func() { _ = c.far.Close() }()
	var b buffer
	for {
		kind, r, err := c.ws.Reader(context.Background())
		if err != nil || kind != websocket.MessageBinary {
			return
		}
		for {
			n, err := r.Read(b.room())
			if n > 0 {
				if _, err := c.far.Write(b.taken(n)); err != nil {
					return
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
		}
	}
}

// send moves bytes from the writer to the WebSocket until either ends, and then
// ends the WebSocket.
func (c *Conn) send() {
	defer func() { _ = c.ws.CloseNow() }()
	var b buffer
	for {
		n, err := c.far.Read(b.room())
		if n > 0 && c.write(b.taken(n)) != nil {
			_ = c.far.Close()
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *Conn) write(b []byte) error {
	if c.gather == nil {
		return c.ws.Write(context.Background(), websocket.MessageBinary, b)
	}
	c.gather.begin()
	return errors.Join(c.ws.Write(context.Background(), websocket.MessageBinary, b), c.gather.end())
}

// buffer is the memory of one direction.
type buffer struct {
	b     []byte
	moved int
}

func (b *buffer) room() []byte {
	switch {
	case b.b == nil:
		b.b = make([]byte, smallBuffer)
	case len(b.b) == smallBuffer && b.moved >= growAfter:
		b.b = make([]byte, largeBuffer)
	}
	return b.b
}

func (b *buffer) taken(n int) []byte {
	b.moved = min(b.moved+n, growAfter)
	return b.b[:n]
}

// Read reads what has come. It takes more out of the pipe than was asked for: each
// visit there costs a change of goroutines, and crypto/tls asks for little.
func (c *Conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.unread) == 0 {
		if len(b) >= largeBuffer/2 {
			return c.Conn.Read(b)
		}
		n, err := c.Conn.Read(c.in.room())
		if n == 0 {
			return 0, err
		}
		c.unread = c.in.taken(n)
	}
	n := copy(b, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// Write writes b. When the WebSocket has ended, the error is syscall.EPIPE.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = &net.OpError{Op: "write", Net: "websocket", Source: c.local, Addr: c.remote, Err: syscall.EPIPE}
	}
	return n, err
}

// Close ends the connection. What was written before may still leave, for two
// seconds at most; Close does not wait for it, Wait does.
func (c *Conn) Close() error {
	c.closing.Do(func() {
		_ = c.Conn.Close()
		time.AfterFunc(lingerTime, func() { _ = c.ws.CloseNow() })
	})
	return nil
}

// Wait returns when the connection has ended and nothing of it is left.
func (c *Conn) Wait() { c.pumps.Wait() }

// LocalAddr returns an Addr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other side of the connection that carries
// the WebSocket, which may be a load balancer's.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }
