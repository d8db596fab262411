package exchange

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestIdle: as many connections wait as may, those that are gone are found, and none
// is left at the end.
func TestIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, always(fine))
	var answers []*http.Response
	for range 6 {
		answer, err := w.send(w.request("GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, answer)
	}
	for _, answer := range answers {
		_, _ = io.Copy(io.Discard, answer.Body)
	}
	if n := w.idle(); n != 4 {
		t.Fatalf("%d wait, want 4", n)
	}
	w.closed(5)
	w.closed(6)
	w.conns[0].ended.Store(true)
	w.client.look()
	w.closed(1)
	if n := w.idle(); n != 3 {
		t.Errorf("%d wait, want 3", n)
	}
	w.leave[1]() // its server says that it goes
	w.closed(2)
	w.client.mu.Lock()
	for _, one := range w.client.idle {
		one.since = one.since.Add(-2 * time.Minute)
	}
	w.client.mu.Unlock()
	w.do(w.request("GET", ""))
	w.closed(3)
	w.closed(4)
	if n := w.dialed(); n != 7 {
		t.Errorf("%d connections", n)
	}
	answer, err := w.send(w.request("GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	w.leave[6]()
	_, _ = io.Copy(io.Discard, answer.Body)
	w.closed(7) // it was in use as its server said so
	answer, err = w.send(w.request("GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	w.client.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "ok" {
		t.Errorf("%q, %v", text, err)
	}
	w.closed(8)
}

// TestRefused: what would arrive otherwise than it is meant is not sent.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, always(fine))
	for _, change := range []func(r *http.Request){
		func(r *http.Request) { r.Method = "GET /x HTTP/1.1\r\nA:" },
		func(r *http.Request) { r.Header["A: b\r\nC"] = []string{"d"} },
		func(r *http.Request) { r.Header.Set("A", "b\r\nC: d") },
		func(r *http.Request) { r.URL = nil },
	} {
		r, _, s := w.slow("POST")
		change(r)
		if _, err := w.send(r); err == nil {
			t.Errorf("%q %v was sent", r.Method, r.Header)
		}
		<-s.closed
	}
	away := errors.New("away")
	w.client.cfg.Dial = func(context.Context) (net.Conn, func(func()), error) { return nil, nil, away }
	r, _, s := w.slow("POST")
	if _, err := w.send(r); !errors.Is(err, away) {
		t.Error(err)
	}
	<-s.closed
}

// TestMany: exchanges at the same time do not get each other's answers.
func TestMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ int, c net.Conn, in *bufio.Reader) {
		for {
			_, text, err := take(in)
			if err != nil {
				return
			}
			say(c, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
		}
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				want := fmt.Sprint(i, " ", j)
				r := w.request("POST", want)
				answer, err := w.send(r)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(answer.Body)
				if err != nil || string(got) != want {
					t.Errorf("got %q, want %q, %v", got, want, err)
				}
			}
		})
	}
	wg.Wait()
}
