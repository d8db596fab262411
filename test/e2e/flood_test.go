package e2e_test

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// stranger dials from an address of its own, as the port counts strangers by
// their address.
var stranger = net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}

// TestStrangersAtThePort sends the one port ten thousand connections of people
// who have no business there. Memory stays flat, nothing leaks, and those who
// have business are served meanwhile.
func TestStrangersAtThePort(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	strangers := map[string]func() error{
		"garbage": func() error {
			return visit(s.hub.Addr, func(conn net.Conn) error {
				garbage := make([]byte, 512)
				_, _ = rand.Read(garbage)
				_, err := conn.Write(garbage)
				return err
			})
		},
		"half a handshake": func() error {
			return visit(s.hub.Addr, func(conn net.Conn) error {
				return halfHandshake(conn)
			})
		},
		"web request in the clear": func() error {
			return visit(s.hub.Addr, func(conn net.Conn) error {
				_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
				return err
			})
		},
		"handshake without a certificate": func() error {
			return visit(s.hub.Addr, func(conn net.Conn) error {
				client := tls.Client(conn, &tls.Config{
					InsecureSkipVerify: true,
					NextProtos:         []string{"postern-pipe/1"},
				})
				if err := client.Handshake(); err != nil {
					return err
				}
				_, err := client.Write(make([]byte, 64))
				return err
			})
		},
	}
	// The first wave fills caches and pools; the second must not add to it.
	wave := func(n int) {
		parallel(n, 64, func(i int) {
			for _, come := range strangers {
				_ = come() // most are turned away, some by being cut off
			}
		})
	}
	wave(250)
	hub, agent, proxy := s.watched()
	noLeak := harness.LeakCheck(t, 24, hub, agent, proxy)
	before := rss(t, s.hub.Process)

	var served, failed atomic.Int64
	stop := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
					failed.Add(1)
					t.Errorf("while strangers knock: %v", err)
				} else {
					served.Add(1)
				}
			}
		}
	}()
	begin := time.Now()
	wave(2250) // with the first 250, each kind comes 2500 times
	close(stop)
	<-finished
	t.Logf("10000 strangers in %v; %d streams served meanwhile, %d failed", time.Since(begin).Round(time.Second), served.Load(), failed.Load())
	noLeak()
	after := rss(t, s.hub.Process)
	t.Logf("the hub holds %d MiB, before %d MiB", after>>20, before>>20)
	if after > before+32<<20 && !harness.Race() {
		t.Errorf("the hub grew from %d to %d MiB", before>>20, after>>20)
	}
}

// TestSilentStrangers opens connections that say nothing, as many as one
// address may, and looks that the port stays usable for others' sake.
func TestSilentStrangers(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	before := rss(t, s.hub.Process)
	var silent []net.Conn
	defer func() {
		for _, conn := range silent {
			conn.Close()
		}
	}()
	for range 2000 {
		conn, err := stranger.Dial("tcp", s.hub.Addr)
		if err != nil {
			break // refused: fine
		}
		silent = append(silent, conn)
	}
	for range 20 {
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatalf("beside %d silent connections: %v", len(silent), err)
		}
	}
	if after := rss(t, s.hub.Process); after > before+64<<20 && !harness.Race() {
		t.Errorf("the hub grew from %d to %d MiB for %d silent connections", before>>20, after>>20, len(silent))
	}
	// They are shown the door before long.
	begin := time.Now()
	for i, conn := range silent {
		_ = conn.SetReadDeadline(begin.Add(60 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("silent connection %d is still open after %v: %v", i, time.Since(begin), err)
		}
	}
	t.Logf("%d silent connections were closed within %v", len(silent), time.Since(begin).Round(time.Second))
}

// visit connects, says something and waits to be cut off, but not for long: a
// stranger has not to be polite either.
func visit(addr string, say func(net.Conn) error) error {
	conn, err := stranger.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if err := say(conn); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// halfHandshake sends the first half of a ClientHello.
func halfHandshake(conn net.Conn) error {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() {
		_ = tls.Client(far, &tls.Config{ServerName: "hub", NextProtos: []string{"h2"}}).Handshake()
	}()
	hello := make([]byte, 4096)
	n, err := near.Read(hello)
	if err != nil {
		return fmt.Errorf("make a ClientHello: %w", err)
	}
	_, err = conn.Write(hello[:n/2])
	return err
}

func rss(t *testing.T, p *harness.Process) int64 {
	t.Helper()
	n, err := p.RSS()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
