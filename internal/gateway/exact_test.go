package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
)

// arrived is what a server saw of a request.
type arrived struct {
	Method, URI, Host string
	Header            http.Header
	Length            int64
	Encoding          []string
	Body              string
	Trailer           http.Header
}

// echo answers with features that a way through may lose, and tells what it saw.
func echo(seen chan<- arrived) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			body = []byte(err.Error())
		}
		h := r.Header.Clone()
		for _, field := range []string{assertion.Header, "Authorization", "Connection"} { // what the gateway takes and gives
			h.Del(field)
		}
		seen <- arrived{r.Method, r.RequestURI, r.Host, h, r.ContentLength, r.TransferEncoding, string(body), r.Trailer}
		w.Header().Set("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.Header()["x-odd_Case"] = []string{"kept"}
		switch {
		case strings.Contains(r.RequestURI, "trailers"):
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "with trailers")
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-Late", "unannounced")
		case strings.Contains(r.RequestURI, "empty"):
			w.WriteHeader(http.StatusNoContent)
		case strings.Contains(r.RequestURI, "same"):
			w.Header().Set("ETag", `"1"`)
			w.WriteHeader(http.StatusNotModified)
		case strings.Contains(r.RequestURI, "early"):
			w.Header().Set("Link", "</a>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, "late")
		case strings.Contains(r.RequestURI, "moved"):
			w.Header().Set("Location", "/api/v1/")
			w.WriteHeader(http.StatusMovedPermanently)
		case strings.Contains(r.RequestURI, "zipped"):
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0})
		case strings.Contains(r.RequestURI, "long"):
			for range 64 {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 32<<10))
			}
		default:
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		}
	}
}

// converse sends a request as it stands there, and returns the answer, informational
// ones too.
func converse(t *testing.T, conn net.Conn, in *bufio.Reader, text string) (res *http.Response, body string, hints []int) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience)) // for each of many requests
	method, _, _ := strings.Cut(text, " ")
	head, rest, waits := text, "", false
	if strings.Contains(text, "100-continue") { // the body waits until it is asked for
		head, rest, waits = strings.Cut(text, "\r\n\r\n")
		head += "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	for {
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%.80q: %v", text, err)
		}
		if res.StatusCode < 200 {
			hints = append(hints, res.StatusCode)
			if res.StatusCode == http.StatusContinue && waits {
				waits = false
				if _, err := io.WriteString(conn, rest); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("%.80q: %v", text, err)
		}
		return res, string(b), hints
	}
}

// TestExact sends requests through the gateway and straight to the server, and compares
// what arrives at either end.
func TestExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	seen := make(chan arrived, 1)
	w.set(echo(seen))
	direct := httptest.NewServer(echo(seen))
	t.Cleanup(direct.Close)

	get := func(target string, fields ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: hub.example:4222\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
	}
	post := func(target, body string, fields ...string) string {
		return "POST " + target + " HTTP/1.1\r\nHost: hub.example\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n" + body
	}
	long := strings.Repeat("0123456789abcdef", 64<<10)
	tests := []string{
		get("@/api"), get("@/"), get("@//"), get("@//api//v1/"), get("@/api/v1/nodes/a%3Ab"), get("@/a%2Fb%2fc"), get("@/a%20b+c"), get("@/%7e~%41"),
		get("@/a;b=c/d,e"), get("@/a?"), get("@/a?b=%2F&c=d%20e&&f"), get("@/a?b;c=d"), get("@/a?=%zz"), get("@/a|b"), get("@/{x}\"<>^`"), get("@/ü"),
		get("@/a//"), get("@/./a/."), get("@/a:b@c!$&'()*"), get("@/%E2%82%AC"), get("@/a?x=" + strings.Repeat("y", 20000)),
		get("@/api", "Accept: a", "Accept: b", "X-Empty:", "x-lower: 1", "User-Agent:", "Accept-Encoding: zstd"),
		get("@/api", "User-Agent: kubectl/v1.36", "Accept: application/vnd.kubernetes.protobuf", "Range: bytes=1-2", "If-None-Match: \"1\""),
		get("@/trailers"), get("@/trailers", "TE: trailers"), get("@/empty"), get("@/same"), get("@/early"), get("@/moved"), get("@/zipped", "Accept-Encoding: gzip"), get("@/long"),
		strings.Replace(get("@/api"), "GET", "HEAD", 1), strings.Replace(get("@/api"), "GET", "OPTIONS", 1), strings.Replace(get("@/api"), "GET", "PATCH", 1),
		strings.Replace(get("@/api"), "GET", "X-CUSTOM", 1),
		post("@/a", "hello", "Content-Length: 5", "Content-Type: application/apply-patch+yaml"),
		post("@/a", "", "Content-Length: 0"),
		post("@/a", "5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
		post("@/a", "5;ext=1\r\nhello\r\n3\r\n yo\r\n0\r\nX-Check: 7\r\n\r\n", "Transfer-Encoding: chunked", "Trailer: X-Check"),
		post("@/a", "hello", "Content-Length: 5", "Expect: 100-continue"),
		post("@/a", "5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Expect: 100-continue"),
		post("@/long", long, fmt.Sprintf("Content-Length: %d", len(long))),
		post("@/a", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(long), long), "Transfer-Encoding: chunked"),
		get("@/hop", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive"),
	}
	near, nearIn := w.raw()
	far, err := net.Dial("tcp", direct.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	farIn := bufio.NewReader(far)
	for _, text := range tests {
		name := text[:min(len(text), 70)]
		res1, body1, hints1 := converse(t, far, farIn, strings.Replace(text, "@", "", 1))
		want := <-seen
		authorized := strings.Replace(text, "\r\n", "\r\nAuthorization: Bearer token-of-ann\r\n", 1)
		res2, body2, hints2 := converse(t, near, nearIn, strings.Replace(authorized, "@", "/plant", 1))
		if res2.StatusCode >= 400 {
			t.Errorf("%q: %s %.200s", name, res2.Status, body2)
			continue
		}
		got := <-seen
		for _, field := range []string{"X-Hop", "Keep-Alive", "Proxy-Connection", "Te"} { // of the hop before
			want.Header.Del(field)
		}
		if want.Header.Get("User-Agent") == "" {
			want.Header.Del("User-Agent")
		}
		if got.Header.Get("User-Agent") == "" {
			got.Header.Del("User-Agent")
		}
		got.Header.Del("Te")
		if want.Length == 0 && want.Header.Get("Content-Length") == "" && got.Header.Get("Content-Length") == "0" {
			got.Header.Del("Content-Length") // it says the same
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q arrived otherwise:\n%.2000s", name, diff)
		}
		if res1.StatusCode != res2.StatusCode || body1 != body2 || res1.ContentLength != res2.ContentLength || !slices.Equal(res1.TransferEncoding, res2.TransferEncoding) {
			t.Errorf("%q: answered %s %d %v, directly %s %d %v", name, res2.Status, res2.ContentLength, res2.TransferEncoding, res1.Status, res1.ContentLength, res1.TransferEncoding)
		}
		if !slices.Equal(hints1, hints2) {
			t.Errorf("%q: hints %v, directly %v", name, hints2, hints1)
		}
		sameFields(t, name, res1, res2)
	}
}

// sameFields holds that an answer through the gateway has the fields and the trailer that
// it has directly, but for what the hub has to add and the clock.
func sameFields(t *testing.T, name string, directly, through *http.Response) {
	t.Helper()
	if !maps.EqualFunc(directly.Trailer, through.Trailer, slices.Equal) {
		t.Errorf("%q: trailer %v, directly %v", name, through.Trailer, directly.Trailer)
	}
	for field := range directly.Header {
		if field != "Date" && !slices.Equal(directly.Header[field], through.Header[field]) {
			t.Errorf("%q: %s is %q, directly %q", name, field, through.Header[field], directly.Header[field])
		}
	}
	for field := range through.Header {
		if field != "Content-Security-Policy" && field != "X-Content-Type-Options" && directly.Header[field] == nil {
			t.Errorf("%q: %s: %q was added", name, field, through.Header[field])
		}
	}
}

// TestAnswerBeforeTheBodyEnds: over HTTP/1.1, what a client sends after the answer has
// begun arrives as what it sent before.
func TestAnswerBeforeTheBodyEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const size = 64 << 10 // little enough for the server to throw away
	got := make(chan int64, 1)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		rw.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(rw).Flush()
		n, _ := io.Copy(io.Discard, r.Body)
		got <- n
	})
	conn, answers := w.raw()
	fmt.Fprintf(conn, "POST /plant/api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-ann\r\nContent-Length: %d\r\n\r\n", size)
	res, err := http.ReadResponse(answers, nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Error(err)
	}
	if n := <-got; n != size {
		t.Errorf("%d bytes arrived of %d", n, size)
	}
}
