package attack_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// origin is a web server that remembers every request as it came, byte by byte.
type origin struct {
	*target
	mu   sync.Mutex
	seen []string
}

func newOrigin(t *testing.T) *origin {
	o := &origin{}
	o.target = serve(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		var raw bytes.Buffer
		r := bufio.NewReader(io.TeeReader(c, &raw))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, err = io.Copy(io.Discard, req.Body)
			o.mu.Lock()
			o.seen = append(o.seen, raw.String())
			raw.Reset()
			o.mu.Unlock()
			if err != nil {
				return
			}
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	})
	return o
}

// requests returns what was seen since the last call.
func (o *origin) requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.seen
	o.seen = nil
	return out
}

// raw sends bytes to a proxy and returns all that comes back until it is quiet.
func raw(t *testing.T, addr, request string) string { return rawUntil(t, addr, request, "") }

// rawUntil is raw that waits for an answer with an end that is to come.
func rawUntil(t *testing.T, addr, request, end string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		return ""
	}
	var out bytes.Buffer
	b := make([]byte, 32<<10)
	for {
		n, err := c.Read(b)
		out.Write(b[:n])
		if err != nil {
			return out.String()
		}
		if !strings.HasSuffix(out.String(), end) {
			continue
		}
		// After the first answer it gets little time for more.
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	}
}

func basic(user string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":secret")) + "\r\n"
}

// TestAttackRequestSmuggling sends requests that two readers may read in two ways. The
// target sees one request at most, and it is the one that the proxy saw.
func TestAttackRequestSmuggling(t *testing.T) {
	w := newWorld(t)
	o := newOrigin(t)
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	url := "http://" + o.addr
	good := "GET " + url + "/two HTTP/1.1\r\nHost: " + o.addr + "\r\nConnection: close\r\n\r\n"
	eventually(t, func() error {
		if answer := raw(t, near.http, good); !strings.HasPrefix(answer, "HTTP/1.1 200 OK") {
			return fmt.Errorf("a good request: %q", answer)
		}
		return nil
	})
	if seen := o.requests(); len(seen) != 1 || !strings.HasPrefix(seen[0], "GET /two HTTP/1.1\r\n") {
		t.Fatalf("the target saw %q", seen)
	}
	post := "POST " + url + "/one HTTP/1.1\r\nHost: " + o.addr + "\r\n"
	get := "GET " + url + "/one HTTP/1.1\r\nHost: " + o.addr + "\r\n"
	hidden := "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, request := range map[string]string{
		"CL and TE":               post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE and CL":               post + "Transfer-Encoding: chunked\r\nContent-Length: 400\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":             post + "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello" + hidden,
		"two lengths in one":      post + "Content-Length: 5, 0\r\n\r\nhello" + hidden,
		"a length with a sign":    post + "Content-Length: +5\r\n\r\nhello" + hidden,
		"a hexadecimal length":    post + "Content-Length: 0x5\r\n\r\nhello" + hidden,
		"a negative length":       post + "Content-Length: -1\r\n\r\n" + hidden,
		"a huge length":           post + "Content-Length: 18446744073709551621\r\n\r\nhello" + hidden,
		"a space in the length":   post + "Content-Length: 5 0\r\n\r\nhello" + hidden,
		"TE twice":                post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"TE of two":               post + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE unknown":              post + "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nhello" + hidden,
		"TE with a tab":           post + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"TE with a vertical tab":  post + "Transfer-Encoding: \vchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"a space before a colon":  post + "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"a folded TE":             post + "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"a bare CR in a field":    post + "X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello" + hidden,
		"a NUL in a field":        get + "X: y\x00z\r\n\r\n" + hidden,
		"a NUL in a name":         get + "X\x00Y: z\r\n\r\n" + hidden,
		"a NUL in the target":     "GET " + url + "/one\x00 HTTP/1.1\r\nHost: x\r\n\r\n" + hidden,
		"a space in the target":   "GET " + url + "/one /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"a CR in the target":      "GET " + url + "/one\r/smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"a field without a colon": get + "nonsense\r\n\r\n" + hidden,
		"an empty name":           get + ": x\r\n\r\n" + hidden,
		"two Hosts":               "GET " + url + "/one HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + hidden,
		"chunk with extensions":   post + "Transfer-Encoding: chunked\r\n\r\n0;" + strings.Repeat("a", 20<<10) + "\r\n\r\n" + hidden,
		"chunk too long":          post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nx\r\n0\r\n\r\n" + hidden,
		"chunk with a sign":       post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n" + hidden,
		"chunk ended by LF":       post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n" + hidden,
		"chunk without its end":   post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n" + hidden,
		"a length in a trailer":   post + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 50\r\n\r\n" + hidden,
		"user in the URL":         "GET http://u:p@" + o.addr + "/one HTTP/1.1\r\nHost: x\r\n\r\n" + hidden,
		"HTTP/0.9":                "GET " + url + "/one\r\n" + hidden,
		"HTTP/1.1 in small":       "GET " + url + "/one http/1.1\r\nHost: x\r\n\r\n" + hidden,
		"HTTP/2":                  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hidden,
		"HTTP/1.1 and more":       "GET " + url + "/one HTTP/1.1 HTTP/1.0\r\nHost: x\r\n\r\n" + hidden,
	} {
		t.Run(name, func(t *testing.T) {
			// A name of its own: what the target sees late of another one does not count.
			path := "/" + strings.ReplaceAll(strings.ToLower(name), " ", "-")
			answer := raw(t, near.http, strings.Replace(request, "/one", path, 1))
			// Whatever it was, the next client is served as if nothing had been.
			if again := raw(t, near.http, good); !strings.HasPrefix(again, "HTTP/1.1 200 OK") || !strings.HasSuffix(again, "\r\n\r\nok") {
				t.Errorf("the next client: %q", again)
			}
			ones, twos := 0, 0
			for _, s := range o.requests() {
				switch line, head, _ := strings.Cut(s, "\r\n"); {
				case line == "GET /two HTTP/1.1":
					twos++
				case strings.Contains(line, "smuggled"):
					t.Errorf("the target saw %q", s)
				case strings.HasSuffix(line, " "+path+" HTTP/1.1"):
					ones++
					if strings.Contains(head, "\r\nContent-Length:") && strings.Contains(head, "\r\nTransfer-Encoding:") {
						t.Errorf("the target got two framings: %q", s)
					}
				}
			}
			if ones > 1 || twos != 1 {
				t.Errorf("the target saw %d requests of the attacker's one, %d of the next client's one", ones, twos)
			}
			if strings.Count(answer, "HTTP/1.1 200") > ones {
				t.Errorf("the client got more answers than the target gave: %q", answer)
			}
		})
	}
}

// TestAttackHopByHop: what is between client and proxy stays there.
func TestAttackHopByHop(t *testing.T) {
	w := newWorld(t)
	o := newOrigin(t)
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	request := "POST http://" + o.addr + "/one HTTP/1.1\r\nHost: elsewhere.example.org\r\n" + basic(agentID) +
		"Connection: close, X-Private, Keep-Alive, proxy-authorization\r\nX-Private: 1\r\nKeep-Alive: 300\r\nProxy-Connection: keep-alive\r\n" +
		"Proxy-Authenticate: x\r\nTE: gzip\r\nX-Public: 2\r\nContent-Length: 2\r\n\r\nhi"
	eventually(t, func() error {
		if answer := raw(t, near.http, request); !strings.HasPrefix(answer, "HTTP/1.1 200 OK") {
			return fmt.Errorf("%q", answer)
		}
		return nil
	})
	seen := o.requests()
	if len(seen) != 1 || !strings.Contains(seen[0], "X-Public: 2\r\n") {
		t.Fatalf("the target saw %q", seen)
	}
	for _, secret := range []string{"proxy-auth", "x-private", "keep-alive", "proxy-connection", "te:", "elsewhere", "c2VjcmV0", "x-forwarded"} {
		if strings.Contains(strings.ToLower(seen[0]), strings.ToLower(secret)) {
			t.Errorf("the target saw %s: %q", secret, seen[0])
		}
	}
	if !strings.Contains(seen[0], "\r\nHost: "+o.addr+"\r\n") {
		t.Errorf("the target is not asked by its own name: %q", seen[0])
	}
}

// TestAttackResponseSplitting has a target answer with what would be two answers, or
// none, to another reader. The next client gets its own.
func TestAttackResponseSplitting(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	answer := ""
	evilTarget := serve(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			mu.Lock()
			text := answer
			mu.Unlock()
			if req.URL.Path == "/good" {
				text = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	})
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	get := func(path string) string {
		return raw(t, near.http, "GET http://"+evilTarget.addr+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	}
	eventually(t, func() error {
		if got := get("/good"); !strings.HasSuffix(got, "\r\n\r\ngood") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	const injected = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected"
	for name, text := range map[string]string{
		"two answers":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + injected,
		"CL and TE":              "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + injected,
		"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello" + injected,
		"none, and more":         "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello" + injected,
		"100 and more":           "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + injected,
		"a switch nobody wanted": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + injected,
		"a CR in a field":        "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok" + injected,
		"a folded field":         "HTTP/1.1 200 OK\r\nX: a\r\n Content-Length: 50\r\nContent-Length: 2\r\n\r\nok" + injected,
		"a long header":          "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n" + injected,
		"no HTTP":                injected[9:],
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			answer = text
			mu.Unlock()
			if got := get("/bad"); strings.Contains(got, "injected") {
				t.Errorf("the client got the second answer: %.300q", got)
			}
			for range 3 {
				if got := get("/good"); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(got, "\r\n\r\ngood") {
					t.Errorf("the next client got %.300q", got)
				}
			}
		})
	}
}

// TestAttackConnect asks for tunnels in ways that another reader reads differently.
func TestAttackConnect(t *testing.T) {
	w := newWorld(t)
	mine := serve(t, echo("acme"))
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	eventually(t, func() error { _, err := visit(near.http, mine.addr); return err })
	before := mine.visits.Load()
	port := fmt.Sprint(mine.port())
	for _, target := range []string{
		mine.addr + "/path", "/" + mine.addr, "http://" + mine.addr, "http://" + mine.addr + "/", "u@" + mine.addr, "u:p@" + mine.addr,
		mine.addr + "?q", mine.addr + "#f", "127.0.0.1:" + port + ":" + port, "127.0.0.1", "127.0.0.1:", ":" + port, "*", "127.0.0.1:0" + strings.Repeat("0", 300) + port,
		"127.0.0.1:-" + port, "127.0.0.1: " + port, "127.0.0.1:" + port + "\x00", "127.0.0.1\x00.example.org:" + port, "127.0.0.1%00:" + port,
		"127.0.0.1%2e:" + port, "[127.0.0.1]:" + port, "[::ffff:127.0.0.1%25lo]:" + port, "127.0.0.1..:" + port, ".127.0.0.1:" + port,
		"127。0。0。1:" + port, "①27.0.0.1:" + port, "127.0.0.1,example.org:" + port, "127.0.0.1\\@example.org:" + port, "[::1", "::1]:" + port,
	} {
		for _, head := range []string{"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT %s HTTP/1.0\r\n\r\n"} {
			if answer := raw(t, near.http, fmt.Sprintf(head, target)); strings.HasPrefix(answer, "HTTP/1.1 200") {
				t.Errorf("CONNECT %q: %.60q", target, answer)
			}
		}
	}
	connect := "CONNECT " + mine.addr + " HTTP/1.1\r\n"
	for name, request := range map[string]string{
		"a body":                   connect + "Host: x\r\nContent-Length: 5\r\n\r\nhello",
		"a chunked body":           connect + "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two Hosts":                connect + "Host: x\r\nHost: y\r\n\r\n",
		"two logins":               connect + basic("a") + basic("b") + "\r\n",
		"a folded field":           connect + "X: y\r\n z\r\n\r\n",
		"a bare CR":                connect + "X: y\rZ: a\r\n\r\n",
		"a NUL":                    connect + "X: \x00\r\n\r\n",
		"a space before the colon": connect + "Host : x\r\n\r\n",
		"no version":               "CONNECT " + mine.addr + "\r\n\r\n",
		"two spaces":               "CONNECT  " + mine.addr + " HTTP/1.1\r\n\r\n",
		"a tab":                    "CONNECT\t" + mine.addr + "\tHTTP/1.1\r\n\r\n",
		"small letters":            "connect " + mine.addr + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"a line before":            "\r\nCONNECT " + mine.addr + " HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
		"another agent's login":    connect + basic("plant") + "\r\n",
		"an organization's login":  connect + basic("evil/edge") + "\r\n",
		"a login with a NUL":       connect + basic("edge\x00x") + "\r\n",
	} {
		if answer := raw(t, near.http, request); strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Errorf("%s: %.60q", name, answer)
		}
	}
	if n := mine.visits.Load() - before; n != 0 {
		t.Errorf("the target was visited %d times", n)
	}
	// What a client sends behind a CONNECT before it has the answer is the target's, and
	// not another request.
	answer := rawUntil(t, near.http, connect+"Host: x\r\n\r\nCONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", "127.0.0.1:1 HTTP/1.1\r\n\r\n")
	if strings.Count(answer, "HTTP/1.1 200") != 1 || !strings.Contains(answer, "acme\nCONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n") {
		t.Errorf("a second CONNECT in the tunnel: %q", answer)
	}
	// Behind a refused one nothing is read.
	answer = raw(t, near.http, "CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n"+connect+"Host: x\r\n\r\n")
	if strings.Contains(answer, "HTTP/1.1 200") {
		t.Errorf("a request behind a refused one: %q", answer)
	}
}
