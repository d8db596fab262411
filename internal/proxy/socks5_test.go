package proxy

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	socks "golang.org/x/net/proxy"

	"postern.dev/postern/internal/wire"
)

const (
	greetNone     = "\x05\x01\x00"
	greetPassword = "\x05\x02\x00\x02"
	replyOK       = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

func socksName(name string, port uint16) string {
	return "\x05\x01\x00\x03" + string(rune(len(name))) + name + string([]byte{byte(port >> 8), byte(port)})
}

func socksLogin(user, password string) string {
	return "\x01" + string([]byte{byte(len(user))}) + user + string([]byte{byte(len(password))}) + password
}

func TestSOCKS5(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.Observer = rec
	s := startSOCKS(t, nil, cfg)
	for _, c := range []struct{ sent, answered, opened string }{
		{greetNone + socksName("db.internal", 5432), "\x05\x00" + replyOK, "default/edge tcp:db.internal:5432"},
		{greetNone + socksName("DB.", 80), "\x05\x00" + replyOK, "default/edge tcp:db:80"},
		{greetNone + socksName("10.1.2.3", 80), "\x05\x00" + replyOK, "default/edge tcp:10.1.2.3:80"},
		{greetNone + socksName("db.lab.postern.internal", 80), "\x05\x00" + replyOK, "default/lab tcp:db:80"},
		{greetNone + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", "\x05\x00" + replyOK, "default/edge tcp:10.0.0.1:80"},
		{greetNone + "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\xff\xff", "\x05\x00" + replyOK, "default/edge tcp:[2001:db8::1]:65535"},
		{greetNone + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01\x00\x50", "\x05\x00" + replyOK, "default/edge tcp:10.0.0.1:80"},
		{"\x05\x03\x01\x02\x00" + socksLogin("lab", "x") + socksName("db", 1), "\x05\x02\x01\x00" + replyOK, "default/lab tcp:db:1"},
		{greetPassword + socksLogin("acme/lab", "") + socksName("db", 1), "\x05\x02\x01\x00" + replyOK, "acme/lab tcp:db:1"},
		{greetPassword + socksLogin("", "") + socksName("db", 1), "\x05\x02\x01\x00" + replyOK, "default/edge tcp:db:1"},
	} {
		for _, piecewise := range []bool{false, true} {
			conn := dialFront(t, s)
			sent := c.sent + "early"
			if piecewise {
				for _, b := range []byte(sent) {
					send(t, conn, string([]byte{b}))
				}
			} else {
				send(t, conn, sent)
			}
			expect(t, conn, c.answered+"early")
			_ = conn.CloseWrite()
			if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
				t.Errorf("%q: at the end: %q, %v", c.sent, rest, err)
			}
			asked := o.opened()
			if got := asked[len(asked)-1]; got != c.opened {
				t.Errorf("%q opened %q, want %q", c.sent, got, c.opened)
			}
			if e := <-rec.closed; e.Stats != (Stats{5, 5}) || e.Front != FrontSOCKS5 {
				t.Errorf("%q: %+v", c.sent, e)
			}
		}
	}
}

func TestSOCKS5Failures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		failure *wire.Failure
		code    byte
	}{
		{wire.Fail(wire.LegPolicy, wire.CodeDenied, "t"), 2},
		{wire.Fail(wire.LegDNS, wire.CodeNameNotFound, "t"), 4},
		{wire.Fail(wire.LegDNS, wire.CodeNameFailed, "t"), 4},
		{wire.Fail(wire.LegDNS, wire.CodeTimeout, "t"), 4},
		{wire.Fail(wire.LegTCP, wire.CodeRefused, "t"), 5},
		{wire.Fail(wire.LegTCP, wire.CodeUnreachable, "t"), 3},
		{wire.Fail(wire.LegTCP, wire.CodeTimeout, "t"), 6},
		{wire.Fail(wire.LegAgent, wire.CodeNoAgent, "t"), 1},
		{wire.Fail(wire.LegRelay, wire.CodeInternal, "t"), 1},
	} {
		conn := dialFront(t, startSOCKS(t, nil, frontConfig(fails(c.failure))))
		send(t, conn, greetNone+socksName("db", 1)+strings.Repeat("early", 100))
		got, err := io.ReadAll(conn)
		if want := []byte{5, 0, 5, c.code, 0, 1, 0, 0, 0, 0, 0, 0}; !bytes.Equal(got, want) || err != nil {
			t.Errorf("%s: %x, %v; want %x", c.failure, got, err, want)
		}
	}
}

func TestSOCKS5Malformed(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	open := startSOCKS(t, nil, frontConfig(o))
	for sent, want := range map[string]string{
		"\x05\x00":                             "05ff",             // no methods
		"\x05\x01\x01":                         "05ff",             // GSSAPI only
		"\x04\x01\x00\x50\x0a\x00\x00\x01\x00": "005b000000000000", // SOCKS 4
		"\x06\x01\x00":                         "",                 // another version
		greetNone + "\x04\x01\x00\x03\x01a\x00\x01":   "050005010001000000000000", // another version in the request
		greetNone + "\x05\x01\x01\x03\x01a\x00\x01":   "050005010001000000000000", // the reserved byte
		greetNone + "\x05\x02\x00\x03\x01a\x00\x01":   "050005070001000000000000", // BIND
		greetNone + "\x05\x03\x00\x03\x01a\x00\x01":   "050005070001000000000000", // UDP ASSOCIATE
		greetNone + "\x05\x01\x00\x02\x01a\x00\x01":   "050005080001000000000000", // type of address
		greetNone + socksName("", 1):                  "050005010001000000000000",
		greetNone + socksName("a\x00b", 1):            "050005010001000000000000",
		greetNone + socksName("a b", 1):               "050005010001000000000000",
		greetNone + socksName("a..b", 1):              "050005010001000000000000",
		greetNone + socksName("127.1", 1):             "050005010001000000000000",
		greetNone + socksName("a", 0):                 "050005010001000000000000",
		greetNone + socksName("postern.internal", 1):  "050005010001000000000000",
		greetPassword + "\x02\x01a\x01b":              "05020101", // version of the login
		greetPassword + socksLogin("a\x00", "b"):      "05020101",
		greetPassword + socksLogin("Not_A_Name", "b"): "05020101",
		greetNone + "\x05\x01\x00\x03\x05ab":          "0500", // and no more
		"\x05":                                        "",
	} {
		conn := dialFront(t, open)
		send(t, conn, sent)
		_ = conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if hex.EncodeToString(got) != want || err != nil {
			t.Errorf("%q: %x, %v; want %s", sent, got, err, want)
		}
	}
	if asked := o.opened(); len(asked) > 0 {
		t.Errorf("opened %v", asked)
	}
	res, body := exchange(t, dialFront(t, open), "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != 400 || !strings.Contains(body, "SOCKS 5") {
		t.Errorf("HTTP got %d %q", res.StatusCode, body)
	}
}

func TestSOCKS5Login(t *testing.T) {
	t.Parallel()
	users, err := ParseUsers("alice:secret\n")
	if err != nil {
		t.Fatal(err)
	}
	access, err := NewAccess(AccessConfig{Users: users})
	if err != nil {
		t.Fatal(err)
	}
	o := &fakeOpener{dial: serveTarget(t, echo)}
	s := startSOCKS(t, access, frontConfig(o))
	for sent, want := range map[string]string{
		greetNone: "05ff",
		greetPassword + socksLogin("alice", "wrong"):                       "05020101",
		greetPassword + socksLogin("bob", "secret"):                        "05020101",
		greetPassword + socksLogin("", ""):                                 "05020101",
		greetPassword + socksLogin("alice", "secret") + socksName("db", 1): "05020100" + hex.EncodeToString([]byte(replyOK)),
	} {
		conn := dialFront(t, s)
		send(t, conn, sent)
		_ = conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if hex.EncodeToString(got) != want || err != nil {
			t.Errorf("%q: %x, %v; want %s", sent, got, err, want)
		}
	}
	if diff := cmp.Diff([]string{"default/edge tcp:db:1"}, o.opened()); diff != "" {
		t.Error(diff)
	}
}

// TestSOCKS5Client goes through somebody else's client.
func TestSOCKS5Client(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	s := startSOCKS(t, nil, frontConfig(o))
	d, err := socks.SOCKS5("tcp", s.Addr().String(), &socks.Auth{User: "lab", Password: "x"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := d.(socks.ContextDialer).DialContext(t.Context(), "tcp", "[2001:db8::1]:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send(t, conn, "hello")
	expect(t, conn, "hello")
	if diff := cmp.Diff([]string{"default/lab tcp:[2001:db8::1]:443"}, o.opened()); diff != "" {
		t.Error(diff)
	}
}

// FuzzSOCKS5 checks that no negotiation makes the front end panic, hang, or
// open what is not a valid target.
func FuzzSOCKS5(f *testing.F) {
	f.Add([]byte(greetNone + socksName("db", 1)))
	f.Add([]byte(greetPassword + socksLogin("a", "b") + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"))
	f.Add([]byte(greetNone + "\x05\x01\x00\x04" + strings.Repeat("\x01", 18)))
	f.Fuzz(func(t *testing.T, sent []byte) {
		pool := newPreludePool()
		conn := &scripted{in: bytes.NewReader(sent)}
		p := newPrelude(conn, pool)
		defer p.release()
		s := &SOCKS5{Server: &Server{}}
		if _, err := s.negotiate(p); err != nil {
			return
		}
		host, port, err := s.request(p)
		if err != nil {
			return
		}
		if target, err := wire.TCP(host, port); err != nil || target.Host != host {
			t.Fatalf("accepted %q:%d: %v, %v", host, port, target, err)
		}
	})
}

// scripted is a client that has said all that it will say.
type scripted struct {
	net.Conn
	in io.Reader
}

func (s *scripted) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return len(b), nil }
