package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestIdleStreamsLeave: when the other side of kept streams is about to go, idle ones are
// closed at once, and one that serves a request when that is done; the next request gets
// a new one.
func TestIdleStreamsLeave(t *testing.T) {
	t.Parallel()
	var hold chan struct{}
	begun := make(chan struct{}, 1)
	o := serveWeb(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- struct{}{}
			<-hold
		}
		_, _ = io.WriteString(w, "ok")
	})
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.Observer = rec
	h := startHTTP(t, nil, cfg)
	c := webClient(t, h, nil)
	get := func(url string, streams int) {
		t.Helper()
		if res, body := fetch(t, c, newRequest(t, "GET", url, nil)); body != "ok" {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		if got := len(o.opened()); got != streams {
			t.Errorf("%d streams were opened; want %d", got, streams)
		}
	}
	closed := func() {
		t.Helper()
		select {
		case <-rec.closed:
		case <-time.After(patience):
			t.Fatal("no stream was closed")
		}
	}

	leaving, leave := context.WithCancel(t.Context())
	o.leaving = leaving
	get("http://a/", 1)
	get("http://a/", 1)
	leave()
	closed()

	leaving, leave = context.WithCancel(t.Context())
	o.leaving = leaving
	get("http://a/", 2)
	hold = make(chan struct{})
	answered := make(chan error, 1)
	go func() {
		res, err := c.Do(newRequest(t, "GET", "http://a/slow", nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		answered <- err
	}()
	<-begun
	leave()
	if n := len(rec.get("closed")); n != 1 {
		t.Errorf("%d streams are closed; one of them is in use", n-1)
	}
	close(hold)
	if err := <-answered; err != nil {
		t.Errorf("the request that was served when the other side left: %v", err)
	}
	closed()
	o.leaving = nil
	get("http://a/", 3)
	get("http://a/", 3)
}

// TestUnusedStreamLeaves: a stream that was opened for a request which another stream
// served in the end is closed too.
func TestUnusedStreamLeaves(t *testing.T) {
	t.Parallel()
	ln := listen(t, "127.0.0.1:0")
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	done := make(chan Stats, 1)
	k := &kept{Stream: &fakeStream{TCPConn: near.(*net.TCPConn)}, changed: make(chan struct{}, 1), closed: func(s Stats) { done <- s }, forget: func() bool { return true }}
	k.leave()
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other side reads %v", err)
	}
	<-done
}
