//go:build unix

package hubtest_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/testnet"
)

// slowConnections is how many connections dawdle, where the process may open as many.
const slowConnections = 10_000

// slowMemory bounds what one of them costs the hub and this test together, in bytes.
const slowMemory = 96 << 10

// TestGatewaySlowConnections: ten thousand connections that come from many places and
// stop in the middle of a handshake or of a request's header do not keep others out, nor
// end what runs, and cost a bounded amount of memory.
func TestGatewaySlowConnections(t *testing.T) {
	t.Parallel()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	const others = 6000 // descriptors: of the hub's end, which are bounded, and of other tests
	count := min(slowConnections, int(limit.Cur)-others)
	if count < 1000 {
		t.Fatalf("%d descriptors are too few for this test", limit.Cur)
	}
	var listen string
	w := newWorld(t, func(h *config.Hub) {
		listen = testnet.FreeAddr(t)
		h.GatewayListen = listen
	})
	k := newKube(t)
	w.agent("a", k.of("plant"))
	token := tokenIn(t, w.token)
	w.serves(token, "plant")

	secure := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	fresh := func() (int, string) { // over a connection of its own
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}, Timeout: patience}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+listen+"/plant/api", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = res.Body.Close() }()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	exec, err := tls.Dial("tcp", listen, secure)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = exec.Close() }()
	_ = exec.SetDeadline(time.Now().Add(4 * patience))
	fmt.Fprintf(exec, "POST /plant/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n", token)
	head := make([]byte, 1024)
	if n, err := exec.Read(head); err != nil || !strings.Contains(string(head[:n]), " 101 ") {
		t.Fatalf("%q, %v", head[:n], err)
	}

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	slow := newSlowConns(listen, secure)
	defer slow.close()
	slow.open(count)
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("%d connections, %d of them refused at once, within %s; %d MiB more memory", count, slow.failed(), time.Since(begin).Round(time.Millisecond), grown>>20)
	if most := int64(count) * slowMemory; grown > most {
		t.Errorf("%d bytes of memory; at most %d are expected", grown, most)
	}

	for range 3 {
		if code, body := fresh(); code != http.StatusOK || !strings.HasPrefix(body, "hello ") {
			t.Errorf("meanwhile: %d %s", code, body)
		}
	}
	if _, err := io.WriteString(exec, "still here\n"); err != nil {
		t.Error(err)
	}
	if n, err := exec.Read(head); err != nil || string(head[:n]) != "still here\n" {
		t.Errorf("what ran before: %q, %v", head[:n], err)
	}
}

// slowConns are connections on which nothing is finished.
type slowConns struct {
	addr   string
	secure *tls.Config

	mu     sync.Mutex
	conns  []net.Conn
	broken int
}

func newSlowConns(addr string, secure *tls.Config) *slowConns {
	return &slowConns{addr: addr, secure: secure}
}

// open opens n connections from addresses of loopback, where a system has many. One of
// two hundred goes as far as the middle of a request's header; the others stop in the
// handshake, or before it.
func (s *slowConns) open(n int) {
	var dialing sync.WaitGroup
	next := make(chan int)
	for range 16 {
		dialing.Go(func() {
			for i := range next {
				s.one(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	dialing.Wait()
}

func (s *slowConns) one(i int) {
	d := net.Dialer{Timeout: patience}
	if runtime.GOOS == "linux" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%100))}
	}
	conn, err := d.Dial("tcp", s.addr)
	if err == nil {
		switch {
		case i%200 == 0:
			_ = conn.SetDeadline(time.Now().Add(patience))
			in := tls.Client(conn, s.secure)
			_, err = io.WriteString(in, "GET /plant/api HTTP/1.1\r\nHost: hub\r\nX-Slow: ")
		case i%2 == 0:
			_, err = conn.Write([]byte{22, 3, 1, 2, 0, 1}) // a handshake of 512 bytes begins
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn != nil {
		s.conns = append(s.conns, conn)
	}
	if err != nil {
		s.broken++
	}
}

// failed returns how many have not come as far as they should.
func (s *slowConns) failed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *slowConns) close() {
	for _, c := range s.conns {
		_ = c.(interface{ SetLinger(int) error }).SetLinger(0) // no memory in the kernel for minutes
		_ = c.Close()
	}
}
