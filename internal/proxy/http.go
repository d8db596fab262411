package proxy

import (
	"errors"
	"net"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// maxHeader bounds the header of an HTTP request, in bytes.
const maxHeader = 64 << 10

// established is the whole answer to a CONNECT that worked.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// HTTP is a front end for clients of HTTP proxies: CONNECT, and plain requests
// in absolute form.
//
// It reads the CONNECT that opens a connection itself, and so holds neither
// buffers nor a parser while the stream lives; every other request is left to
// net/http.
type HTTP struct {
	*Server
	preludes *sync.Pool
	web      *web
}

// NewHTTP returns a front end on ln. It refuses a listener that others can
// reach and that has no credentials.
func NewHTTP(ln net.Listener, access *Access, cfg FrontConfig) (*HTTP, error) {
	s, err := newServer(FrontHTTP, ln, access, cfg)
	if err != nil {
		return nil, err
	}
	h := &HTTP{Server: s, preludes: newPreludePool()}
	h.web = newWeb(s, h.connect)
	s.serve, s.refuse, s.draining = h.serveClient, refuseHTTP, h.web.drain
	return h, nil
}

func refuseHTTP(conn net.Conn, f *wire.Failure) {
	// Without the patience of part: this runs in the accept loop, and the
	// message fits every socket's buffer.
	_ = conn.SetWriteDeadline(time.Now().Add(lingerTime))
	_, _ = conn.Write(answerFor(f, wire.Target{}).response(f))
	_ = conn.Close()
}

func (h *HTTP) serveClient(c *client) {
	p := newPrelude(c.Conn, h.preludes)
	handed := false
	defer func() {
		p.release()
		if !handed {
			_ = c.Close()
		}
	}()
	_ = c.SetReadDeadline(time.Now().Add(h.cfg.HeaderTimeout))
	const verb = "CONNECT "
	first, err := p.peek(1)
	if err != nil {
		return // it sent nothing: not worth a word
	}
	if f := stranger(first[0]); f != nil {
		h.refuseRequest(c, route{}, f)
		return
	}
	start, err := p.peek(len(verb))
	if err != nil {
		return
	}
	if string(start) != verb {
		if c.said() {
			early := p.rest()
			handed = true
			h.web.hand(c, early)
		}
		return
	}
	head, err := p.head(maxHeader)
	if err != nil {
		if f := headFailure(err); f != nil {
			h.refuseRequest(c, route{}, f)
		}
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	req, f := parseConnect(head)
	if f != nil {
		h.refuseRequest(c, route{}, f)
		return
	}
	if !c.said() {
		return
	}
	early := p.rest()
	p.release()
	h.connect(c, req, early)
}

// headFailure returns what to tell about a header that did not arrive, or nil
// if the client is gone.
func headFailure(err error) *wire.Failure {
	var ne net.Error
	switch {
	case errors.Is(err, errTooLong):
		return badRequest("the request's header is larger than %d bytes", maxHeader)
	case errors.As(err, &ne) && ne.Timeout():
		return wire.Fail(wire.LegClient, wire.CodeTimeout, "the request's header did not arrive in time")
	default:
		return nil
	}
}

// stranger recognizes by its first byte a client that speaks something else.
func stranger(b byte) *wire.Failure {
	switch {
	case 'A' <= b && b <= 'Z' || 'a' <= b && b <= 'z' || b == '\r' || b == '\n':
		return nil
	case b == 0x16:
		return badRequest("this is an HTTP proxy without TLS").WithHint("write the proxy's address as http://HOST:PORT")
	case b == 0x04 || b == 0x05:
		return badRequest("this is an HTTP proxy and not a SOCKS proxy").WithHint("write the proxy's address as http://HOST:PORT")
	default:
		return badRequest("this is not an HTTP request")
	}
}

// connect serves a CONNECT and owns nothing afterwards: the caller closes c.
// early is what the client sent after its header.
func (h *HTTP) connect(c *client, req connectRequest, early []byte) {
	g, f := h.login(h.ctx, req.login)
	if f != nil {
		h.refuseRequest(c, route{}, f)
		return
	}
	r, f := h.find(g, req.host, req.port)
	if f != nil {
		h.refuseRequest(c, r, f)
		return
	}
	r.trace = req.trace
	stream, f := h.open(h.ctx, c, r, nil)
	if f != nil {
		part(c.Conn, answerFor(f, r.target).response(f))
		return
	}
	// The stream is not read before this is written, so that no byte of the
	// target can overtake it.
	if _, err := c.Conn.Write([]byte(established)); err != nil {
		_ = stream.Close()
		h.ended(c, r, Stats{}, 0, wire.Fail(wire.LegClient, wire.CodeReset, "the client left before its stream was open").WithCause(err))
		return
	}
	h.carry(c, r, stream, early)
}

func (h *HTTP) refuseRequest(c *client, r route, f *wire.Failure) {
	h.refused(c, r, f)
	part(c.Conn, answerFor(f, r.target).response(f))
}
