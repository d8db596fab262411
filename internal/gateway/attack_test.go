package gateway

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"crypto/tls"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/kubeauth"
)

// identityFields are fields in which somebody might be named, in the spellings that
// some server takes for them.
func identityFields() []string {
	return []string{
		"Impersonate-User", "impersonate_user", "Impersonate-Group", "Impersonate-Extra-Scopes", "Impersonate_Group", "X-Remote-User", "X_Remote_User",
		"X-Remote-Group", "X-Remote-Extra-A", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "X-Real-Ip",
		"Cookie", "Proxy-Authorization", "Postern-Principal", "postern-Assertion", "Postern_Assertion",
	}
}

// TestAttackIdentityFields: nothing that a caller writes into a request speaks for
// somebody at the agent.
func TestAttackIdentityFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := make(chan http.Header, 1)
	w.set(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	conn, in := w.raw()
	for _, connection := range []string{"keep-alive", "Authorization", "Postern-Assertion, keep-alive", "Impersonate-User, X-Remote-User"} {
		text := "GET /plant/api HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer token-of-ann\r\nConnection: " + connection + "\r\n"
		for _, field := range identityFields() {
			text += field + ": system:admin\r\n"
		}
		if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		h := <-got
		if len(h[assertion.Header]) != 1 {
			t.Errorf("with Connection %s: %d assertions", connection, len(h[assertion.Header]))
		}
		h.Del(assertion.Header)
		for field, values := range h {
			if slices.Contains(values, "system:admin") || field == "Authorization" {
				t.Errorf("with Connection %s: %s: %q got there", connection, field, values)
			}
		}
		// A wish that Connection names is a wish all the same.
		if as := w.last().As; as.User != "system:admin" || w.last().Impersonate.User != "ann" {
			t.Errorf("with Connection %s: %+v", connection, w.last())
		}
	}
}

// TestAttackSmuggling: what two servers might read as one request or as two is refused,
// and never reaches the agent as two.
func TestAttackSmuggling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(rw, r.RequestURI)
	})
	const (
		head   = "POST /plant/first HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer token-of-ann\r\n"
		second = "GET /second HTTP/1.1\r\nHost: hub\r\nPostern-Assertion: x\r\n\r\n"
	)
	tests := map[string]string{
		"CL.TE":              head + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", 5+len(second), second),
		"TE.CL":              head + fmt.Sprintf("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(second), second),
		"two lengths":        head + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + second,
		"list of lengths":    head + "Content-Length: 0, 44\r\n\r\n" + second,
		"length with sign":   head + "Content-Length: +0\r\n\r\n" + second,
		"TE with a space":    head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + second,
		"TE twice":           head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + second,
		"TE unknown":         head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + second,
		"TE with a tab":      head + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + second,
		"folded":             head + "X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + second,
		"bare newline":       head + "X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + second,
		"chunk size":         head + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + second,
		"long chunk":         head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n\r\n" + second,
		"null in a value":    head + "X-A: a\x00b\r\nContent-Length: 0\r\n\r\n" + second,
		"space in the path":  strings.Replace(head, "/plant/first", "/plant/first HTTP/1.1\r\nX: ", 1) + "\r\n" + second,
		"authority and host": strings.Replace(head, "/plant/first", "http://plant/plant/first", 1) + "\r\n" + second,
	}
	for name, text := range tests {
		conn, in := w.raw()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWrite()
		for { // all answers until the end
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				break
			}
			body, _ := io.ReadAll(res.Body)
			if strings.Contains(string(body), "/second") && res.StatusCode == 200 {
				t.Errorf("%s: the second request reached the agent", name)
			}
		}
		_ = conn.Close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, claims := range w.seen {
		if claims.URI != "/first" {
			t.Errorf("the agent was told of %s %s", claims.Method, claims.URI)
		}
	}
}

// TestAttackHTTP2: what HTTP/2 can write and HTTP/1.1 cannot goes nowhere.
func TestAttackHTTP2(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	base := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "hub"}, {":path", "/plant/first"}, {"authorization", "Bearer token-of-ann"}}
	attempts := map[string][][2]string{
		"newline in a value":    append(slices.Clone(base), [2]string{"x-a", "b\r\nPostern-Assertion: x"}),
		"newline in the path":   {{":method", "GET"}, {":scheme", "https"}, {":authority", "hub"}, {":path", "/plant/first HTTP/1.1\r\nX: y"}, {"authorization", "Bearer token-of-ann"}},
		"newline in the method": {{":method", "GET /plant/second HTTP/1.1\r\nX:"}, {":scheme", "https"}, {":authority", "hub"}, {":path", "/plant/first"}, {"authorization", "Bearer token-of-ann"}},
		"transfer-encoding":     append(slices.Clone(base), [2]string{"transfer-encoding", "chunked"}),
		"connection":            append(slices.Clone(base), [2]string{"connection", "postern-assertion"}),
		"colon in a name":       append(slices.Clone(base), [2]string{"x:y", "z"}),
		"capitals":              append(slices.Clone(base), [2]string{"Impersonate-User", "root"}),
		"no path":               {{":method", "GET"}, {":scheme", "https"}, {":authority", "hub"}, {":path", "plant/first"}, {"authorization", "Bearer token-of-ann"}},
		"tunnel":                {{":method", "CONNECT"}, {":authority", "plant:443"}, {"authorization", "Bearer token-of-ann"}},
		"protocol":              append(slices.Clone(base), [2]string{":protocol", "websocket"}),
	}
	for name, fields := range attempts {
		if status := h2Request(t, w.addr, fields); status == "200" {
			t.Errorf("%s: it was answered", name)
		}
	}
	if status := h2Request(t, w.addr, base); status != "200" {
		t.Errorf("a plain request: %s", status)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) != 1 {
		t.Errorf("the agent got %d requests", len(w.seen))
	}
}

// h2Request sends the header of a request as it stands there, and returns the status of
// the answer, or what came in its place.
func h2Request(t *testing.T, addr string, fields [][2]string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return f.ErrCode.String()
		case *http2.GoAwayFrame:
			return f.ErrCode.String()
		}
		if err != nil {
			return err.Error()
		}
	}
}

// TestAttackForms: the gateway is no proxy, whatever form a request has.
func TestAttackForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const token = "\r\nHost: hub\r\nAuthorization: Bearer token-of-ann\r\n\r\n"
	for _, line := range []string{
		"CONNECT plant:443 HTTP/1.1", "CONNECT /plant/api HTTP/1.1", "GET http://169.254.169.254/plant/api HTTP/1.1", "GET //plant/api HTTP/1.1",
		"GET /plant/../other/api HTTP/1.1", "GET /plant/..%2fother HTTP/1.1", "GET /plant/%2e%2e/other HTTP/1.1", "GET /plant/..;/other HTTP/1.1", "GET /plant%2fapi HTTP/1.1",
		"GET /plant\\api HTTP/1.1", "GET /plant/a\\..\\b HTTP/1.1", "GET /plant/%00 HTTP/1.1", "GET /acme:plant:x/ HTTP/1.1", "GET /plant@evil/ HTTP/1.1",
	} {
		conn, in := w.raw()
		_, _ = io.WriteString(conn, line+token)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			continue // closed is an answer too
		}
		if res.StatusCode < 400 {
			t.Errorf("%s: %s", line, res.Status)
		}
		_ = res.Body.Close()
		_ = conn.Close()
	}
	if len(w.seen) != 0 {
		t.Errorf("the agent was told of %+v", w.seen)
	}
}

// TestAttackWebSocketToken: a token in a subprotocol is good, and stays at the hub.
func TestAttackWebSocketToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := make(chan http.Header, 1)
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		got <- r.Header
		rw.WriteHeader(http.StatusBadRequest)
	})
	send := func(protocols string, fields ...string) (int, http.Header) {
		conn, in := w.raw()
		_, _ = io.WriteString(conn, "GET /plant/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Protocol: "+protocols+"\r\n"+strings.Join(append(fields, ""), "\r\n")+"\r\n")
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			return res.StatusCode, nil
		}
		return res.StatusCode, <-got
	}
	bearer := kubeauth.BearerProtocol + base64.RawURLEncoding.EncodeToString([]byte("token-of-ann"))
	code, h := send("v5.channel.k8s.io, " + bearer + ", v4.channel.k8s.io")
	if code != 400 || h.Get("Sec-WebSocket-Protocol") != "v5.channel.k8s.io, v4.channel.k8s.io" || w.last().Impersonate.User != "ann" {
		t.Errorf("%d, %v, %+v", code, h, w.last())
	}
	// With another credential beside it, the token goes nowhere either.
	code, h = send(bearer+", v5.channel.k8s.io", "Authorization: Bearer token-of-bob")
	if code != 400 || h.Get("Sec-WebSocket-Protocol") != "v5.channel.k8s.io" || w.last().Impersonate.User != "bob" {
		t.Errorf("%d, %v, %+v", code, h, w.last())
	}
	for _, protocols := range []string{kubeauth.BearerProtocol + "!!", kubeauth.BearerProtocol, kubeauth.BearerProtocol + base64.RawURLEncoding.EncodeToString([]byte("\xff\xfe")), "v5.channel.k8s.io"} {
		if code, _ := send(protocols); code != 401 {
			t.Errorf("%s: %d", protocols, code)
		}
	}
	r := w.request("", "GET", "/plant/api", nil) // no upgrade
	r.Header.Set("Sec-WebSocket-Protocol", bearer)
	if res, _ := w.do(r); res.StatusCode != 401 {
		t.Errorf("without an upgrade: %s", res.Status)
	}
}

// TestAttackLyingAgent: whatever an agent answers, the client gets a proper answer or
// none, and nothing that acts on the hub's own site.
func TestAttackLyingAgent(t *testing.T) {
	t.Parallel()
	answers := map[string]struct {
		raw  string
		want int // 0: any failure
	}{
		"garbage":             {"SSH-2.0-x\r\n\r\n", 502},
		"unasked upgrade":     {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502},
		"upgrade to nothing":  {"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502},
		"huge header":         {"HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 2*maxFields) + "\r\n\r\n", 502},
		"two lengths":         {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502},
		"endless hints":       {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX-A: "+strings.Repeat("b", 1000)+"\r\n\r\n", 2000), 0},
		"cookies":             {"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nStrict-Transport-Security: max-age=1\r\nAlt-Svc: h2=\"evil:443\"\r\nClear-Site-Data: \"*\"\r\nService-Worker-Allowed: /\r\nContent-Length: 2\r\n\r\nok", 200},
		"own words":           {"HTTP/1.1 200 OK\r\nPostern-Leg: x\r\nContent-Security-Policy: default-src *\r\nContent-Length: 2\r\n\r\nok", 200},
		"closes":              {"", 502},
		"short body":          {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", 0},
		"answers twice":       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200},
		"bad field":           {"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 2\r\n\r\nok", 200},
		"newline in a status": {"HTTP/1.1 200 OK\rX\r\nContent-Length: 2\r\n\r\nok", 0},
	}
	for name, a := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.set(func(rw http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(rw).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(conn, a.raw)
				_ = conn.Close()
			})
			for range 2 {
				// One without a body: such a request is sent again where a kept connection was closed.
				res, err := w.client.Do(w.request("ann", "GET", "/plant/api", nil))
				if err != nil {
					if a.want != 0 {
						t.Error(err)
					}
					return
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				switch {
				case a.want == 0 && err == nil && res.StatusCode < 500 && name != "newline in a status":
					t.Errorf("%s %.100q", res.Status, body)
				case a.want == 200 && string(body) != "ok", a.want != 0 && res.StatusCode != a.want:
					t.Errorf("%s %.300q, %v", res.Status, body, err)
				case a.want == 502:
					statusIn(t, string(body))
				}
				for _, field := range []string{"Set-Cookie", "Strict-Transport-Security", "Alt-Svc", "Clear-Site-Data", "Service-Worker-Allowed", "Postern-Leg"} {
					if v := res.Header.Get(field); v != "" {
						t.Errorf("%s: %s", field, v)
					}
				}
				if res.StatusCode == 200 && !slices.Contains(res.Header.Values("Content-Security-Policy"), "sandbox") {
					t.Errorf("%v", res.Header)
				}
			}
		})
	}
}

// TestAttackSlowStrangers: whoever has not proved who he is cannot hold a connection
// with a body that never ends.
func TestAttackSlowStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Failed = nil })
	const strangers = 30
	conns := make([]net.Conn, strangers)
	readers := make([]*bufio.Reader, strangers)
	for i := range conns {
		conns[i], readers[i] = w.raw()
		_, _ = io.WriteString(conns[i], "POST /plant/api HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000000\r\n\r\nx")
	}
	for i := range conns {
		res, err := http.ReadResponse(readers[i], nil)
		if err != nil || res.StatusCode != 401 || !res.Close {
			t.Fatalf("%v, %v", res, err)
		}
	}
	for i := range conns { // each is closed, though nobody sends the rest
		if _, err := io.Copy(io.Discard, readers[i]); err != nil && strings.Contains(err.Error(), "i/o timeout") {
			t.Fatal("a stranger's connection stays open")
		}
	}
	if res, _ := w.do(w.request("ann", "GET", "/plant/api", nil)); res.StatusCode != 200 {
		t.Errorf("meanwhile: %s", res.Status)
	}
}

// FuzzWish: whatever fields a request has, a wish is bounded, and nobody's is none.
func FuzzWish(f *testing.F) {
	f.Add("Impersonate-User", "a", "Impersonate-Extra-%2f", "b")
	f.Add("Impersonate-Group", "", "Impersonate-Uid", "\xff")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		h := http.Header{}
		h.Add(k1, v1)
		h.Add(k2, v2)
		i, err := wish(h)
		if err != nil {
			return
		}
		if i.User == "" && !i.IsZero() || len(i.Groups)+len(i.Extra) > maxWishes || len(i.User) > maxWish || len(i.UID) > maxWish {
			t.Fatalf("%v wishes for %+v", h, i)
		}
	})
}
