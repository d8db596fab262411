package exchange

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// TestKeep tells after which answers a connection carries the next request.
func TestKeep(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, method, answer string
		want                 string // body
		keep                 bool
	}{
		{"length", "GET", fine, "ok", true},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSum: 7\r\n\r\n", "ok", true},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", true},
		{"no content", "DELETE", "HTTP/1.1 204 No Content\r\n\r\n", "", true},
		{"not modified", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "", true},
		{"head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "", true},
		{"close", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", "ok", false},
		{"old", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", false},
		{"bytes behind a length", "GET", fine + "HTTP/1.1 200 OK\r\n\r\n", "ok", false},
		{"bytes behind chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", "", false},
		{"bytes behind no body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "", false},
		{"both lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, always(test.answer))
			for range 3 {
				if _, got := w.do(w.request(test.method, "")); got != test.want {
					t.Errorf("body %q, want %q", got, test.want)
				}
			}
			want := 1
			if !test.keep {
				want = 3
				w.closed(1)
			}
			if n := w.dialed(); n != want {
				t.Errorf("%d connections, want %d", n, want)
			}
		})
	}
}

// TestLies: an answer that is none is an error, and ends its connection.
func TestLies(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 16<<10)
	tests := []struct {
		name, answer string
		want         error
	}{
		{"garbage", "SSH-2.0-x\r\n\r\n", nil},
		{"nothing", "", nil},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", io.ErrUnexpectedEOF},
		{"a long status", "HTTP/1.1 200 " + long + "\r\n\r\n", ErrHeaderTooLong},
		{"a long header", "HTTP/1.1 200 OK\r\nA: " + long + "\r\n\r\n", ErrHeaderTooLong},
		{"many hints", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 400) + fine, ErrHeaderTooLong},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", nil},
		{"a bad length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", nil},
		{"an odd coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", nil},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", ErrNotAsked},
		{"another protocol without a name", "HTTP/1.1 101 Switching Protocols\r\n\r\n", ErrNotAsked},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
				if _, _, err := take(in); err == nil {
					say(c, test.answer)
				}
			})
			answer, err := w.send(w.request("GET", ""))
			if err == nil {
				t.Fatalf("got %v", answer)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("failed with %v, want %v", err, test.want)
			}
			w.closed(1)
			if n := w.dialed(); n != 1 {
				t.Errorf("%d connections: what a fresh one says is not asked for again", n)
			}
		})
	}
}

// TestBrokenBody: a body that ends early is an error, never a short one.
func TestBrokenBody(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
	} {
		w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
			if _, _, err := take(in); err == nil {
				say(c, text)
			}
		})
		answer, err := w.send(w.request("GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // it stays broken
			if _, err := io.ReadAll(answer.Body); err == nil {
				t.Errorf("%q is read without an error", text)
			}
		}
		w.closed(1)
	}
}

// TestAgain tells when a request is sent a second time.
func TestAgain(t *testing.T) {
	t.Parallel()
	type step struct {
		name, method, body string
		prepare            func(w *world, r *http.Request)
		part               string // of an answer, before the connection ends
		again              bool
	}
	hang := func(*world, *http.Request) {}
	for _, test := range []step{
		{"get", "GET", "", hang, "", true},
		{"head", "HEAD", "", hang, "", true},
		{"delete", "DELETE", "", hang, "", false},
		{"post", "POST", "x", hang, "", false},
		{"an upgrade", "GET", "", func(_ *world, r *http.Request) { r.Header.Set("Upgrade", "x") }, "", false},
		{"answered in part", "GET", "", hang, "HTTP/1.1 2", false},
		{"not quiet", "POST", "x", func(w *world, _ *http.Request) { w.conns[0].ended.Store(true) }, "", true},
		{"nothing sent", "DELETE", "", func(w *world, _ *http.Request) { _ = w.conns[0].Conn.Close() }, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(n int, c net.Conn, in *bufio.Reader) {
				for i := 0; ; i++ {
					r, _, err := take(in)
					switch {
					case err != nil:
						return
					case n == 1 && i == 1:
						say(c, test.part)
						return
					case r.Method == http.MethodHead:
						say(c, strings.TrimSuffix(fine, "ok"))
					default:
						say(c, fine)
					}
				}
			})
			w.do(w.request("GET", ""))
			r := w.request(test.method, test.body)
			test.prepare(w, r)
			over := 0
			answer, err := w.client.Send(r, func(net.Conn) { over++ })
			if test.again != (err == nil) {
				t.Fatalf("failed with %v", err)
			}
			if err == nil {
				_ = answer.Body.Close()
			}
			if want := w.dialed() - 1; test.again && (over < 1 || want != 1) {
				t.Errorf("over %d connections, %d of them new", over, want)
			}
			w.closed(1)
		})
	}
}

// TestHints: informational answers arrive one by one, and their number has no limit then.
func TestHints(t *testing.T) {
	t.Parallel()
	const n = 400
	w := newWorld(t, always(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", n)+fine))
	r := w.request("GET", "")
	got := 0
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if got++; code != 103 || h.Get("Link") != "x" {
			t.Errorf("%d %v", code, h)
		}
		return nil
	}}))
	if status, text := w.do(r); status != 200 || text != "ok" || got != n {
		t.Errorf("%d %q after %d hints", status, text, got)
	}
}

// TestUpgrade: after 101 the connection is the caller's, both ways and each by itself.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
		if _, _, err := take(in); err != nil {
			return
		}
		say(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome ")
		text, _ := io.ReadAll(in)
		say(c, string(text))
	})
	r := w.request("GET", "")
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "echo")
	answer, err := w.send(r)
	if err != nil || answer.StatusCode != 101 {
		t.Fatal(answer, err)
	}
	both, ok := answer.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatal("the body cannot be written")
	}
	big := strings.Repeat("x", 100<<10)
	go func() {
		_, _ = io.WriteString(both, big)
		_ = both.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if text, err := io.ReadAll(both); err != nil || string(text) != "welcome "+big {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	_ = both.Close()
	w.closed(1)
}

// TestCancel: the end of its context ends an exchange at every moment, and nothing is
// kept of it.
func TestCancel(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	stuck := func(text string) func(int, net.Conn, *bufio.Reader) {
		return func(_ int, c net.Conn, in *bufio.Reader) {
			if _, err := http.ReadRequest(in); err == nil {
				say(c, text)
				_, _ = io.Copy(io.Discard, in)
			}
		}
	}
	tests := []struct {
		name  string
		serve func(int, net.Conn, *bufio.Reader)
		body  int
		begun bool // the answer has
	}{
		{"while the request is written", func(int, net.Conn, *bufio.Reader) {}, 64 << 20, false},
		{"before the answer", stuck(""), 0, false},
		{"in its header", stuck("HTTP/1.1 200 OK\r\n"), 0, false},
		{"after a hint", stuck("HTTP/1.1 103 Early Hints\r\n\r\n"), 0, false},
		{"in its body", stuck("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\no"), 0, true},
		{"in a chunk", stuck("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\no"), 0, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			ended := make(chan struct{})
			defer close(ended)
			w := newWorld(t, func(n int, c net.Conn, in *bufio.Reader) {
				if !test.begun {
					time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
				}
				test.serve(n, c, in)
				<-ended // it is not the server that ends the request
			})
			r := w.request("POST", strings.Repeat("x", test.body)).WithContext(ctx)
			if test.body == 0 {
				r.Method = "GET"
			}
			answer, err := w.send(r)
			if test.begun {
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
				_, err = io.ReadAll(answer.Body)
			}
			if err != gone { //nolint:errorlint // it is the cause itself
				t.Errorf("ended with %v", err)
			}
			w.closed(1)
			if w.idle() != 0 {
				t.Error("the connection is kept")
			}
		})
	}
}

// TestEarlyClose: an answer that is not read to its end costs the connection, at once.
func TestEarlyClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
		if _, _, err := take(in); err == nil {
			say(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
			_, _ = io.Copy(io.Discard, in)
		}
	})
	answer, err := w.send(w.request("GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = answer.Body.Close() }() // while it is read
	if _, err := io.ReadAll(answer.Body); err == nil {
		t.Error("a body that was closed is read to its end")
	}
	w.closed(1)
}
