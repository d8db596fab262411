package uplink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/wire"
)

func TestChooseProxy(t *testing.T) {
	for _, c := range []struct {
		name, explicit, want string
		env                  map[string]string
	}{
		{name: "none"},
		{name: "explicit", explicit: "http://p:1", env: map[string]string{"AGENT_PROXY": "http://q:2"}, want: "http://p:1"},
		{name: "agent first", env: map[string]string{"AGENT_PROXY": "http://q:2", "HTTPS_PROXY": "http://r:3", "NO_PROXY": "*"}, want: "http://q:2"},
		{name: "https", env: map[string]string{"HTTPS_PROXY": "https://r"}, want: "https://r:443"},
		{name: "lower case", env: map[string]string{"https_proxy": "r:3"}, want: "http://r:3"},
		{name: "default port", env: map[string]string{"https_proxy": "http://r"}, want: "http://r:80"},
		{name: "no_proxy", env: map[string]string{"HTTPS_PROXY": "http://r:3", "no_proxy": ".example.com"}},
		{name: "no_proxy other", env: map[string]string{"HTTPS_PROXY": "http://r:3", "NO_PROXY": "example.org"}, want: "http://r:3"},
		{name: "http ignored", env: map[string]string{"HTTP_PROXY": "http://r:3"}},
		{name: "IPv6", explicit: "http://u:p@[::1]:3128", want: "http://[::1]:3128"},
	} {
		d, err := New(Config{ConnectURL: "tls://hub.example.com", ProxyURL: c.explicit, Getenv: env(c.env)})
		if err != nil || d.Proxy() != c.want {
			t.Errorf("%s: %v, %v; want %q", c.name, d.Proxy(), err, c.want)
		}
	}
}

func TestBadProxyURL(t *testing.T) {
	for in, want := range map[string]string{
		"socks5://u:secret@p:1":      `scheme "socks5"`,
		"http://u:secret@":           "no usable host",
		"http://u:secret@p:99999999": "",
		"http://u%3Ax:secret@p":      "no colon",
		"http://u:sec ret@p\x00":     "does not parse",
		"http://[u:secret@p":         "does not parse",
	} {
		for _, name := range []string{"HTTPS_PROXY", "AGENT_PROXY"} {
			_, err := New(Config{ConnectURL: "tls://hub.example.com", Getenv: env(map[string]string{name: in})})
			if want == "" {
				continue
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s=%q: %v; want %q", name, in, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("password shown: %v", err)
			}
		}
	}
}

// proxyThat listens and answers one connection with answer, after it has read a
// request, and returns the request's bytes. A nil answer sends nothing.
func proxyThat(t *testing.T, answer func(conn net.Conn)) (addr string, request <-chan *http.Request) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan *http.Request, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err == nil {
			ch <- req
		}
		answer(conn)
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String(), ch
}

func say(s string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, s) }
}

func TestTunnelLosesNoByte(t *testing.T) {
	addr, request := proxyThat(t, say("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 Connection established\r\nX-A: b\r\nContent-Length: 3\r\n\r\nfirst bytes"))
	d, err := New(Config{ConnectURL: "tls://[2001:db8::7]", ProxyURL: "http://us%20er:pa%3Ass@" + addr, Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := d.DialRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("connection is a %T", conn)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "first bytes" {
		t.Errorf("tunnelled %q, %v", got, err)
	}
	req := <-request
	if req.Method != "CONNECT" || req.Host != "[2001:db8::7]:4222" || req.Header.Get("Proxy-Authorization") != "Basic dXMgZXI6cGE6c3M=" {
		t.Errorf("request %s %s %q", req.Method, req.Host, req.Header)
	}
}

func TestProxyFailures(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		code         wire.Code
		want         string
		user         string
	}{
		{"no login", "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", wire.CodeUnauthenticated, "http://USER:PASSWORD@", ""},
		{"bad login", "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", wire.CodeUnauthenticated, "does not accept", "u:secret@"},
		{"other login", "HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\n\r\n", wire.CodeUnauthenticated, "other than Basic", ""},
		{"forbidden", "HTTP/1.0 403 No\r\n\r\nbody", wire.CodeDenied, "allow CONNECT to hub.example.com:4222", ""},
		{"bad gateway", "HTTP/1.1 502 Bad\r\n\r\n", wire.CodeUnreachable, "cannot reach", ""},
		{"time-out", "HTTP/1.1 504 Late\r\n\r\n", wire.CodeTimeout, "cannot reach", ""},
		{"web server", "HTTP/1.1 400 Bad Request\r\n\r\n", wire.CodeProtocol, "allows CONNECT", ""},
		{"upgrade", "HTTP/1.1 101 Switching\r\n\r\n", wire.CodeProtocol, "101", ""},
		{"tls", "\x15\x03\x01\x00\x02\x02\x46", wire.CodeProtocol, "https://", ""},
		{"ssh", "SSH-2.0-x\r\n", wire.CodeProtocol, "does not speak HTTP", ""},
		{"bad status", "HTTP/1.1 abc\r\n\r\n", wire.CodeProtocol, "does not speak HTTP", ""},
		{"closed", "", wire.CodeReset, "closed the connection", ""},
		{"half", "HTTP/1.1 200 OK\r\n", wire.CodeReset, "closed the connection", ""},
		{"long", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", maxProxyHeader) + "\r\n\r\n", wire.CodeProtocol, "too long", ""},
		{"endless", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 9), wire.CodeProtocol, "does not speak HTTP", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr, _ := proxyThat(t, say(c.answer))
			d, err := New(Config{ConnectURL: "tls://hub.example.com", ProxyURL: "http://" + c.user + addr, Getenv: noEnv})
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.DialRaw(t.Context())
			wantFailure(t, err, wire.LegRelay, c.code, c.want)
		})
	}
}

func wantFailure(t *testing.T, err error, leg wire.Leg, code wire.Code, text string) {
	t.Helper()
	var f *wire.Failure
	if !errors.As(err, &f) {
		t.Fatalf("error %v is no failure", err)
	}
	if f.Leg != leg || f.Code != code || !strings.Contains(f.Error(), text) {
		t.Errorf("got %s %s %q; want %s %s with %q", f.Leg, f.Code, f.Error(), leg, code, text)
	}
	if strings.Contains(f.Error(), "secret") {
		t.Errorf("failure shows a password: %v", f)
	}
}

func TestTunnelGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr, _ := proxyThat(t, func(c net.Conn) { cancel(); _, _ = io.Copy(io.Discard, c) })
	d, err := New(Config{ConnectURL: "tls://hub.example.com", ProxyURL: "http://" + addr, Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.DialRaw(ctx)
	wantFailure(t, err, wire.LegRelay, wire.CodeCanceled, "")
}

func TestHTTPSProxy(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nto "+r.Host)
		conn.Close()
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{ConnectURL: "https://hub.example.com", ProxyURL: srv.URL, ProxyCAFile: file, Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := d.DialRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "to hub.example.com:443" {
		t.Errorf("read %q, %v", got, err)
	}

	d, _ = New(Config{ConnectURL: "https://hub.example.com", ProxyURL: srv.URL, Getenv: noEnv})
	_, err = d.DialRaw(t.Context())
	wantFailure(t, err, wire.LegRelay, wire.CodeWrongPeer, "--proxy-ca-file")

	addr, _ := proxyThat(t, say("HTTP/1.1 400 Bad Request\r\n\r\n"))
	d, _ = New(Config{ConnectURL: "https://hub.example.com", ProxyURL: "https://" + addr, Getenv: noEnv})
	_, err = d.DialRaw(t.Context())
	wantFailure(t, err, wire.LegRelay, wire.CodeProtocol, "http://"+addr)
}

func FuzzReadConnectResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nrest"))
	f.Add([]byte("HTTP/1.1 100 C\r\n\r\nHTTP/1.0 200 OK\n\nrest"))
	f.Add([]byte("\x16\x03\x01"))
	f.Add([]byte("HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		_, err := readConnectResponse(r)
		if err != nil {
			return
		}
		used := data[:len(data)-r.Len()]
		if !bytes.HasSuffix(used, []byte("\n\n")) && !bytes.HasSuffix(used, []byte("\r\n\r\n")) {
			t.Fatalf("read to %q, which is no header's end", used)
		}
	})
}
