package proxy

import (
	"bytes"
	"errors"
	"net"
	"sync"
)

// preludeSize is what the buffer of a prelude holds at first: more than nearly
// every request, and all of a SOCKS5 negotiation.
const preludeSize = 4096

var errTooLong = errors.New("more bytes than are allowed before the request is complete")

// prelude reads what a client sends before its stream begins. Its buffer is
// borrowed and given back before bytes flow, so that idle streams do not hold
// one.
type prelude struct {
	conn net.Conn
	pool *sync.Pool
	buf  *[]byte // all of what was read and not yet taken
}

func newPreludePool() *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, 0, preludeSize)
		return &b
	}}
}

func newPrelude(conn net.Conn, pool *sync.Pool) *prelude {
	b := pool.Get().(*[]byte)
	*b = (*b)[:0]
	return &prelude{conn, pool, b}
}

// release gives the buffer back. Nothing of what was read may be used after.
func (p *prelude) release() {
	if p.buf != nil && cap(*p.buf) == preludeSize { // do not keep those that grew
		p.pool.Put(p.buf)
	}
	p.buf = nil
}

// fill reads at least one more byte, up to limit in all.
func (p *prelude) fill(limit int) error {
	b := *p.buf
	if len(b) >= limit {
		return errTooLong
	}
	if len(b) == cap(b) {
		b = append(make([]byte, 0, min(2*cap(b), limit)), b...)
	}
	n, err := p.conn.Read(b[len(b):min(cap(b), limit)])
	*p.buf = b[:len(b)+n]
	if n > 0 {
		return nil
	}
	return err
}

// peek returns the next n bytes without taking them.
func (p *prelude) peek(n int) ([]byte, error) {
	for len(*p.buf) < n {
		if err := p.fill(max(n, preludeSize)); err != nil {
			return *p.buf, err
		}
	}
	return (*p.buf)[:n], nil
}

// skip drops n bytes that were peeked at.
func (p *prelude) skip(n int) {
	b := *p.buf
	*p.buf = b[:copy(b, b[n:])]
}

// head returns the header block of an HTTP message, its empty line included,
// and takes it. Lines end in LF here; the parser is stricter.
func (p *prelude) head(limit int) (string, error) {
	for from := 0; ; {
		if end := headEnd((*p.buf)[from:]); end >= 0 {
			out := string((*p.buf)[:from+end])
			p.skip(from + end)
			return out, nil
		}
		from = max(0, len(*p.buf)-3) // what may be the beginning of the end
		if err := p.fill(limit); err != nil {
			return "", err
		}
	}
}

// headEnd returns where the header block in b ends, or -1.
func headEnd(b []byte) int {
	for i := 0; i < len(b); i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return -1
		}
		i += j
		switch rest := b[i+1:]; {
		case len(rest) >= 1 && rest[0] == '\n':
			return i + 2
		case len(rest) >= 2 && rest[0] == '\r' && rest[1] == '\n':
			return i + 3
		}
	}
	return -1
}

// rest returns a copy of what was read and not taken: the bytes that a client
// sent early.
func (p *prelude) rest() []byte {
	if len(*p.buf) == 0 {
		return nil
	}
	return bytes.Clone(*p.buf)
}
