package hubtest_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve runs handle for each connection to a new listener, until the test ends.
func serve(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[net.Conn]struct{})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				handle(c.(*net.TCPConn))
				_ = c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// echo sends back what it gets, and not by splice(2), for which the runtime would keep
// descriptors.
func echo(c *net.TCPConn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn)
}

// ping sends a line over a connection to an echo and wants it back.
func ping(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	line := fmt.Sprintf("ping %d\n", rand.Uint64())
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	b := make([]byte, len(line))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != line {
		return fmt.Errorf("got %q; want %q", b, line)
	}
	return nil
}

// once opens a stream over a forward to an echo, sends a line through, and closes.
func once(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	return ping(c)
}

// connect opens a stream over an HTTP proxy, as a USER or USER:PASSWORD if there is
// one; an answer other than 200 is an error.
func connect(proxy, user, target string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", proxy, patience)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	req, err := http.NewRequest(http.MethodConnect, "http://"+target, nil)
	if err == nil {
		if user != "" {
			name, password, _ := strings.Cut(user, ":")
			basic := &http.Request{Header: http.Header{}}
			basic.SetBasicAuth(name, password)
			req.Header.Set("Proxy-Authorization", basic.Header.Get("Authorization"))
		}
		err = req.Write(c)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		_ = c.Close()
		return nil, &answer{status: res.StatusCode, body: string(body), why: res.Header.Get("Proxy-Status")}
	}
	if r.Buffered() > 0 {
		_ = c.Close()
		return nil, errors.New("bytes follow the answer")
	}
	return c, nil
}

// answer is what a proxy says when it opens no stream.
type answer struct {
	status    int
	body, why string
}

func (a *answer) Error() string { return fmt.Sprintf("%d %s: %s", a.status, a.why, a.body) }

// onceBy is once over an HTTP proxy.
func onceBy(proxy, user, target string) error {
	c, err := connect(proxy, user, target)
	if err != nil {
		return err
	}
	defer c.Close()
	return ping(c)
}

// socks opens a stream over a SOCKS5 proxy.
func socks(t *testing.T, proxy, target string) net.Conn {
	t.Helper()
	c := dial(t, proxy)
	host, port, _ := net.SplitHostPort(target)
	var p uint16
	_, _ = fmt.Sscan(port, &p)
	ask := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if _, err := c.Write(append(ask, byte(p>>8), byte(p))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2+10)
	if _, err := io.ReadFull(c, b); err != nil || b[1] != 0 || b[3] != 0 {
		t.Fatalf("SOCKS5 answered %v, %v", b, err)
	}
	return c
}

// swap sends n bytes to an echo and compares what comes back, with half-closes both
// ways.
func swap(t *testing.T, c net.Conn, n int) {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(b); err != nil {
			t.Error(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || sha256.Sum256(got) != sha256.Sum256(b) {
		t.Errorf("%d bytes of %d came back, or others: %v", len(got), n, err)
	}
	_ = c.Close()
}

// cut waits until a connection over which nothing comes breaks. It wants a reset.
func cut(c net.Conn, limit time.Duration) error {
	_ = c.SetReadDeadline(time.Now().Add(limit))
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return errors.New("something came")
	case !errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("it ended with %w; want a reset", err)
	}
	return nil
}
