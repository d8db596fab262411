package proxy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"postern.dev/postern/internal/wire"
)

// FuzzConnect reads a header block beside net/http: what we accept, it has to
// read as the same request.
func FuzzConnect(f *testing.F) {
	for _, s := range []string{
		"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n",
		"CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\nProxy-Authorization: Basic YTpi\nContent-Length: 0\n\n",
		"CONNECT a:1 HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	pool := newPreludePool()
	f.Fuzz(func(t *testing.T, sent []byte) {
		p := newPrelude(&scripted{in: bytes.NewReader(sent)}, pool)
		defer p.release()
		head, err := p.head(maxHeader)
		if err != nil {
			return
		}
		if all := head + string(p.rest()); !bytes.HasPrefix(sent, []byte(all)) {
			t.Fatalf("bytes were lost or made up: %q of %q", all, sent)
		}
		req, failure := parseConnect(head)
		if failure != nil {
			return
		}
		std, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			if _, _, routeErr := (Router{Agent: "a"}).Route(AgentRef{}, req.host, req.port); routeErr == nil {
				t.Fatalf("net/http refuses %q: %v", head, err)
			}
			return // the router would, too
		}
		host, port, failure := parseAuthority(std.RequestURI)
		if failure != nil || host != req.host || port != req.port || std.Method != http.MethodConnect || std.ContentLength != 0 {
			t.Fatalf("%q: we read %q %d, net/http %s %q %d", head, req.host, req.port, std.Method, std.RequestURI, std.ContentLength)
		}
		if values := std.Header.Values("Proxy-Authorization"); len(values) == 1 {
			if l, _ := parseLogin(values[0]); l != req.login {
				t.Fatalf("%q: logins differ", head)
			}
		} else if req.login.Given {
			t.Fatalf("%q: a login that net/http does not see", head)
		}
	})
}

// FuzzLogin checks that a login is read as it was written.
func FuzzLogin(f *testing.F) {
	f.Add("Basic YTpi")
	f.Add("basic " + base64.StdEncoding.EncodeToString([]byte("org/agent:to:ken")))
	f.Add("Bearer x")
	f.Fuzz(func(t *testing.T, value string) {
		l, failure := parseLogin(value)
		if failure != nil || !l.Given {
			if l != (Login{}) {
				t.Fatalf("%q: refused, and yet %+v", value, l)
			}
			return
		}
		if strings.Contains(l.User, ":") || strings.ContainsAny(l.User+l.Password, "\x00\r\n") {
			t.Fatalf("%q: %+v", value, l)
		}
		again, failure := parseLogin("Basic " + base64.StdEncoding.EncodeToString([]byte(l.User+":"+l.Password)))
		if failure != nil || again != l {
			t.Fatalf("%q: %+v, then %+v", value, l, again)
		}
	})
}

// FuzzRoute checks that whatever a client names, only valid targets and agents
// come out.
func FuzzRoute(f *testing.F) {
	f.Add("acme/lab", "db.lab.postern.internal", uint16(1))
	f.Add("lab", "10.0.0.1", uint16(1))
	r := Router{Suffix: "postern.internal", Organization: "default", Agent: "edge", Organizations: true}
	f.Fuzz(func(t *testing.T, user, host string, port uint16) {
		choice, err := r.User(user)
		if err != nil {
			return
		}
		ref, target, err := r.Route(choice, host, port)
		if err != nil {
			return
		}
		if again, err := wire.ParseTarget(target.String()); err != nil || again != target {
			t.Fatalf("%q %q: %v, %v", user, host, target, err)
		}
		if back, err := r.User(ref.String()); err != nil || back != ref || ref.Organization != choice.Organization {
			t.Fatalf("%q %q: %v, %v", user, host, ref, err)
		}
	})
}

// FuzzUsers checks that no credentials file makes a user without a password.
func FuzzUsers(f *testing.F) {
	f.Add("alice:secret\n*:x agent=lab\n# no\n")
	f.Add("lab:a agent=lab as=x/y\nlab:b agent=acme/lab\n")
	f.Add("bob:$2y$05$abcdefghijklmnopqrstuuJ0J0J0J0J0J0J0J0J0J0J0J0J0J0J0J0")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "$2") {
			return // a hash of high cost takes its time
		}
		users, bad, err := parseUsers(text)
		if err != nil {
			return
		}
		if _, err := ParseUsers(text); (err == nil) != (len(bad) == 0) {
			t.Fatalf("%q: %v, but %v", text, err, bad)
		}
		for name, all := range users.entries {
			for _, e := range all {
				if ok, err := e.matches(t.Context(), make(chan struct{}, 1), ""); ok || err != nil || name == "" {
					t.Fatalf("user %q of %q: an empty password passes", name, text)
				}
				if len(all) > 1 && e.agent == "" {
					t.Fatalf("user %q of %q: one of several lines is good for every agent", name, text)
				}
			}
		}
	})
}
