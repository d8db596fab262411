package gateway

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// h2Case is a request as a client of HTTP/2 makes it.
type h2Case struct {
	method, target string
	header         http.Header
	body           string
	unknown        bool // the body's length
	trailer        http.Header
}

// send sends the request to a server, below a prefix of its path.
func (c h2Case) send(t *testing.T, client *http.Client, server, prefix, token string) (res *http.Response, body string, hints []int) {
	t.Helper()
	base, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints = append(hints, code); return nil }}
	ctx := httptrace.WithClientTrace(t.Context(), trace)
	r, err := http.NewRequestWithContext(ctx, c.method, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "hub.example"
	r.URL = &url.URL{Scheme: base.Scheme, Host: base.Host, Opaque: "//" + r.Host + prefix + c.target} // to the byte
	r.Header = maps.Clone(c.header)
	if r.Header == nil {
		r.Header = http.Header{}
	}
	if r.Header.Get("Accept-Encoding") == "" {
		r.Header.Set("Accept-Encoding", "identity")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	r.Trailer = c.trailer
	if c.body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(c.body)), int64(len(c.body))
		if c.unknown {
			r.ContentLength = -1
		}
	}
	if res, err = client.Do(r); err != nil {
		t.Fatalf("%s %.70s: %v", c.method, c.target, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %.70s: %v", c.method, c.target, err)
	}
	if res.ProtoMajor != 2 {
		t.Fatalf("it was %s", res.Proto)
	}
	return res, string(text), hints
}

// TestExactHTTP2 is TestExact for clients of HTTP/2, which kubectl and client-go are.
func TestExactHTTP2(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	seen := make(chan arrived, 1)
	w.set(echo(seen))
	direct := httptest.NewUnstartedServer(echo(seen))
	direct.EnableHTTP2 = true
	direct.StartTLS()
	t.Cleanup(direct.Close)
	patient := func(c *http.Client) *http.Client { // who waits to be asked for a body, and follows no redirects
		tr := &http.Transport{TLSClientConfig: c.Transport.(*http.Transport).TLSClientConfig.Clone(), ForceAttemptHTTP2: true, ExpectContinueTimeout: patience}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	near, far := patient(w.client), patient(direct.Client())

	long := strings.Repeat("0123456789abcdef", 64<<10)
	var tests []h2Case
	for _, target := range []string{
		"/api", "/", "//", "//api//v1/", "/api/v1/nodes/a%3Ab", "/a%2Fb%2fc", "/a%20b+c", "/%7e~%41", "/a;b=c/d,e", "/a?", "/a?b=%2F&c=d%20e&&f", "/a?b;c=d", "/a?=%zz",
		"/a|b", "/{x}\"<>^`", "/ü", "/a//", "/./a/.", "/a:b@c!$&'()*", "/%E2%82%AC", "/a?x=" + strings.Repeat("y", 20000),
		"/trailers", "/empty", "/same", "/early", "/moved", "/long",
	} {
		tests = append(tests, h2Case{method: http.MethodGet, target: target})
	}
	for _, method := range []string{http.MethodHead, http.MethodOptions, http.MethodDelete, "X-CUSTOM"} {
		tests = append(tests, h2Case{method: method, target: "/api"})
	}
	tests = append(tests, []h2Case{
		{method: "GET", target: "/api", header: http.Header{"Accept": {"a", "b"}, "X-Empty": {""}, "User-Agent": {"kubectl/v1.36"}, "Range": {"bytes=1-2"}}},
		{method: "GET", target: "/zipped", header: http.Header{"Accept-Encoding": {"gzip"}}},
		{method: "GET", target: "/trailers", header: http.Header{"Te": {"trailers"}}},
		{method: "POST", target: "/a", body: "hello", header: http.Header{"Content-Type": {"application/apply-patch+yaml"}}},
		{method: "POST", target: "/a", body: "hello", unknown: true},
		{method: "POST", target: "/a", body: "hello", unknown: true, trailer: http.Header{"X-Check": {"7"}}},
		{method: "POST", target: "/a", body: "hello", header: http.Header{"Expect": {"100-continue"}}},
		{method: "POST", target: "/a", body: "hello", unknown: true, header: http.Header{"Expect": {"100-continue"}}},
		{method: "PATCH", target: "/long", body: long},
		{method: "PUT", target: "/a", body: long, unknown: true, trailer: http.Header{"X-Check": {"8"}}},
	}...)
	for _, c := range tests {
		name := c.method + " " + c.target[:min(len(c.target), 70)]
		res1, body1, hints1 := c.send(t, far, direct.URL, "", "")
		want := <-seen
		res2, body2, hints2 := c.send(t, near, w.url, "/plant", "token-of-ann")
		if res2.StatusCode >= 400 {
			t.Errorf("%s: %s %.200s", name, res2.Status, body2)
			continue
		}
		got := <-seen
		for _, one := range []*arrived{&want, &got} { // what HTTP/1.1, on the way to the agent, has for frames
			one.Header.Del("Te")
			one.Header.Del("Content-Length") // Length tells
			one.Encoding = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s arrived otherwise:\n%.2000s", name, diff)
		}
		if len(res1.Trailer) > 0 { // HTTP/1.1, on the way, has no length before a trailer
			res1.ContentLength = -1
			res1.Header.Del("Content-Length")
		}
		if res1.StatusCode != res2.StatusCode || body1 != body2 || res1.ContentLength != res2.ContentLength || !slices.Equal(hints1, hints2) {
			t.Errorf("%s: answered %s %d with hints %v, directly %s %d %v", name, res2.Status, res2.ContentLength, hints2, res1.Status, res1.ContentLength, hints1)
		}
		sameFields(t, name, res1, res2)
	}
}

// TestAnswerBeforeTheBodyEndsHTTP2: over HTTP/2 too, an answer that begins before the
// body does comes at once, and all of both gets there.
func TestAnswerBeforeTheBodyEndsHTTP2(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		_ = http.NewResponseController(rw).Flush()
		_, _ = io.Copy(rw, r.Body)
	})
	body, feed := io.Pipe()
	res, err := w.client.Do(w.request("ann", http.MethodPost, "/plant/api", body)) // nothing of the body is there yet
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	want := bytes.Repeat([]byte("0123456789abcdef"), 512<<10)
	go func() {
		_, _ = feed.Write(want)
		_ = feed.Close()
	}()
	if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(want), err)
	}
}
