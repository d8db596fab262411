package stream_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// modelSide is one end of a stream beside what should be true of it.
type modelSide struct {
	name string
	s    *stream.Stream
	peer *modelSide

	toRead          []byte // sent by the peer and not yet read here
	next            byte   // the next byte to write: each side counts
	ended           bool   // this side wrote its end
	closed, reset   bool   // by this side
	lateReset       bool   // after it had written its end
	readPast        bool   // the read deadline is over
	writePast       bool
	sawEnd, sawFail bool // in reading
}

func (m *modelSide) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = m.next
		m.next += 7
	}
	return b
}

// mayFail says that the peer's close or reset may be known here by now, or not.
func (m *modelSide) mayFail() bool { return m.peer.closed || m.sawFail }

func (m *modelSide) write(t *rapid.T, n int) {
	b := m.bytes(n)
	got, err := m.s.Write(b)
	switch {
	case m.closed, m.ended && !m.mayFail():
		if got != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%s wrote %d after its end, %v", m.name, got, err)
		}
	case m.mayFail() && err != nil:
	case m.writePast && n > 0:
		if got != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s wrote %d after its deadline, %v", m.name, got, err)
		}
	case n == 0:
		// Whether a write of nothing finds the deadline is left open.
	case got != n || err != nil:
		t.Fatalf("%s wrote %d of %d, %v", m.name, got, n, err)
	}
	if !m.peer.closed {
		m.peer.toRead = append(m.peer.toRead, b[:got]...)
	}
	m.next -= 7 * byte(n-got)
}

func (m *modelSide) read(t *rapid.T, n int) {
	mustWait := len(m.toRead) == 0 && !m.peer.ended && !m.peer.closed
	if mustWait && !m.closed && !m.readPast && !m.sawFail {
		return // it would wait for ever
	}
	if !m.readPast {
		_ = m.s.SetReadDeadline(time.Now().Add(20 * time.Second))
		defer func() { _ = m.s.SetReadDeadline(time.Time{}) }()
	}
	buf := make([]byte, n)
	got, err := m.s.Read(buf)
	switch {
	case m.closed:
		if got != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%s read %d bytes after its close, %v", m.name, got, err)
		}
	case m.readPast:
		if m.sawEnd && err == io.EOF || m.sawFail && err != nil {
			break
		}
		if got != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s read %d after its deadline, %v", m.name, got, err)
		}
	case got > 0:
		if err != nil || !bytes.HasPrefix(m.toRead, buf[:got]) {
			t.Fatalf("%s read %x, %v; %d bytes were sent: %.20x…", m.name, buf[:min(got, 20)], err, len(m.toRead), m.toRead)
		}
		m.toRead = m.toRead[got:]
	case len(m.toRead) > 0:
		t.Fatalf("%s read nothing, %v, where %d bytes were sent", m.name, err, len(m.toRead))
	case m.sawFail, m.peer.reset && !m.peer.ended:
		var f *wire.Failure
		if !errors.As(err, &f) || errors.Is(err, io.EOF) || !m.sawFail && f.Text != "by "+m.peer.name {
			t.Fatalf("%s read %v after a reset", m.name, err)
		}
		m.sawFail = true
	case err != io.EOF:
		t.Fatalf("%s read %v; want the end", m.name, err)
	default:
		m.sawEnd = true
	}
}

func (m *modelSide) closeWrite(t *rapid.T) {
	err := m.s.CloseWrite()
	switch {
	case m.closed:
		if !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%s ended its direction after its close: %v", m.name, err)
		}
		return
	case err != nil && m.writePast:
		// The end did not get out. It may be tried again.
		_ = m.s.SetWriteDeadline(time.Time{})
		m.writePast = false
		err = m.s.CloseWrite()
	}
	if err != nil && !m.mayFail() {
		t.Fatalf("%s ended its direction: %v", m.name, err)
	}
	m.ended = true
}

func (m *modelSide) close(t *rapid.T) {
	if err := m.s.Close(); err != nil {
		t.Fatalf("%s closed: %v", m.name, err)
	}
	if !m.closed {
		m.closed, m.ended, m.toRead = true, true, nil
	}
}

func (m *modelSide) doReset() {
	m.s.Reset(wire.Fail(wire.LegClient, wire.CodeReset, "by %s", m.name))
	if !m.closed {
		m.lateReset = m.ended
		m.closed, m.reset, m.toRead = true, true, nil
	}
}

// TestStreamModel does at random what can be done with a stream, at both ends, and
// compares with a model: what is read is what was written, an end is an end and a
// reset a reset, and a pipe can be used again exactly if nothing was reset.
func TestStreamModel(t *testing.T) {
	base := pipetest.NewWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		w := &world{World: base}
		var err error
		if w.client, w.server, err = base.Connect(nil); err != nil {
			t.Fatal(err)
		}
		defer func() { w.client.Close(); w.server.Close() }()
		for range rapid.IntRange(1, 3).Draw(t, "streams") {
			w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
			if !converse(t, w) {
				return
			}
		}
	})
}

// converse runs one stream and reports whether its pipe can be used again.
func converse(t *rapid.T, w *world) bool {
	c, s, err := w.connect(t.Context())
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	a, b := &modelSide{name: "client", s: c}, &modelSide{name: "server", s: s, next: 128}
	a.peer, b.peer = b, a
	sizes := rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(1000, 20_000), rapid.IntRange(wire.MaxPayloadLen-2, wire.MaxPayloadLen+2))
	ops := map[string]func(*modelSide){
		"write": func(m *modelSide) {
			if len(m.peer.toRead) < 200_000 { // it has to fit into the network
				m.write(t, sizes.Draw(t, "n"))
			}
		},
		"read":           func(m *modelSide) { m.read(t, rapid.IntRange(1, 40_000).Draw(t, "n")) },
		"close write":    func(m *modelSide) { m.closeWrite(t) },
		"close":          func(m *modelSide) { m.close(t) },
		"reset":          func(m *modelSide) { m.doReset() },
		"read deadline":  func(m *modelSide) { m.readPast = deadline(m, m.s.SetReadDeadline, m.readPast) },
		"write deadline": func(m *modelSide) { m.writePast = deadline(m, m.s.SetWriteDeadline, m.writePast) },
	}
	// What ends a stream is rare, or little else would be tried.
	names := rapid.SampledFrom([]string{
		"write", "write", "write", "write", "read", "read", "read", "read", "read", "write", "write", "read", "read",
		"read deadline", "write deadline", "read deadline", "write deadline", "close write", "close", "reset",
	})
	for range rapid.IntRange(0, 40).Draw(t, "ops") {
		m := a
		if rapid.Bool().Draw(t, "server") {
			m = b
		}
		ops[names.Draw(t, "op")](m)
	}
	reset := a.reset || b.reset
	a.close(t)
	b.close(t)
	w.clientHost.wg.Wait()
	w.serverHost.wg.Wait()
	cleanA, cleanB := <-w.clientHost.done, <-w.serverHost.done
	switch {
	case !reset && cleanA && cleanB:
		return true
	case reset && !cleanA && !cleanB:
	case reset && a.lateReset != b.lateReset && cleanA != a.lateReset && cleanB != b.lateReset:
		// A reset after the end: the other side may have been done before it came.
	default:
		t.Fatalf("the pipe came back clean: %v and %v; reset: %v", cleanA, cleanB, reset)
	}
	return false
}

// deadline turns a deadline that is over into none, and the other way round.
func deadline(m *modelSide, set func(time.Time) error, past bool) bool {
	if m.closed {
		return past
	}
	if past {
		_ = set(time.Time{})
	} else {
		_ = set(time.Unix(1, 0))
	}
	return !past
}

// TestConcurrentUse has many goroutines at both ends that write, read, set deadlines
// and close all at once; the race detector, and that it ends, is the test.
func TestConcurrentUse(t *testing.T) {
	base := pipetest.NewWorld(t)
	for range 20 {
		w := &world{World: base}
		w.client, w.server = base.Pair(t, nil)
		w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
		c, s := w.open(t)
		var wg sync.WaitGroup
		for i, e := range []*stream.Stream{c, s, c, s} {
			wg.Go(func() { _, _ = io.Copy(io.Discard, e) })
			wg.Go(func() {
				for range 50 {
					if _, err := e.Write(make([]byte, 3000)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
						return
					}
				}
				if i%2 == 0 {
					_ = e.CloseWrite()
				}
			})
			wg.Go(func() {
				for range 50 {
					_ = e.SetDeadline(time.Now().Add(time.Millisecond))
					_ = e.SetDeadline(time.Time{})
				}
				_ = e.Close()
			})
		}
		wg.Wait()
		w.clientHost.wg.Wait()
		w.serverHost.wg.Wait()
		<-w.clientHost.done
		<-w.serverHost.done
	}
}
