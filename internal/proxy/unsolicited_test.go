package proxy

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"postern.dev/postern/internal/wire"
)

// TestUnsolicitedAnswers: what a target sends behind its answer is never the answer to
// the next request, however soon that comes.
func TestUnsolicitedAnswers(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: func(context.Context, AgentRef, wire.Target) (net.Conn, error) {
		ln := listen(t, "127.0.0.1:0")
		defer ln.Close()
		near, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		far, err := ln.Accept()
		if err != nil {
			return nil, err
		}
		go func() {
			defer far.Close()
			for r := bufio.NewReader(far); ; {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected")
			}
		}()
		return near, nil
	}}
	h := startHTTP(t, nil, frontConfig(o))
	var wg sync.WaitGroup
	for range 4 {
		c := webClient(t, h, nil)
		wg.Go(func() {
			for range 300 {
				res, err := c.Do(newRequest(t, "GET", "http://a/", nil))
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || string(body) != "ok" {
					t.Errorf("%d %s, %v", res.StatusCode, body, err)
				}
			}
		})
	}
	wg.Wait()
}
