package webconn

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a WebSocket over loopback.
func pair(t *testing.T) (client, server *Conn) {
	t.Helper()
	accepted := make(chan *Conn, 1)
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := Accept(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		accepted <- c
		c.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	client, err := Client(ctx, dial(t, target), target)
	cancel() // what lives on must not depend on it
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		client.Wait()
		server.Wait()
	})
	return client, server
}

// serve serves one handler without TLS.
func serve(t *testing.T, h http.HandlerFunc) *url.URL {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func dial(t *testing.T, target *url.URL) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", target.Host)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestBytesPassBothWays(t *testing.T) {
	a, b := pair(t)
	sent := make([]byte, 3<<20+7)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			for rest := sent; len(rest) > 0; { // pieces of many sizes
				n := min(len(rest), 1+rand.IntN(100<<10))
				if _, err := way[0].Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		wg.Go(func() {
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(iotest.HalfReader(way[1]), got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("other bytes than were sent: %v", err)
			}
		})
	}
	wg.Wait()
}

// A deadline that has passed is one call's, not the connection's: pipes poll so.
func TestDeadlinesLeaveAConnUsable(t *testing.T) {
	a, b := pair(t)
	one := make([]byte, 1)
	for range 3 {
		_ = a.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := a.Read(one); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read: %v", err)
		}
	}
	_ = a.SetReadDeadline(time.Time{})
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, one); err != nil || one[0] != 'x' {
		t.Fatalf("%q, %v", one, err)
	}
}

func TestWhatWasWrittenBeforeCloseArrives(t *testing.T) {
	for range 20 {
		a, b := pair(t)
		if _, err := b.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		got, err := io.ReadAll(a)
		if err != nil || string(got) != "last words" {
			t.Fatalf("%q, %v", got, err)
		}
		if _, err := a.Write([]byte("too late")); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("Write after the end: %v", err)
		}
	}
}

// A reader that does not read must not hold up Close of the other side for long.
func TestCloseEndsAStuckWrite(t *testing.T) {
	a, _ := pair(t)
	stuck := make(chan error, 1)
	go func() {
		for {
			if _, err := a.Write(make([]byte, 1<<20)); err != nil {
				stuck <- err
				return
			}
		}
	}()
	_ = a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	if err := <-stuck; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = a.Close()
	begin := time.Now()
	a.Wait()
	if took := time.Since(begin); took > lingerTime+3*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestAddresses(t *testing.T) {
	a, b := pair(t)
	if a.LocalAddr().Network() != "websocket" || b.LocalAddr().Network() != "websocket" {
		t.Errorf("local addresses are of %s and %s", a.LocalAddr().Network(), b.LocalAddr().Network())
	}
	if _, ok := b.RemoteAddr().(*net.TCPAddr); !ok || b.RemoteAddr().String() != a.LocalAddr().String() {
		t.Errorf("the server sees %v, the client is %v", b.RemoteAddr(), a.LocalAddr())
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		status int
	}{
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, http.StatusForbidden},
		"page":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, http.StatusOK},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://login.example.org/", http.StatusFound)
		}, http.StatusFound},
		"closes": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0},
	} {
		target := serve(t, c.h)
		conn, err := Client(t.Context(), dial(t, target), target)
		var refused *RefusedError
		switch {
		case err == nil:
			t.Errorf("%s: upgraded to %v", name, conn.RemoteAddr())
		case errors.As(err, &refused) != (c.status != 0), refused != nil && refused.Status != c.status:
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAcceptRefusesWhatIsNoUpgrade(t *testing.T) {
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := Accept(w, r); err == nil {
			t.Error("accepted")
		}
	})
	for header, value := range map[string]string{"X-None": "", "Origin": "https://evil.example.org"} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, target.String(), nil)
		req.Header.Set(header, value)
		if header == "Origin" {
			for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
				req.Header.Set(k, v)
			}
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode/100 != 4 {
			t.Errorf("%s: %s", header, res.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
