package exchange

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestContinueIsToldOnce: whoever passes hints on hears of 100 (Continue) once, and before
// the body is read: a server of HTTP says it by itself when it is read first, and a caller
// would get it twice.
func TestContinueIsToldOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
		if r, err := http.ReadRequest(in); err == nil {
			say(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
			_, _ = io.ReadAll(r.Body)
			say(c, fine)
		}
	})
	var told, early atomic.Int32
	r := w.request("POST", "hello")
	r.Header.Set("Expect", "100-continue")
	r.Body = &hearing{ReadCloser: r.Body, told: &told, early: &early}
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		time.Sleep(20 * time.Millisecond) // in which a body that was let go too early would be read
		told.Add(1)
		return nil
	}}))
	if status, text := w.do(r); status != 200 || text != "ok" {
		t.Errorf("%d %q", status, text)
	}
	if told.Load() != 1 || early.Load() != 0 {
		t.Errorf("told %d times; the body was read %d times before that", told.Load(), early.Load())
	}
}

// hearing is a body that counts how often it is read before somebody was told.
type hearing struct {
	io.ReadCloser
	told, early *atomic.Int32
}

func (h *hearing) Read(p []byte) (int, error) {
	if h.told.Load() == 0 {
		h.early.Add(1)
	}
	return h.ReadCloser.Read(p)
}

// TestContinue: a body that waits for a word is sent after it, after a time without
// one, and not to a server that closes the connection.
func TestContinue(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		serve func(c net.Conn, r *http.Request) (body string)
		want  string
		sent  string
	}{
		{"go on", func(c net.Conn, r *http.Request) string {
			say(c, "HTTP/1.1 100 Continue\r\n\r\n")
			text, _ := io.ReadAll(r.Body)
			say(c, fine)
			return string(text)
		}, "ok", "hello"},
		{"no word", func(c net.Conn, r *http.Request) string {
			text, _ := io.ReadAll(r.Body)
			say(c, fine)
			return string(text)
		}, "ok", "hello"},
		{"answered at once", func(c net.Conn, r *http.Request) string {
			say(c, fine)
			text, _ := io.ReadAll(r.Body)
			return string(text)
		}, "ok", "hello"},
		{"not wanted", func(c net.Conn, r *http.Request) string {
			say(c, "HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
			text, _ := io.ReadAll(r.Body)
			return string(text)
		}, "no", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := make(chan string, 1)
			w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
				if r, err := http.ReadRequest(in); err == nil {
					got <- test.serve(c, r)
				}
			})
			r := w.request("POST", "hello")
			r.Header.Set("Expect", "100-continue")
			if _, body := w.do(r); body != test.want {
				t.Errorf("answered %q", body)
			}
			if sent := <-got; sent != test.sent {
				t.Errorf("sent %q, want %q", sent, test.sent)
			}
		})
	}
}

// slow is a body that comes when its test says so.
type slow struct {
	*io.PipeReader
	closed chan struct{}
	once   sync.Once
}

// Close implements io.Closer.
func (s *slow) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.PipeReader.Close()
}

func (w *world) slow(method string) (*http.Request, *io.PipeWriter, *slow) {
	r := w.request(method, "")
	from, to := io.Pipe()
	s := &slow{PipeReader: from, closed: make(chan struct{})}
	r.Body, r.ContentLength = s, -1
	return r, to, s
}

// TestEarlyAnswer: an answer is read while the body is still being sent, whatever the
// server does with the rest.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	t.Run("goes on", func(t *testing.T) {
		t.Parallel()
		got := make(chan string, 1)
		w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				say(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
				text, _ := io.ReadAll(r.Body)
				say(c, "0\r\nSum: 7\r\n\r\n")
				got <- string(text)
			}
		})
		for range 2 {
			r, to, _ := w.slow("POST")
			answer, err := w.send(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(to, "late"); err != nil {
				t.Fatal(err)
			}
			_ = to.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil || string(text) != "ok" || answer.Trailer.Get("Sum") != "7" || <-got != "late" {
				t.Errorf("%q, %v, %v", text, answer.Trailer, err)
			}
		}
		if n := w.dialed(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
	t.Run("is over", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
			if _, err := http.ReadRequest(in); err == nil {
				say(c, fine)
				_, _ = io.Copy(io.Discard, in)
			}
		})
		r, to, s := w.slow("POST")
		answer, err := w.send(r)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "ok" {
			t.Errorf("%q, %v", text, err)
		}
		w.closed(1) // the rest of the body would pass for a request
		_, _ = to.Write(make([]byte, 64<<10))
		<-s.closed
	})
	t.Run("about what it does not take", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
			if _, err := http.ReadRequest(in); err == nil {
				say(c, "HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, in)
			}
		})
		r := w.request("POST", strings.Repeat("x", 8<<20))
		if status, text := w.do(r); status != 413 || text != "no" {
			t.Errorf("%d %q", status, text)
		}
	})
}

// TestBodyFails: a request whose body breaks is not taken for whole.
func TestBodyFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	whole := make(chan error, 1)
	w := newWorld(t, func(_ int, _ net.Conn, in *bufio.Reader) {
		_, _, err := take(in)
		whole <- err
	})
	r, to, s := w.slow("POST")
	go func() {
		_, _ = io.WriteString(to, "half")
		_ = to.CloseWithError(broken)
	}()
	if _, err := w.send(r); !errors.Is(err, broken) {
		t.Errorf("failed with %v", err)
	}
	if err := <-whole; err == nil {
		t.Error("half a body passed for whole")
	}
	<-s.closed
	w.closed(1)
}
