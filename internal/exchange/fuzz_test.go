package exchange

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// FuzzAnswers: whatever a server says is read as the standard library reads it, and no
// connection is kept on which something is left.
func FuzzAnswers(f *testing.F) {
	for _, text := range []string{
		fine, fine + fine, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n" + fine,
		"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
	} {
		f.Add([]byte(text), false)
		f.Add([]byte(text), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://gateway/", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &canned{in: bytes.NewReader(text)}
		client := New(Config{
			Dial:    func(context.Context) (net.Conn, func(func()), error) { return c, nil, nil },
			MaxIdle: 1, IdleTime: time.Minute, ContinueTime: time.Minute, MaxHeader: 1 << 10, ReadBuffer: 64,
		})
		defer client.Close()
		answer, err := client.Send(r, func(net.Conn) {})
		if err != nil {
			if !c.closed {
				t.Error("the connection of a bad answer stays open")
			}
			return
		}
		if answer.StatusCode < 200 {
			t.Fatalf("status %d was not asked for", answer.StatusCode)
		}
		body, err := io.ReadAll(answer.Body)
		kept := len(client.idle) == 1
		if kept == c.closed {
			t.Errorf("kept %v, closed %v", kept, c.closed)
		}
		if kept && (err != nil || answer.Close || client.idle[0].in.Buffered() > 0 || client.kept() != nil && c.in.Len() > 0) {
			t.Errorf("kept with %d bytes left, %v", c.in.Len(), err)
		}
		in := bufio.NewReader(bytes.NewReader(text))
		for {
			want, wrong := http.ReadResponse(in, r)
			if wrong != nil {
				t.Fatalf("the standard library says %v", wrong)
			}
			if want.StatusCode < 200 {
				continue
			}
			all, wrong := io.ReadAll(want.Body)
			if want.StatusCode != answer.StatusCode || !bytes.Equal(body, all) || (err == nil) != (wrong == nil) {
				t.Errorf("got %d %q %v, want %d %q %v", answer.StatusCode, body, err, want.StatusCode, all, wrong)
			}
			return
		}
	})
}

// canned is a connection on which something stands ready, and nothing comes.
type canned struct {
	net.Conn
	in     *bytes.Reader
	closed bool
}

func (c *canned) Quiet(time.Duration) bool    { return c.in.Len() == 0 }
func (c *canned) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *canned) Write(b []byte) (int, error) { return len(b), nil }
func (c *canned) Close() error                { c.closed = true; return nil }
