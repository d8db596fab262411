//go:build linux

package quickstart_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"postern.dev/postern/test/kube/cluster"
)

// forward has a port of the host's one address lead to an address inside a cluster until the test
// ends, as a load balancer in front of the cluster does.
func (w *world) forward(t *testing.T, port string, c *cluster.Cluster, to string) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(w.hubHost, port))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	closed := false
	note := func(conn net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		open[conn] = true
		return !closed
	}
	carry := func(front net.Conn) {
		defer front.Close()
		back, err := c.DialContext(ctx, "tcp", to)
		if err != nil {
			return
		}
		defer back.Close()
		if !note(front) || !note(back) {
			return
		}
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			delete(open, front)
			delete(open, back)
		}()
		var both sync.WaitGroup
		for _, way := range [][2]net.Conn{{front, back}, {back, front}} {
			both.Go(func() {
				_, _ = io.Copy(way[1], way[0])
				if half, ok := way[1].(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
			})
		}
		both.Wait()
	}
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		closed = true
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
}
