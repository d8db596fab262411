package proxy

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/wire"
)

func basic(user, password string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n"
}

func TestConnect(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.Observer = rec
	h := startHTTP(t, nil, cfg)
	for _, c := range []struct{ request, opened string }{
		{"CONNECT db.internal:5432 HTTP/1.1\r\nHost: db.internal:5432\r\n\r\n", "default/edge tcp:db.internal:5432"},
		{"CONNECT db.internal:5432 HTTP/1.0\r\n\r\n", "default/edge tcp:db.internal:5432"},
		{"CONNECT DB.Internal.:5432 HTTP/1.1\n\n", "default/edge tcp:db.internal:5432"},
		{"CONNECT 10.0.0.1:1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "default/edge tcp:10.0.0.1:1"},
		{"CONNECT [2001:DB8::1]:65535 HTTP/1.1\r\n\r\n", "default/edge tcp:[2001:db8::1]:65535"},
		{"CONNECT [::ffff:10.0.0.1]:80 HTTP/1.1\r\n\r\n", "default/edge tcp:10.0.0.1:80"},
		{"CONNECT db:1 HTTP/1.1\r\n" + basic("lab", "ignored") + "\r\n", "default/lab tcp:db:1"},
		{"CONNECT db:1 HTTP/1.1\r\n" + basic("acme/lab", "") + "\r\n", "acme/lab tcp:db:1"},
		{"CONNECT db.x.lab.postern.internal:1 HTTP/1.1\r\n\r\n", "default/lab tcp:db.x:1"},
		{"CONNECT kubernetes.lab.postern.internal:443 HTTP/1.1\r\n" + basic("acme/edge", "") + "\r\n", "acme/lab tcp:kubernetes:443"},
	} {
		conn := dialFront(t, h)
		send(t, conn, c.request+"ear")
		expect(t, conn, "HTTP/1.1 200 Connection established\r\n\r\near")
		send(t, conn, "ly")
		expect(t, conn, "ly")
		_ = conn.CloseWrite()
		if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
			t.Errorf("%q: at the end: %q, %v", c.request, rest, err)
		}
		asked := o.opened()
		if got := asked[len(asked)-1]; got != c.opened {
			t.Errorf("%q opened %q, want %q", c.request, got, c.opened)
		}
		if e := <-rec.closed; e.Stats != (Stats{5, 5}) || e.Front != FrontHTTP || e.Failure != nil || !e.Client.IsValid() {
			t.Errorf("%q: %+v", c.request, e)
		}
	}
	if got := len(rec.get("opened")); got != len(o.opened()) {
		t.Errorf("%d streams reported, %d opened", got, len(o.opened()))
	}
}

// TestServerSpeaksFirst checks that the target's greeting cannot overtake the
// response, however early it comes.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	ready := make(chan struct{}, 1)
	dial := serveTarget(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 mail ready\r\n")
		ready <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	})
	o := &fakeOpener{dial: func(ctx context.Context, a AgentRef, w wire.Target) (net.Conn, error) {
		conn, err := dial(ctx, a, w)
		<-ready // the greeting is on its way before Open returns
		return conn, err
	}}
	h := startHTTP(t, nil, frontConfig(o))
	for range 20 {
		conn := dialFront(t, h)
		send(t, conn, "CONNECT mail:25 HTTP/1.1\r\n\r\n")
		expect(t, conn, established+"220 mail ready\r\n")
		conn.Close()
	}
}

func TestConnectHalfClose(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // answers only after the client's end
		_, _ = io.WriteString(c, "got "+string(all))
	})}
	conn := dialFront(t, startHTTP(t, nil, frontConfig(o)))
	send(t, conn, "CONNECT x:1 HTTP/1.1\r\n\r\nall of it")
	_ = conn.CloseWrite()
	expect(t, conn, established+"got all of it")
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestConnectReset(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})}
	conn := dialFront(t, startHTTP(t, nil, frontConfig(o)))
	send(t, conn, "CONNECT x:1 HTTP/1.1\r\n\r\n")
	expect(t, conn, established)
	send(t, conn, "x")
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset became %v", err)
	}
}

// TestFailures checks status, fields and body of every kind of failure, for
// CONNECT and for requests in absolute form.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		failure *wire.Failure
		status  int
		kind    string
		retry   string
	}{
		{wire.Fail(wire.LegPolicy, wire.CodeDenied, "no rule").WithHint("start the agent with --allow x"), 403, "http_request_denied", ""},
		{wire.Fail(wire.LegDNS, wire.CodeNameNotFound, "no such \"name\" \\ ü\n"), 502, "dns_error", ""},
		{wire.Fail(wire.LegDNS, wire.CodeNameFailed, "t"), 502, "dns_error", ""},
		{wire.Fail(wire.LegDNS, wire.CodeTimeout, "t"), 504, "dns_timeout", ""},
		{wire.Fail(wire.LegTCP, wire.CodeRefused, "t"), 502, "connection_refused", ""},
		{wire.Fail(wire.LegTCP, wire.CodeReset, "t"), 502, "connection_terminated", ""},
		{wire.Fail(wire.LegTCP, wire.CodeUnreachable, "t"), 502, "destination_ip_unroutable", ""},
		{wire.Fail(wire.LegTCP, wire.CodeTimeout, "t"), 504, "connection_timeout", ""},
		{wire.Fail(wire.LegRelay, wire.CodeTimeout, "t"), 504, "connection_timeout", ""},
		{wire.Fail(wire.LegAgent, wire.CodeNoAgent, "t"), 503, "destination_unavailable", "5"},
		{wire.Fail(wire.LegAgent, wire.CodeDraining, "t"), 503, "destination_unavailable", "1"},
		{wire.Fail(wire.LegAgent, wire.CodeOverloaded, "t"), 503, "connection_limit_reached", "5"},
		{wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "t"), 502, "proxy_configuration_error", ""},
		{wire.Fail(wire.LegRelay, wire.CodeWrongPeer, "t"), 502, "proxy_internal_error", ""},
		{wire.Fail(wire.LegProxy, wire.CodeInternal, "t"), 500, "proxy_internal_error", ""},
	} {
		t.Run(c.failure.Leg.String()+" "+c.failure.Code.String(), func(t *testing.T) {
			t.Parallel()
			rec := newRecorder()
			cfg := frontConfig(fails(c.failure))
			cfg.Observer = rec
			h := startHTTP(t, nil, cfg)
			for _, request := range []string{
				// With early data, which must not turn the answer into a reset.
				"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n" + strings.Repeat("early ", 1000),
				"GET http://db:5432/ HTTP/1.1\r\nHost: db:5432\r\n\r\n",
			} {
				res, body := exchange(t, dialFront(t, h), request)
				wantBody := "postern: " + c.failure.Leg.String() + ": " + c.failure.Text + "\n"
				if c.failure.Hint != "" {
					wantBody += "hint: " + c.failure.Hint + "\n"
				}
				if res.StatusCode != c.status || body != wantBody || res.Header.Get("Retry-After") != c.retry {
					t.Errorf("%.20q: %d %q, Retry-After %q", request, res.StatusCode, body, res.Header.Get("Retry-After"))
				}
				ps := res.Header.Get("Proxy-Status")
				if want := "postern; error=" + c.kind + `; details="` + c.failure.Leg.String() + ": "; !strings.HasPrefix(ps, want) || !strings.HasSuffix(ps, `"`) {
					t.Errorf("Proxy-Status: %s, want %s…", ps, want)
				}
				if strings.HasPrefix(c.failure.Text, "no such") && !strings.Contains(ps, `no such \"name\" \\ ??`) {
					t.Errorf("Proxy-Status: %s", ps)
				}
			}
			if n := len(rec.get("failed")); n != 2 {
				t.Errorf("%d failures reported", n)
			}
		})
	}
}

func TestDeniedAddressIsNamed(t *testing.T) {
	t.Parallel()
	h := startHTTP(t, nil, frontConfig(fails(wire.Fail(wire.LegPolicy, wire.CodeDenied, "t"))))
	res, _ := exchange(t, dialFront(t, h), "CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n")
	if ps := res.Header.Get("Proxy-Status"); !strings.Contains(ps, "error=destination_ip_prohibited") {
		t.Errorf("Proxy-Status: %s", ps)
	}
}

func TestOpenTimeout(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: func(ctx context.Context, _ AgentRef, _ wire.Target) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	cfg := frontConfig(o)
	cfg.OpenTimeout = 20 * time.Millisecond
	res, body := exchange(t, dialFront(t, startHTTP(t, nil, cfg)), "CONNECT x:1 HTTP/1.1\r\n\r\n")
	if res.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, "tcp:x:1") {
		t.Errorf("%d %q", res.StatusCode, body)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	h := startHTTP(t, nil, frontConfig(o))
	for request, want := range map[string]string{
		"CONNECT x HTTP/1.1\r\n\r\n":                                                       "not HOST:PORT",
		"CONNECT x: HTTP/1.1\r\n\r\n":                                                      "port",
		"CONNECT x:0 HTTP/1.1\r\n\r\n":                                                     "port",
		"CONNECT x:+1 HTTP/1.1\r\n\r\n":                                                    "port",
		"CONNECT x:65536 HTTP/1.1\r\n\r\n":                                                 "port",
		"CONNECT x:ssh HTTP/1.1\r\n\r\n":                                                   "port",
		"CONNECT :80 HTTP/1.1\r\n\r\n":                                                     "not HOST:PORT",
		"CONNECT [x]:80 HTTP/1.1\r\n\r\n":                                                  "not HOST:PORT",
		"CONNECT 2001:db8::1:80 HTTP/1.1\r\n\r\n":                                          "not HOST:PORT",
		"CONNECT [fe80::1%25eth0]:80 HTTP/1.1\r\n\r\n":                                     "host",
		"CONNECT user@x:80 HTTP/1.1\r\n\r\n":                                               "not allowed in a name",
		"CONNECT x\x00y:80 HTTP/1.1\r\n\r\n":                                               "not allowed in a name",
		"CONNECT http://x/ HTTP/1.1\r\n\r\n":                                               "port",
		"CONNECT x:80 HTTP/2.0\r\n\r\n":                                                    "version",
		"CONNECT x:80 HTTP/1.1 \r\n\r\n":                                                   "version",
		"CONNECT x:80\r\n\r\n":                                                             "request line",
		"CONNECT  x:80 HTTP/1.1\r\n\r\n":                                                   "version",
		"CONNECT x:80 HTTP/1.1\r\nA : b\r\n\r\n":                                           "field 1 is malformed",
		"CONNECT x:80 HTTP/1.1\r\nA: b\r\n folded\r\n\r\n":                                 "field 2 is malformed",
		"CONNECT x:80 HTTP/1.1\r\nA: b\rc\r\n\r\n":                                         "field 1 is malformed",
		"CONNECT x:80 HTTP/1.1\r\nA: b\x00\r\n\r\n":                                        "field 1 is malformed",
		"CONNECT x:80 HTTP/1.1\r\nnonsense\r\n\r\n":                                        "field 1 is malformed",
		"CONNECT x:80 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n":                              "stands twice",
		"CONNECT x:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello":                          "no body",
		"CONNECT x:80 HTTP/1.1\r\nContent-Length:\r\n\r\n":                                 "no body",
		"CONNECT x:80 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n":                 "no body",
		"CONNECT x:80 HTTP/1.1\r\n" + basic("a", "") + basic("b", "") + "\r\n":             "stands twice",
		"CONNECT x:80 HTTP/1.1\r\nProxy-Authorization: Basic !!\r\n\r\n":                   "Proxy-Authorization",
		"CONNECT x:80 HTTP/1.1\r\n" + basic("No_Agent", "") + "\r\n":                       "agent ID",
		"CONNECT x:80 HTTP/1.1\r\n" + basic("a/b/c", "") + "\r\n":                          "agent ID",
		"CONNECT x:80 HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 129) + "\r\n":             "more than 128",
		"CONNECT x:80 HTTP/1.1\r\nA: " + strings.Repeat("b", 70<<10) + "\r\n":              "larger than 65536",
		"CONNECT postern.internal:80 HTTP/1.1\r\n\r\n":                                     "names no target",
		"CONNECT lab.postern.internal:80 HTTP/1.1\r\n\r\n":                                 "names no target",
		"\x16\x03\x01\x02\x00\x01\x00\x01":                                                 "without TLS",
		"\x05\x01\x00":                                                                     "not a SOCKS proxy",
		"\x00\x01":                                                                         "not an HTTP request",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                                                "this is an HTTP proxy",
		"GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n":                                       "for CONNECT",
		"GET http://user:pw@x/ HTTP/1.1\r\nHost: x\r\n\r\n":                                "user name or password",
		"GET http://x:99999/ HTTP/1.1\r\nHost: x\r\n\r\n":                                  "port",
		"GET http:///y HTTP/1.1\r\nHost: x\r\n\r\n":                                        "HTTP proxy",
		"GET http://a..b/ HTTP/1.1\r\nHost: x\r\n\r\n":                                     "label",
		"GET http://x/ HTTP/1.1\r\nHost: x\r\n" + basic("a", "") + basic("b", "") + "\r\n": "stands twice",
		// net/http says these in its own words.
		"GET http://x/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n":                                 "400 Bad Request",
		"GET http://x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx": "400 Bad Request",
		"POST http://x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n":       "Unsupported transfer encoding",
		"POST http://x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n":            "400 Bad Request",
		"GET http://x/ HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 80<<10) + "\r\n\r\n":  "431",
	} {
		res, body := exchange(t, dialFront(t, h), request)
		if res.StatusCode/100 != 4 && res.StatusCode != http.StatusNotImplemented || !strings.Contains(body, want) {
			t.Errorf("%.60q: %d %q, want %q", request, res.StatusCode, body, want)
		}
	}
	if asked := o.opened(); len(asked) > 0 {
		t.Errorf("opened %v", asked)
	}
}

func TestNoDefaultAgent(t *testing.T) {
	t.Parallel()
	cfg := frontConfig(fails(nil))
	cfg.Router.Agent = ""
	res, body := exchange(t, dialFront(t, startHTTP(t, nil, cfg)), "CONNECT x:1 HTTP/1.1\r\n\r\n")
	if res.StatusCode != 400 || !strings.Contains(body, "which agent") || !strings.Contains(body, "x.AGENT.postern.internal") {
		t.Errorf("%d %q", res.StatusCode, body)
	}
}

func TestHeaderTimeout(t *testing.T) {
	t.Parallel()
	cfg := frontConfig(fails(nil))
	cfg.HeaderTimeout = 3 * time.Second // much more than it takes to send the beginning
	h := startHTTP(t, nil, cfg)
	silent := dialFront(t, h)
	res, _ := exchange(t, dialFront(t, h), "CONNECT x:1 HTTP/1.1\r\nA: ")
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a slow client got %d", res.StatusCode)
	}
	if b, err := io.ReadAll(silent); len(b) > 0 || err != nil {
		t.Errorf("a silent client got %q, %v", b, err)
	}
}

func TestParseLogin(t *testing.T) {
	t.Parallel()
	enc := base64.StdEncoding.EncodeToString
	for value, want := range map[string]Login{
		"Basic " + enc([]byte("a:b")):                            {"a", "b", true},
		"basic   " + enc([]byte("a:b:c")):                        {"a", "b:c", true},
		"BASIC " + enc([]byte(":")):                              {"", "", true},
		"Basic " + enc([]byte("ü:ß")):                            {"ü", "ß", true},
		"Basic " + strings.TrimRight(enc([]byte("abcd:e")), "="): {"abcd", "e", true},
		"Bearer abc": {},
		"Basic":      {},
		"":           {},
	} {
		got, f := parseLogin(value)
		if diff := cmp.Diff(want, got); diff != "" || f != nil {
			t.Errorf("%q: %s %v", value, diff, f)
		}
	}
	for _, value := range []string{"Basic !", "Basic " + enc([]byte("nocolon")), "Basic " + enc([]byte("a\x00:b")), "Basic " + enc([]byte("a:\n")),
		"Basic " + enc([]byte("\xff:b")), "Basic YTpi\tYTpi"} {
		if got, f := parseLogin(value); f == nil {
			t.Errorf("%q: %+v, want a failure", value, got)
		}
	}
}
