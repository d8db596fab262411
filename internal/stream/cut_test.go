package stream_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// TestResetCutsACarry resets a stream while it carries nothing, bytes both ways,
// and bytes that the target does not take: both ends learn the reason, and both
// local connections are reset.
func TestResetCutsACarry(t *testing.T) {
	cut := wire.Fail(wire.LegPolicy, wire.CodeDenied, "no longer allowed")
	for name, traffic := range map[string]struct{ echo, flood bool }{
		"idle":                      {},
		"echo":                      {echo: true, flood: true},
		"target that does not read": {flood: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c, s := w.open(t)
			near, nearLocal := pipetest.TCPPair(t, nil)
			far, farLocal := pipetest.TCPPair(t, nil)
			var wg sync.WaitGroup
			errs := make(chan error, 2)
			wg.Go(func() {
				_, err := c.Carry(nearLocal, nil, wire.LegClient)
				errs <- err
			})
			wg.Go(func() {
				_, err := s.Carry(farLocal, nil, wire.LegTarget)
				errs <- err
			})
			if _, err := far.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
				t.Fatal(err) // it carries now
			}
			var wrote error
			var writer sync.WaitGroup
			if traffic.echo {
				wg.Go(func() { _, _ = io.Copy(far, far) })
			}
			if traffic.flood {
				writer.Go(func() { wrote = flood(near) })
			}
			s.Reset(cut)
			for range 2 {
				var f *wire.Failure
				if err := <-errs; !errors.As(err, &f) || f.Leg != wire.LegPolicy || f.Code != wire.CodeDenied || f.Text != cut.Text {
					t.Errorf("carry: %v; want %v", err, cut)
				}
			}
			_, err := io.Copy(io.Discard, near)
			writer.Wait()
			// The system tells the reset once, to a reader or to a writer.
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(wrote, syscall.ECONNRESET) {
				t.Errorf("client read %v, wrote %v; want a connection reset", err, wrote)
			}
			_, _ = near.Close(), far.Close()
			wg.Wait()
			if a, b := <-w.clientHost.done, <-w.serverHost.done; a || b {
				t.Errorf("pipe came back clean: %v, %v", a, b)
			}
		})
	}
}

// flood writes until that fails.
func flood(c net.Conn) error {
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

// TestResetBeforeCarry cuts a stream that is open but carries nothing yet.
func TestResetBeforeCarry(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	cut := wire.Fail(wire.LegPolicy, wire.CodeDenied, "no longer allowed")
	s.Reset(cut)
	far, farLocal := pipetest.TCPPair(t, nil)
	if _, err := s.Carry(farLocal, nil, wire.LegTarget); !errors.Is(err, cut) {
		t.Errorf("carry: %v; want %v", err, cut)
	}
	var f *wire.Failure
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &f) || f.Leg != wire.LegPolicy || f.Code != wire.CodeDenied {
		t.Errorf("read %v; want %v", err, cut)
	}
	_, _ = far.Close(), c.Close()
	w.clientHost.wg.Wait()
	w.serverHost.wg.Wait()
}

// TestResetAfterTheEnd must not touch the pipe, which serves the next stream.
func TestResetAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	far, farLocal := pipetest.TCPPair(t, nil)
	_ = c.CloseWrite()
	_ = far.(*net.TCPConn).CloseWrite()
	if _, err := s.Carry(farLocal, nil, wire.LegTarget); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %v; want the end", err)
	}
	_, _ = far.Close(), c.Close()
	<-w.clientHost.done
	<-w.serverHost.done
	next, served := w.open(t)
	s.Reset(wire.Fail(wire.LegPolicy, wire.CodeDenied, "too late"))
	exchange(t, next, served, "question")
	exchange(t, served, next, "answer")
	_, _ = next.Close(), served.Close()
}
