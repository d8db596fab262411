package exchange

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// lateAnswer is how long an answer may take once the server takes no more of the
	// request: it may be about that.
	lateAnswer = 5 * time.Second

	// lateBody is how long the end of a request's body may be behind that of the answer
	// for the connection to be kept.
	lateBody = 50 * time.Millisecond
)

// exchange is one request and its answer.
type exchange struct {
	client *Client
	conn   *conn
	r      *http.Request
	stop   func() bool // of the context's watching
	upload *upload     // nil without a body
	wrote  bool        // some of the request was sent
	heard  bool        // some of an answer was read
	over   atomic.Bool
}

// run writes the request, and reads the answer up to its body.
func (x *exchange) run() (*http.Response, error) {
	x.stop = context.AfterFunc(x.r.Context(), func() { _ = x.conn.Close() })
	if x.r.Body == nil || x.r.Body == http.NoBody {
		if err := x.write(x.r); err != nil {
			return nil, x.fail(err)
		}
	} else {
		x.upload = newUpload(x)
		go x.upload.send() // it ends with the body, which ends with the caller's request
	}
	answer, err := x.read()
	if err != nil {
		return nil, x.fail(err)
	}
	keep := !answer.Close && !x.r.Close
	switch {
	case answer.StatusCode == http.StatusSwitchingProtocols:
		answer.Body = &duplex{x}
	case x.r.Method == http.MethodHead || answer.ContentLength == 0:
		x.end(keep)
	default:
		answer.Body = &body{x: x, from: answer.Body, keep: keep}
	}
	return answer, nil
}

// write writes a request, and counts.
func (x *exchange) write(r *http.Request) error {
	w, _ := x.client.writers.Get().(*bufio.Writer)
	w.Reset(noting{x})
	err := r.Write(w)
	if err == nil {
		err = w.Flush()
	}
	w.Reset(nil)
	x.client.writers.Put(w)
	return err
}

// noting is the connection as requests are written to it.
type noting struct{ *exchange }

// Write implements io.Writer.
func (w noting) Write(b []byte) (int, error) {
	n, err := w.conn.Write(b)
	if n > 0 {
		w.wrote = true
	}
	return n, err
}

// read reads answers up to the last one, without its body.
func (x *exchange) read() (*http.Response, error) {
	c := x.conn
	c.room = int64(x.client.cfg.MaxHeader)
	if _, err := c.in.Peek(1); err != nil {
		return nil, err
	}
	x.heard = true
	for continued := false; ; {
		answer, err := http.ReadResponse(c.in, x.r)
		if err != nil {
			if c.room <= 0 {
				err = ErrHeaderTooLong
			} else if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		switch code := answer.StatusCode; {
		case code == http.StatusSwitchingProtocols && x.r.Header.Get("Upgrade") == "":
			return nil, ErrNotAsked
		case code == http.StatusSwitchingProtocols, code >= http.StatusOK:
			x.upload.goOn(!answer.Close) // also where nobody said so: the rest of the connection is of use
			c.room = math.MaxInt64
			return answer, nil
		}
		goesOn := answer.StatusCode == http.StatusContinue
		if goesOn && continued {
			continue // once said is enough: a proxy before the server may say it, too
		}
		if t := httptrace.ContextClientTrace(x.r.Context()); t != nil && t.Got1xxResponse != nil {
			if err := t.Got1xxResponse(answer.StatusCode, textproto.MIMEHeader(answer.Header)); err != nil {
				return nil, err
			}
			c.room = int64(x.client.cfg.MaxHeader) // it has been dealt with
		}
		if goesOn {
			// Only now: a server that passes hints on says this one by itself if it has not been
			// told of it when the body is read.
			x.upload.goOn(true)
			continued = true
		}
	}
}

// fail ends an exchange that got no answer, and returns why.
func (x *exchange) fail(err error) error {
	x.end(false)
	if x.upload != nil {
		if own := x.upload.failed(); own != nil {
			err = own
		}
	}
	return x.reason(err)
}

// reason returns why something failed: because it was to end, or as it seems.
func (x *exchange) reason(err error) error {
	if ctx := x.r.Context(); ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// repeatable reports whether a request that failed over a kept connection may be sent
// again.
func (x *exchange) repeatable() bool {
	if x.upload != nil || x.r.Context().Err() != nil || x.heard {
		return false
	}
	if !x.wrote {
		return true
	}
	switch x.r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return x.r.Header.Get("Upgrade") == "" // who knows what that does
	}
	return false
}

// end ends the exchange, once. The connection is kept if it may be, and is in order.
func (x *exchange) end(keep bool) {
	if x.over.Swap(true) {
		return
	}
	whole := x.stop() // otherwise it is being closed
	if keep && whole && x.conn.in.Buffered() == 0 && x.upload.sent() {
		x.client.keep(x.conn)
		return
	}
	_ = x.conn.Close()
	x.upload.abandon()
}

// body is the body of an answer.
type body struct {
	x    *exchange
	from io.ReadCloser // never closed: that would read all that is left
	keep bool
	err  error // that ended it; of the reader
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.x.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.from.Read(p)
	switch {
	case err == io.EOF:
		b.x.end(b.keep)
		b.err = err
	case err != nil:
		b.x.end(false)
		b.err = b.x.reason(err)
	}
	return n, b.err
}

// Close implements io.Closer. A body that was not read to its end takes the connection
// with it.
func (b *body) Close() error {
	b.x.end(false)
	return nil
}

// duplex is a connection that goes on with another protocol.
type duplex struct{ x *exchange }

// Read implements io.Reader.
func (d *duplex) Read(p []byte) (int, error) {
	if d.x.conn.in != nil {
		if n := d.x.conn.in.Buffered(); n > 0 {
			return d.x.conn.in.Read(p[:min(len(p), n)])
		}
		d.x.conn.in = nil
	}
	return d.x.conn.Read(p)
}

// Write implements io.Writer.
func (d *duplex) Write(p []byte) (int, error) { return d.x.conn.Write(p) }

// CloseWrite ends the direction to the server, if the connection can.
func (d *duplex) CloseWrite() error {
	if half, ok := d.x.conn.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements io.Closer.
func (d *duplex) Close() error {
	d.x.end(false)
	return nil
}

// expects reports whether a request's body waits for a 100 (Continue).
func expects(r *http.Request) bool {
	for _, v := range r.Header["Expect"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "100-continue") {
				return true
			}
		}
	}
	return false
}
