package attack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/wire"
)

// inside are ways to write addresses that mean the agent's own machine, what is around
// it, or the metadata service of its cloud.
func inside() []string {
	return []string{
		"127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "127.0.0.1.", "127.000.000.001", "2130706433", "0x7f000001", "0x7f.1", "0x7F.0x0.0x0.0x1",
		"0177.0.0.1", "0177.1", "017700000001", "00000127.1", "127.0.0.1%00.example.org", "127。0。0。1", "①②⑦.0.0.1",
		"0.0.0.0", "0", "0.0.0.1", "255.255.255.255", "224.0.0.1", "169.254.169.254", "169.254.170.2", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376",
		"100.100.100.200", "168.63.129.16", "192.0.0.192",
		"::1", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
		"2001:0:4136:e378:8000:63bf:80ff:fffe", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::a9fe:a9fe", "fe80::1%eth0", "::1%lo", "ff02::1",
		"localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost", "ip6-loopback",
	}
}

// TestAttackTargetsInside asks, over HTTP and SOCKS5, for what stands behind an agent
// that may reach every ordinary address. No server on loopback is visited.
func TestAttackTargetsInside(t *testing.T) {
	w := newWorld(t)
	named, secret := serve(t, echo("named")), serve(t, echo("secret"))
	w.agent(acme, w.url(), "tcp:*:*", "tcp:"+named.addr)
	near := w.proxy(acme)
	eventually(t, func() error { _, err := visit(near.http, named.addr); return err })
	if code := socks(t, near.socks, socksRequest("127.0.0.1", named.port())); code != 0 {
		t.Fatalf("SOCKS5 answers %d", code)
	}
	port := fmt.Sprint(secret.port())
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for _, host := range inside() {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			authority := net.JoinHostPort(host, port)
			if c, head, err := connect(near.http, authority); err == nil {
				_ = c.Close()
				t.Errorf("CONNECT %s: %q", authority, head)
			} else if !strings.Contains(head, " 403 ") && !strings.Contains(head, " 400 ") && !strings.Contains(head, " 502 ") && !strings.Contains(head, " 504 ") {
				t.Errorf("CONNECT %s: %q", authority, head)
			}
			for _, host := range []string{host, host + ".edge.postern.internal"} {
				url := "http://" + net.JoinHostPort(host, port) + "/"
				if strings.Contains(raw(t, near.http, "GET "+url+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "secret") {
					t.Errorf("GET %s is answered", url)
				}
			}
			if code := socks(t, near.socks, socksRequest(host, secret.port())); code == 0 {
				t.Errorf("SOCKS5 connects to the name %s", host)
			}
			if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
				if code := socks(t, near.socks, socksAddress(a, secret.port())); code == 0 {
					t.Errorf("SOCKS5 connects to the address %s", host)
				}
			}
		})
	}
	wg.Wait()
	if n := secret.visits.Load(); n != 0 {
		t.Errorf("the server on loopback was visited %d times", n)
	}
}

// resolver is a DNS server of the attacker's: it answers each question in turn from a
// list, and with the last for ever.
type resolver struct {
	mu      sync.Mutex
	answers [][]string
	asked   int
}

func (r *resolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.answers[min(r.asked, len(r.answers)-1)]
	r.asked++
	var out []netip.Addr
	for _, text := range list {
		out = append(out, netip.MustParseAddr(text))
	}
	return out, nil
}

// TestAttackNamesThatLeadInside has DNS give an allowed name to addresses inside: at
// once, among good ones, in other notations, and between the check and the dial.
func TestAttackNamesThatLeadInside(t *testing.T) {
	rules := []string{"tcp:*:443", "tcp:*.example.org:443", "tcp:db.example.org:443", "tcp:0.0.0.0/0:443", "tcp:[::/0]:443"}
	for _, rule := range rules {
		parsed, err := policy.ParseRule(rule)
		if err != nil {
			t.Fatal(err)
		}
		p := policy.New([]policy.Rule{parsed}, nil)
		dial := func(answers ...[]string) (dialled []string, asked int, err error) {
			r := &resolver{answers: answers}
			var mu sync.Mutex
			d := &reach.Dialer{
				Policy: func() *policy.Policy { return p }, Resolver: r, Timeout: 5 * time.Second,
				Connect: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
					mu.Lock()
					defer mu.Unlock()
					dialled = append(dialled, a.String())
					near, far := net.Pipe()
					_ = far.Close()
					return near, nil
				},
			}
			target, err := wire.ParseTarget("tcp:db.example.org:443")
			if err != nil {
				t.Fatal(err)
			}
			c, err := d.Dial(t.Context(), target)
			if err == nil {
				_ = c.Close()
			}
			return dialled, r.asked, err
		}
		v6 := strings.Contains(rule, "::")
		good := "192.0.2.7"
		if v6 {
			good = "2001:db8::7"
		}
		want := netip.AddrPortFrom(netip.MustParseAddr(good), 443).String()
		if dialled, _, err := dial([]string{good}); err != nil || len(dialled) != 1 || dialled[0] != want {
			t.Fatalf("rule %s: an honest answer: %v, %v", rule, dialled, err)
		}
		for _, text := range inside() {
			if _, err := netip.ParseAddr(text); err != nil {
				continue // DNS knows no other notations
			}
			if dialled, _, err := dial([]string{text}); codeOf(err) != wire.CodeDenied || len(dialled) > 0 {
				t.Errorf("rule %s: the name leads to %s: dialled %v, %v", rule, text, dialled, err)
			}
			// Of many addresses the good one only.
			if dialled, _, err := dial([]string{text, good, text}); err != nil || len(dialled) != 1 || dialled[0] != want {
				t.Errorf("rule %s: the name leads to %s too: dialled %v, %v", rule, text, dialled, err)
			}
			// The first answer is good, every later one is not: there is no later one.
			if dialled, asked, err := dial([]string{good}, []string{text}); err != nil || asked != 1 || len(dialled) != 1 || dialled[0] != want {
				t.Errorf("rule %s: the answer changes to %s: asked %d times, dialled %v, %v", rule, text, asked, dialled, err)
			}
		}
	}
}

// TestAttackNamesOfTheAPIServer has DNS give the API server's name to addresses inside.
func TestAttackNamesOfTheAPIServer(t *testing.T) {
	rule, err := policy.ParseRule("kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	p := policy.New([]policy.Rule{rule}, &policy.KubernetesAPI{Host: "api.cluster.example", Port: 6443})
	for _, target := range []string{"kubernetes", "tcp:kubernetes:443", "tcp:kubernetes.default.svc:443", "tcp:api.cluster.example:6443"} {
		to, err := wire.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		for answer, want := range map[string]bool{"192.0.2.7": true, "127.0.0.1": false, "169.254.169.254": false, "::1": false, "::ffff:127.0.0.1": false} {
			dialled := 0
			d := &reach.Dialer{
				Policy: func() *policy.Policy { return p }, Resolver: &resolver{answers: [][]string{{answer}}},
				Connect: func(context.Context, netip.AddrPort) (net.Conn, error) {
					dialled++
					near, far := net.Pipe()
					_ = far.Close()
					return near, nil
				},
			}
			c, err := d.Dial(t.Context(), to)
			if (err == nil) != want || (dialled == 1) != want {
				t.Errorf("%s leads to %s: dialled %d times, %v", target, answer, dialled, err)
			}
			if err == nil {
				_ = c.Close()
			}
		}
	}
}

func socksRequest(host string, port uint16) []byte {
	out := append([]byte{5, 1, 0, 3, byte(len(host))}, host...)
	return append(out, byte(port>>8), byte(port))
}

func socksAddress(a netip.Addr, port uint16) []byte {
	kind := byte(4)
	if a.Is4() {
		kind = 1
	}
	out := append([]byte{5, 1, 0, kind}, a.AsSlice()...)
	return append(out, byte(port>>8), byte(port))
}

// socks sends a SOCKS5 request without a login and returns the code of the reply, or
// 255 if there is none.
func socks(t *testing.T, addr string, request []byte) byte {
	t.Helper()
	reply := socksRaw(t, addr, append([]byte{5, 1, 0}, request...))
	if len(reply) < 4 || reply[2] != 5 {
		return 255
	}
	return reply[3]
}

// socksRaw sends bytes to a SOCKS5 proxy and returns up to a greeting and a reply.
func socksRaw(t *testing.T, addr string, b []byte) []byte {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(b); err != nil {
		return nil
	}
	_ = c.(*net.TCPConn).CloseWrite()
	out := make([]byte, 12)
	n, _ := io.ReadFull(c, out)
	return out[:n]
}

// TestAttackSOCKS5 says what RFC 1928 does not allow, or not here.
func TestAttackSOCKS5(t *testing.T) {
	w := newWorld(t)
	mine := serve(t, echo("acme"))
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	eventually(t, func() error {
		if code := socks(t, near.socks, socksRequest("127.0.0.1", mine.port())); code != 0 {
			return fmt.Errorf("SOCKS5 answers %d", code)
		}
		return nil
	})
	before := mine.visits.Load()
	hello := []byte{5, 1, 0}
	to := func(host string) []byte { return append([]byte{5, 1, 0}, socksRequest(host, mine.port())...) }
	login := func(user, password string) []byte {
		out := append([]byte{5, 1, 2, 1, byte(len(user))}, user...)
		out = append(append(out, byte(len(password))), password...)
		return append(out, socksRequest("127.0.0.1", mine.port())...)
	}
	command := func(c byte) []byte {
		b := to("127.0.0.1")
		b[4] = c
		return b
	}
	for name, b := range map[string][]byte{
		"a NUL at the end of the name":   to("127.0.0.1\x00"),
		"a NUL in the name":              to("127.0.0.1\x00.example.org"),
		"a NUL at the start":             to("\x00127.0.0.1"),
		"no name":                        to(""),
		"a name of 255":                  to(strings.Repeat("a.", 127) + "a"),
		"a name with a port":             to("127.0.0.1:80"),
		"brackets":                       to("[127.0.0.1]"),
		"a line break":                   to("127.0.0.1\r\n"),
		"a space":                        to("127.0.0.1 "),
		"an escape":                      to("127.0.0.1%00"),
		"a URL":                          to("http://127.0.0.1"),
		"a user":                         to("u@127.0.0.1"),
		"port 0":                         append(hello, socksRequest("127.0.0.1", 0)...),
		"BIND":                           command(2),
		"UDP ASSOCIATE":                  command(3),
		"command 0":                      command(0),
		"command 255":                    command(255),
		"SOCKS 4":                        append([]byte{4, 1, byte(mine.port() >> 8), byte(mine.port()), 127, 0, 0, 1}, 0),
		"SOCKS 4a":                       append([]byte{4, 1, byte(mine.port() >> 8), byte(mine.port()), 0, 0, 0, 1, 0}, "127.0.0.1\x00"...),
		"SOCKS 6":                        append([]byte{6, 1, 0}, socksRequest("127.0.0.1", mine.port())...),
		"a request of SOCKS 4":           append(hello, append([]byte{4, 1, 0, 1, 127, 0, 0, 1}, byte(mine.port()>>8), byte(mine.port()))...),
		"a reserved byte":                append(hello, append([]byte{5, 1, 1, 1, 127, 0, 0, 1}, byte(mine.port()>>8), byte(mine.port()))...),
		"an unknown kind of address":     append(hello, append([]byte{5, 1, 0, 2, 127, 0, 0, 1}, byte(mine.port()>>8), byte(mine.port()))...),
		"no methods":                     append([]byte{5, 0}, socksRequest("127.0.0.1", mine.port())...),
		"methods that nobody has":        append([]byte{5, 2, 1, 0x80}, socksRequest("127.0.0.1", mine.port())...),
		"a NUL in the user name":         login("edge\x00x", "p"),
		"a NUL in the password":          login(agentID, "p\x00"),
		"another organization's agent":   login("evil/edge", "p"),
		"another agent":                  login("plant", "p"),
		"a user name that is no name":    login("../edge", "p"),
		"a user name of 255":             login(strings.Repeat("a", 255), "p"),
		"a login of another version":     append([]byte{5, 1, 2, 2, 1, 'a', 1, 'b'}, socksRequest("127.0.0.1", mine.port())...),
		"a login that was not asked for": append([]byte{5, 1, 0, 1, 4}, append([]byte("edge"), socksRequest("127.0.0.1", mine.port())...)...),
		"half a greeting":                {5},
		"half a request":                 to("127.0.0.1")[:9],
		"HTTP":                           []byte("GET http://" + mine.addr + "/ HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		reply := socksRaw(t, near.socks, b)
		if len(reply) >= 4 && reply[0] == 5 && reply[1] == 0 && reply[2] == 5 && reply[3] == 0 {
			t.Errorf("%s: it connects", name)
		}
	}
	if n := mine.visits.Load() - before; n != 0 {
		t.Errorf("the target was visited %d times", n)
	}
	if code := socks(t, near.socks, socksRequest("127.0.0.1", mine.port())); code != 0 {
		t.Errorf("after all this SOCKS5 answers %d", code)
	}
}
