package attack_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// middle stands between an agent and the relay, as a hostile relay or network does. It
// passes bytes on until it is told to do something to them. Below the outer TLS,
// which pipes have left, these are the records of the inner one.
type middle struct {
	addr string
	mu   sync.Mutex
	act  func(toHub bool, b []byte) (out []byte, end bool) // nil: nothing
	bulk bool                                              // act on connections only that have carried much
}

// much is what no connection carries to the hub but a pipe with a download: more than
// the bus does in a test.
const much = 48 << 10

func newMiddle(t *testing.T, to string) *middle {
	m := &middle{}
	m.addr = serve(t, func(c net.Conn) {
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		var wg sync.WaitGroup
		wg.Go(func() { m.pass(far, c, true) })
		m.pass(c, far, false)
		_ = c.Close()
		wg.Wait()
	}).addr
	return m
}

func (m *middle) pass(dst, src net.Conn, toHub bool) {
	b := make([]byte, 32<<10)
	passed := 0
	for {
		n, err := src.Read(b)
		out, end := b[:n], false
		m.mu.Lock()
		if m.act != nil && n > 0 && (!m.bulk || passed >= much) {
			out, end = m.act(toHub, bytes.Clone(b[:n]))
		}
		m.mu.Unlock()
		if len(out) > 0 {
			if _, err := dst.Write(out); err != nil {
				break
			}
		}
		if end || err != nil {
			break
		}
		passed += n
	}
	// As gently as TCP can end, which is the point of some of the attacks.
	_ = dst.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, src)
}

func (m *middle) do(act func(bool, []byte) ([]byte, bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.act = act
}

// TestAttackRelayInTheMiddle does to the bytes of pipes what a hostile relay can. The
// client gets what the target sent up to some point, and then a reset: never
// another byte, and never an end that looks clean.
func TestAttackRelayInTheMiddle(t *testing.T) {
	w := newWorld(t)
	m := newMiddle(t, w.info.Listen.String())
	m.bulk = true
	w.agent(acme, "tls://"+m.addr, "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	const total = 4 << 20
	pattern := func(i int) byte { return byte(i*7 + i>>8) }
	source := serve(t, func(c net.Conn) {
		b := make([]byte, total)
		for i := range b {
			b[i] = pattern(i)
		}
		_, _ = c.Write(b[:64<<10])
		_, _ = c.Read(make([]byte, 1)) // until the client says that the middle is ready
		_, _ = c.Write(b[64<<10:])
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	// download returns how many bytes came, all of them right, and how it ended.
	download := func(begun func()) (n int, err error) {
		var c net.Conn
		eventually(t, func() (err error) { c, _, err = connect(near.http, source.addr); return err })
		defer c.Close()
		b := make([]byte, 8<<10)
		for {
			k, err := c.Read(b)
			for i := range k {
				if b[i] != pattern(n+i) {
					t.Fatalf("byte %d is another than was sent", n+i)
				}
			}
			if n += k; n >= 64<<10 && begun != nil {
				begun()
				begun = nil
				_, _ = c.Write([]byte{1})
			}
			if err != nil {
				return n, err
			}
		}
	}
	var last []byte
	remember := func(toHub bool, b []byte) ([]byte, bool) {
		if toHub && len(b) > 1000 {
			last = bytes.Clone(b)
		}
		return b, false
	}
	m.do(remember)
	if n, err := download(func() {}); n != total || err != io.EOF {
		t.Fatalf("with nobody in the middle: %d bytes, %v", n, err)
	}
	once := func(f func(b []byte) ([]byte, bool)) func(bool, []byte) ([]byte, bool) {
		done := false
		return func(toHub bool, b []byte) ([]byte, bool) {
			if done || !toHub || len(b) < 1000 { // the bulk goes this way
				return b, false
			}
			done = true
			return f(b)
		}
	}
	for name, f := range map[string]func(b []byte) ([]byte, bool){
		"changes a bit":          func(b []byte) ([]byte, bool) { b[len(b)/2] ^= 1; return b, false },
		"leaves a byte out":      func(b []byte) ([]byte, bool) { return append(b[:500], b[501:]...), false },
		"puts a byte in":         func(b []byte) ([]byte, bool) { return append(b[:500:500], append([]byte{7}, b[500:]...)...), false },
		"leaves a piece out":     func([]byte) ([]byte, bool) { return nil, false },
		"repeats a piece":        func(b []byte) ([]byte, bool) { return append(b, b...), false },
		"repeats an earlier one": func(b []byte) ([]byte, bool) { return append(b, last...), false },
		"ends it gently":         func(b []byte) ([]byte, bool) { return b[:len(b)/2], true },
		"ends it at once":        func([]byte) ([]byte, bool) { return nil, true },
		"sends a plain alert":    func(b []byte) ([]byte, bool) { return append([]byte{21, 3, 3, 0, 2, 1, 0}, b...), false }, // close_notify
		"sends a plain record":   func(b []byte) ([]byte, bool) { return append([]byte{23, 3, 3, 0, 5, 1, 2, 3, 4, 5}, b...), false },
		"sends garbage":          func(b []byte) ([]byte, bool) { return bytes.Repeat([]byte{0xee}, len(b)), false },
	} {
		t.Run(name, func(t *testing.T) {
			n, err := download(func() { m.do(once(f)) })
			m.do(remember)
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("after %d bytes it ends with %v, as if that were all", n, err)
			}
		})
	}
	if n, err := download(func() {}); n != total || err != io.EOF {
		t.Errorf("when the middle lets go: %d bytes, %v", n, err)
	}
}

// TestAttackMiddleOfTheHandshake changes each of the first bytes of a pipe's inner TLS.
// No stream is opened over it.
func TestAttackMiddleOfTheHandshake(t *testing.T) {
	w := newWorld(t)
	m := newMiddle(t, w.info.Listen.String())
	w.agent(acme, "tls://"+m.addr, "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	mine := serve(t, echo("acme"))
	eventually(t, func() error { _, err := visit(near.http, mine.addr); return err })
	for _, toHub := range []bool{true, false} {
		var seen int
		m.do(func(way bool, b []byte) ([]byte, bool) {
			if way == toHub {
				seen++
				b[len(b)-1] ^= 0x40
			}
			return b, false
		})
		before := mine.visits.Load()
		c, err := net.DialTimeout("tcp", near.http, patience)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = io.WriteString(c, "CONNECT "+mine.addr+" HTTP/1.1\r\nHost: x\r\n\r\n")
		head, _ := readUntil(c, "\r\n\r\n")
		if bytes.HasPrefix([]byte(head), []byte("HTTP/1.1 200")) {
			// The pipe was there before: it must not carry anything.
			_, _ = io.WriteString(c, "ping\n")
			if got, err := io.ReadAll(c); len(got) > 0 && err == nil {
				t.Errorf("%q comes back", got)
			}
		}
		_ = c.Close()
		m.do(nil)
		if seen == 0 {
			t.Error("nothing passed the middle")
		}
		if mine.visits.Load() > before+1 {
			t.Errorf("the target was visited %d times", mine.visits.Load()-before)
		}
		eventually(t, func() error { _, err := visit(near.http, mine.addr); return err })
	}
}
