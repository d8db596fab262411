package stream_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// joined is a client and a target with a stream between them.
type joined struct {
	*world
	client, target           *net.TCPConn
	clientLocal, targetLocal net.Conn // the other ends of theirs
	clientErr, targetErr     error    // of Carry
	wg                       sync.WaitGroup
}

func (w *world) join(t *testing.T, early []byte) *joined {
	t.Helper()
	j := &joined{world: w}
	c, s := w.open(t)
	var near, far net.Conn
	near, j.clientLocal = pipetest.TCPPair(t, nil)
	far, j.targetLocal = pipetest.TCPPair(t, nil)
	j.client, j.target = near.(*net.TCPConn), far.(*net.TCPConn)
	for _, l := range []*net.TCPConn{j.client, j.target} {
		_ = l.SetDeadline(time.Now().Add(20 * time.Second))
	}
	j.wg.Go(func() { _, j.clientErr = c.Carry(j.clientLocal, early, wire.LegClient) })
	j.wg.Go(func() { _, j.targetErr = s.Carry(j.targetLocal, nil, wire.LegTarget) })
	return j
}

// end waits for both Carries and returns how the pipe came back.
func (j *joined) end() (clean bool) {
	_, _ = j.client.Close(), j.target.Close()
	j.wg.Wait()
	j.clientHost.wg.Wait()
	j.serverHost.wg.Wait()
	a, b := <-j.clientHost.done, <-j.serverHost.done
	return a && b
}

// abort closes a connection with a reset.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// gets wants exactly text and then the end.
func gets(t *testing.T, who string, c net.Conn, text string) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Errorf("the %s got %q, %v; want %q and the end", who, got, err, text)
	}
}

// getsReset wants a beginning of text and then a reset.
func getsReset(t *testing.T, who string, c net.Conn, text string) {
	t.Helper()
	if got, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) || !bytes.HasPrefix([]byte(text), got) {
		t.Errorf("the %s got %q, %v; want a beginning of %q and a reset", who, got, err, text)
	}
}

func says(t *testing.T, who string, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("the %s could not write: %v", who, err)
	}
}

// TestEnds lets connections end in all the ways that there are. What one side does,
// the other one sees; and the pipe carries another stream exactly if nothing was reset.
func TestEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		early string
		run   func(t *testing.T, j *joined)
		clean bool
	}{
		"nothing is said": {run: func(t *testing.T, j *joined) {
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "")
			_ = j.target.CloseWrite()
			gets(t, "client", j.client, "")
		}, clean: true},
		"nothing is said, closed at once": {run: func(t *testing.T, j *joined) {
			_ = j.client.Close()
			gets(t, "target", j.target, "")
		}, clean: true},
		"the target speaks first": {run: func(t *testing.T, j *joined) {
			says(t, "target", j.target, "220 ready")
			b := make([]byte, 9)
			if _, err := io.ReadFull(j.client, b); err != nil || string(b) != "220 ready" {
				t.Errorf("the client got %q, %v", b, err)
			}
			says(t, "client", j.client, "QUIT")
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "QUIT")
			_ = j.target.Close()
			gets(t, "client", j.client, "")
		}, clean: true},
		"the target says all and closes": {run: func(t *testing.T, j *joined) {
			says(t, "target", j.target, "all")
			_ = j.target.Close()
			gets(t, "client", j.client, "all")
		}, clean: true},
		"the client asks with its end": {early: "early ", run: func(t *testing.T, j *joined) {
			says(t, "client", j.client, "question")
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "early question")
			says(t, "target", j.target, "answer")
			_ = j.target.CloseWrite()
			gets(t, "client", j.client, "answer")
		}, clean: true},
		"the target ends first, the client goes on": {run: func(t *testing.T, j *joined) {
			_ = j.target.CloseWrite()
			gets(t, "client", j.client, "")
			says(t, "client", j.client, "still here")
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "still here")
		}, clean: true},
		"both end at once": {run: func(t *testing.T, j *joined) {
			says(t, "client", j.client, "a")
			says(t, "target", j.target, "b")
			_, _ = j.client.CloseWrite(), j.target.CloseWrite()
			gets(t, "target", j.target, "a")
			gets(t, "client", j.client, "b")
		}, clean: true},
		"the client resets": {run: func(t *testing.T, j *joined) {
			says(t, "client", j.client, "part")
			abort(j.client)
			getsReset(t, "target", j.target, "part")
		}},
		"the target resets": {run: func(t *testing.T, j *joined) {
			says(t, "target", j.target, "part")
			abort(j.target)
			getsReset(t, "client", j.client, "part")
		}},
		"the target resets after the client's end": {run: func(t *testing.T, j *joined) {
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "")
			abort(j.target)
			getsReset(t, "client", j.client, "")
		}},
		"the client resets after the target's end": {run: func(t *testing.T, j *joined) {
			_ = j.target.CloseWrite()
			gets(t, "client", j.client, "")
			abort(j.client)
			getsReset(t, "target", j.target, "")
		}},
		"the client resets after its own end": {run: func(t *testing.T, j *joined) {
			_ = j.client.CloseWrite()
			gets(t, "target", j.target, "")
			abort(j.client)
			// That is seen when there is something to write to it.
			for {
				if _, err := j.target.Write(make([]byte, 1000)); err != nil {
					if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
						t.Errorf("the target: %v; want a reset", err)
					}
					return
				}
				time.Sleep(time.Millisecond)
			}
		}},
		"the target takes no more, the client goes on": {run: func(t *testing.T, j *joined) {
			says(t, "target", j.target, "no more")
			_ = j.target.Close()
			b := make([]byte, 7)
			if _, err := io.ReadFull(j.client, b); err != nil {
				t.Error(err)
			}
			for {
				if _, err := j.client.Write(make([]byte, 1000)); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			j := w.join(t, []byte(tt.early))
			begin := time.Now()
			tt.run(t, j)
			if clean := j.end(); clean != tt.clean || (j.clientErr == nil) != tt.clean || (j.targetErr == nil) != tt.clean {
				t.Errorf("pipe clean: %v; carry at the client %v, at the target %v; want clean: %v", clean, j.clientErr, j.targetErr, tt.clean)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			if !tt.clean {
				return
			}
			again := w.join(t, nil)
			says(t, "client", again.client, "again")
			_ = again.client.CloseWrite()
			gets(t, "target", again.target, "again")
			if !again.end() {
				t.Error("the second stream did not end well")
			}
		})
	}
}

// TestLateReset: a reset that comes when its stream has ended for us must not be
// taken for an answer to the next one's OPEN; that one may be tried elsewhere.
func TestLateReset(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	exchange(t, c, s, "question")
	exchange(t, s, c, "answer")
	_ = c.Close()
	if !<-w.clientHost.done {
		t.Fatal("the client's side is not done")
	}
	s.Reset(wire.Fail(wire.LegTarget, wire.CodeReset, "the target reset the connection"))
	_, err := stream.Open(t.Context(), w.client, wire.Open{Target: "tcp:example.com:80"}, nil, w.clientHost)
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeLost {
		t.Errorf("the next stream: %v; want CodeLost", err)
	}
	if <-w.clientHost.done || <-w.serverHost.done {
		t.Error("the pipe came back clean")
	}
}

// TestCloseReturnsReaders: nobody waits for a stream that is closed, while its pipe
// is being read to the peer's end.
func TestCloseReturnsReaders(t *testing.T) {
	w := newWorld(t)
	c, s := w.open(t)
	if _, err := s.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	begin := time.Now()
	if n, err := c.Read(make([]byte, 10)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("read %d bytes after Close, %v", n, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("wrote after Close: %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("that took %s", took)
	}
	_ = s.Close()
	if a, b := <-w.clientHost.done, <-w.serverHost.done; !a || !b {
		t.Errorf("pipe came back clean: %v, %v", a, b)
	}
}
