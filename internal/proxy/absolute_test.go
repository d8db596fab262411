package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/wire"
)

// serveWeb runs an HTTP server as target.
func serveWeb(t *testing.T, handler http.HandlerFunc) *fakeOpener {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return &fakeOpener{dial: func(ctx context.Context, _ AgentRef, _ wire.Target) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}}
}

// webClient is an HTTP client that uses the proxy as user.
func webClient(t *testing.T, h *HTTP, user *url.Userinfo) *http.Client {
	t.Helper()
	tr := &http.Transport{
		Proxy:                 http.ProxyURL(&url.URL{Scheme: "http", User: user, Host: h.Addr().String()}),
		DisableCompression:    true,
		ExpectContinueTimeout: patience,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func fetch(t *testing.T, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestAbsoluteForm(t *testing.T) {
	t.Parallel()
	o := serveWeb(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("X-End", "2")
		fmt.Fprintf(w, "%s %s %s\n", r.Method, r.Host, r.RequestURI)
		for _, name := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Drop", "Keep-Alive", "X-Keep", "X-Forwarded-For", "Via", "User-Agent", "Te"} {
			if v, ok := r.Header[name]; ok {
				fmt.Fprintf(w, "%s=%s\n", name, v)
			}
		}
	})
	h := startHTTP(t, nil, frontConfig(o))
	conn := dialFront(t, h)
	reader := bufio.NewReader(conn)
	for _, c := range []struct{ line, host, want string }{
		{"GET http://web.internal/a%2Fb//c?q=%zz;x HTTP/1.1", "ignored", "GET web.internal /a%2Fb//c?q=%zz;x\n"},
		{"GET http://web.internal:8080?x HTTP/1.1", "x", "GET web.internal:8080 /?x\n"},
		{"GET http://web.internal.lab.postern.internal/ HTTP/1.1", "x", "GET web.internal /\n"},
		{"GET http://10.0.0.1.lab.postern.internal:81/ HTTP/1.1", "x", "GET 10.0.0.1:81 /\n"},
		{"GET http://[2001:DB8::1]:81/ HTTP/1.1", "x", "GET [2001:DB8::1]:81 /\n"},
		{"DELETE http://WEB.internal/ HTTP/1.1", "x", "DELETE WEB.internal /\n"},
		{"OPTIONS http://web.internal HTTP/1.1", "x", "OPTIONS web.internal *\n"},
	} {
		send(t, conn, c.line+"\r\nHost: "+c.host+"\r\n"+basic("edge", "secret")+"Proxy-Connection: keep-alive\r\nConnection: X-Drop, Te\r\n"+
			"X-Drop: 1\r\nX-Keep: 2\r\nKeep-Alive: 5\r\nX-Forwarded-For: 192.0.2.1\r\nTE: gzip, trailers\r\nVia: 1.0 first\r\n\r\n")
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if strings.HasPrefix(c.line, "OPTIONS") { // net/http answers "OPTIONS *" by itself
			if res.StatusCode != 200 || len(body) > 0 {
				t.Errorf("%s: %d %q", c.line, res.StatusCode, body)
			}
			continue
		}
		want := c.want + "X-Keep=[2]\nX-Forwarded-For=[192.0.2.1]\nVia=[1.0 first 1.1 postern]\nTe=[trailers]\n"
		if diff := cmp.Diff(want, string(body)); diff != "" {
			t.Errorf("%s: %s", c.line, diff)
		}
		if res.Header.Get("X-Hop") != "" || res.Header.Get("X-End") != "2" || res.Header.Get("Via") != "1.1 postern" {
			t.Errorf("%s: response has %v", c.line, res.Header)
		}
	}
}

// TestStreamsAreReused checks that requests share a stream when they are of
// one identity, agent and target, and only then.
func TestStreamsAreReused(t *testing.T) {
	t.Parallel()
	o := serveWeb(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.Observer = rec
	h := startHTTP(t, nil, cfg)
	for _, user := range []*url.Userinfo{nil, url.User("lab"), url.User("acme/edge"), nil} {
		for _, to := range []string{"http://a/", "http://a:80/x", "http://A./", "http://b/"} {
			if res, body := fetch(t, webClient(t, h, user), newRequest(t, "GET", to, nil)); body != "ok" {
				t.Fatalf("%s: %d %s", to, res.StatusCode, body)
			}
		}
	}
	want := []string{"default/edge tcp:a:80", "default/edge tcp:b:80", "default/lab tcp:a:80", "default/lab tcp:b:80",
		"acme/edge tcp:a:80", "acme/edge tcp:b:80"}
	if diff := cmp.Diff(want, o.opened()); diff != "" {
		t.Error(diff)
	}
}

func TestAbsoluteBodies(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20/16)
	o := serveWeb(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%d %x %v %q %q", n, h.Sum(nil), r.TransferEncoding, r.Header.Get("Expect"), r.Trailer.Get("X-Check"))
		if r.Method == "POST" {
			_, _ = w.Write(big)
		}
		w.Header().Set("X-Sum", "end")
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
	})
	h := startHTTP(t, nil, frontConfig(o))
	client := webClient(t, h, nil)

	req := newRequest(t, "PUT", "http://web/", bytes.NewReader(big))
	req.Header.Set("Expect", "100-continue")
	res, body := fetch(t, client, req)
	if want := fmt.Sprintf(`%d %x [] "100-continue" ""`, len(big), sha256.Sum256(big)); body != want {
		t.Errorf("PUT: %s, want %s", body, want)
	}
	if res.Trailer.Get("X-Sum") != "end" || res.Trailer.Get("X-Late") != "late" {
		t.Errorf("trailers: %v", res.Trailer)
	}

	req = newRequest(t, "POST", "http://web/", io.MultiReader(bytes.NewReader(big))) // of unknown length
	req.Trailer = http.Header{"X-Check": {"sum"}}
	_, body = fetch(t, client, req)
	want := fmt.Sprintf(`%d %x ["chunked"] "" "sum"`, len(big), sha256.Sum256(big))
	want = strings.Replace(want, `["chunked"]`, "[chunked]", 1) + string(big)
	if body != want {
		t.Errorf("POST: %.150s, want %.150s", body, want)
	}
}

// TestOneFraming checks that of two contradicting lengths only one leaves.
func TestOneFraming(t *testing.T) {
	t.Parallel()
	o := serveWeb(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v %q %q", body, r.TransferEncoding, r.Header.Get("Content-Length"), r.URL.Path)
	})
	h := startHTTP(t, nil, frontConfig(o))
	_, body := exchange(t, dialFront(t, h), "POST http://x/one HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"+
		"5\r\nhello\r\n0\r\n\r\n")
	if want := `hello [chunked] "" "/one"`; body != want {
		t.Errorf("the target got %s, want %s", body, want)
	}
}

func TestResponseIsStreamed(t *testing.T) {
	t.Parallel()
	more := make(chan struct{})
	o := serveWeb(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		<-more
		_, _ = io.WriteString(w, "second\n")
	})
	res, err := webClient(t, startHTTP(t, nil, frontConfig(o)), nil).Do(newRequest(t, "GET", "http://web/watch", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	expect(t, res.Body, "first\n")
	close(more)
	expect(t, res.Body, "second\n")
}

func TestTruncatedResponseIsNotWhole(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
	})}
	res, err := webClient(t, startHTTP(t, nil, frontConfig(o)), nil).Do(newRequest(t, "GET", "http://web/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("half a response was read as a whole one")
	}
}

func TestTargetIsNoWebServer(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"":                        "closed the connection without a response",
		"SSH-2.0-OpenSSH\r\n\r\n": "did not answer as an HTTP server does",
	} {
		o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, req.Body) // a close with unread bytes would be a reset
			}
			_, _ = io.WriteString(c, answer)
		})}
		res, body := fetch(t, webClient(t, startHTTP(t, nil, frontConfig(o)), nil), newRequest(t, "POST", "http://web/", strings.NewReader("x")))
		if res.StatusCode != http.StatusBadGateway || !strings.Contains(body, want) || !strings.Contains(res.Header.Get("Proxy-Status"), "error=") {
			t.Errorf("%q: %d %s %v", answer, res.StatusCode, body, res.Header)
		}
	}
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
		_, _ = io.Copy(c, r)
	})}
	conn := dialFront(t, startHTTP(t, nil, frontConfig(o)))
	send(t, conn, "GET http://web/ws HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", res.StatusCode)
	}
	expect(t, r, "hello")
	send(t, conn, "frames")
	expect(t, r, "frames")
	conn.Close()
}

// TestLateConnect sends a CONNECT on a connection that had another request.
func TestLateConnect(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		if head, _ := r.Peek(4); string(head) == "GET " {
			_, _ = http.ReadRequest(r)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return
		}
		_, _ = io.Copy(c, r)
		_ = c.CloseWrite()
	})}
	h := startHTTP(t, nil, frontConfig(o))
	conn := dialFront(t, h)
	_, body := exchange(t, conn, "GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
	if body != "ok" {
		t.Fatalf("GET: %q", body)
	}
	send(t, conn, "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\n\r\nearly")
	expect(t, conn, established+"early")
	_ = conn.CloseWrite()
	if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	if diff := cmp.Diff([]string{"default/edge tcp:web:80", "default/edge tcp:db:5432"}, o.opened()); diff != "" {
		t.Error(diff)
	}

	conn = dialFront(t, h)
	exchange(t, conn, "GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n")
	if res, body := exchange(t, conn, "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\nContent-Length: 5\r\n\r\nhello"); res.StatusCode != 400 || !strings.Contains(body, "no body") {
		t.Errorf("CONNECT with a body: %d %q", res.StatusCode, body)
	}
}

func TestClientLeaves(t *testing.T) {
	t.Parallel()
	arrived, gone := make(chan struct{}), make(chan struct{})
	o := serveWeb(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	req := newRequest(t, "GET", "http://web/", nil).WithContext(ctx)
	started := make(chan error, 1)
	client := webClient(t, startHTTP(t, nil, frontConfig(o)), nil)
	go func() {
		res, err := client.Do(req)
		if err == nil {
			res.Body.Close()
		}
		started <- err
	}()
	<-arrived
	cancel()
	if <-started == nil {
		t.Error("the request did not fail")
	}
	<-gone // the target sees it
}
