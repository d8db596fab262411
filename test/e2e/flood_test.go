package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// stranger dials from an address of its own, as the port counts strangers by
// their address.
var stranger = net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}

// strangers is how many of each kind come to the port. They come from sixteen
// addresses, so that the bounds of one address do not keep most of them out.
func strangers(t *testing.T) []kind {
	t.Helper()
	hello := clientHello(t)
	bad := selfSigned(t)
	shake := func(conn net.Conn, alpn string, certificates ...tls.Certificate) (*tls.Conn, error) {
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, Certificates: certificates})
		return client, client.Handshake()
	}
	said := func(conn net.Conn, err error, text string) error {
		if err != nil {
			return err
		}
		_, err = io.WriteString(conn, text)
		return err
	}
	upgrade := "GET /v1/connect HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x82\x85\x00\x00\x00\x00hello"
	return []kind{
		{"gone at once", 10_000, 0, func(net.Conn) error { return nil }},
		{"silent for a moment", 4_000, 20 * time.Millisecond, func(net.Conn) error { return nil }},
		{"garbage", 9_000, 20 * time.Millisecond, func(conn net.Conn) error {
			garbage := make([]byte, 512)
			_, _ = rand.Read(garbage)
			_, err := conn.Write(garbage)
			return err
		}},
		{"half a handshake", 8_000, 20 * time.Millisecond, func(conn net.Conn) error {
			_, err := conn.Write(hello[:len(hello)/2])
			return err
		}},
		{"web requests in the clear", 6_000, 20 * time.Millisecond, func(conn net.Conn) error {
			return said(conn, nil, "GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
		}},
		{"a hello that never ends", 4_000, 20 * time.Millisecond, func(conn net.Conn) error {
			// Records of a handshake message that says it has 16 MiB.
			first := append([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, make([]byte, 0x4000-4)...)
			for range 4 {
				if _, err := conn.Write(first); err != nil {
					return err
				}
				first[5] = 0
			}
			return nil
		}},
		{"a hello byte by byte", 2_000, 0, func(conn net.Conn) error {
			for i := range 20 {
				if _, err := conn.Write(hello[i : i+1]); err != nil {
					return err
				}
				time.Sleep(5 * time.Millisecond) // it is how this stranger speaks
			}
			return nil
		}},
		{"a hello and no more", 3_000, 50 * time.Millisecond, func(conn net.Conn) error {
			_, err := conn.Write(hello)
			return err
		}},
		{"no certificate", 1_500, time.Second, func(conn net.Conn) error {
			c, err := shake(conn, "postern-pipe/1")
			return said(c, err, "JOIN me if you can")
		}},
		{"a certificate of its own", 1_000, time.Second, func(conn net.Conn) error {
			c, err := shake(conn, "postern-bus/1", bad)
			return said(c, err, "CONNECT {}\r\n")
		}},
		{"no protocol of ours", 500, time.Second, func(conn net.Conn) error {
			_, err := shake(conn, "smtp")
			return err
		}},
		{"no HTTP", 500, time.Second, func(conn net.Conn) error {
			c, err := shake(conn, "http/1.1")
			return said(c, err, "\x00\x01\x02\r\n\r\n")
		}},
		{"a WebSocket with nothing of ours inside", 500, 50 * time.Millisecond, func(conn net.Conn) error {
			c, err := shake(conn, "http/1.1")
			return said(c, err, upgrade)
		}},
	}
}

// kind is a kind of stranger: how many come, how long each waits to be cut off, and
// what it says.
type kind struct {
	name string
	n    int
	wait time.Duration
	say  func(net.Conn) error
}

// TestStrangersAtThePort sends the one port fifty thousand connections of people who
// have no business there. Memory stays flat, nothing leaks, and those who have
// business are served meanwhile: streams, an agent that comes new, the API.
func TestStrangersAtThePort(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Fatal(err)
	}
	var crowd []kind
	for _, k := range strangers(t) {
		for range k.n {
			crowd = append(crowd, k)
		}
	}
	if len(crowd) != 50_000 {
		t.Fatalf("%d strangers", len(crowd))
	}
	mathrand.New(mathrand.NewPCG(1, 2)).Shuffle(len(crowd), func(i, j int) { crowd[i], crowd[j] = crowd[j], crowd[i] })
	var came atomic.Int64
	wave := func(from, to int) {
		parallel(to-from, 256, func(i int) {
			if k := crowd[from+i]; visitFrom(i, s.hub.Addr, k.wait, k.say) == nil {
				came.Add(1) // most are turned away, some by being cut off
			}
		})
	}
	// The first wave fills caches and pools; the second must not add to it.
	wave(0, 2000)
	hub, agent, proxy := s.watched()
	noLeak := harness.LeakCheck(t, 24, hub, agent, proxy)
	before := rss(t, s.hub.Process)

	var served, peak atomic.Int64
	stop := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if err := harness.PingEcho(forwards[0], 20*time.Second); err != nil {
				t.Errorf("while strangers knock: %v", err)
			} else {
				served.Add(1)
			}
			if n, err := s.hub.RSS(); err == nil {
				peak.Store(max(peak.Load(), n))
			}
		}
	}()
	begin := time.Now()
	flood := make(chan struct{})
	go func() {
		defer close(flood)
		wave(2000, len(crowd))
	}()
	late := s.hub.StartAgent(t, harness.PartySpec{AgentID: "late", Allow: rules([]string{echo})})
	harness.Eventually(t, 30*time.Second, "the hub tells of the agent that came", func() error {
		if out, stderr, err := s.hub.TryAdmin(t, "status", "late"); err != nil || !strings.Contains(out, "ready") {
			return fmt.Errorf("%s%s%w", out, stderr, err)
		}
		return nil
	})
	select {
	case <-flood:
		t.Error("the strangers were gone before the agent came")
	default:
		t.Logf("an agent came and was seen within %v, amid the strangers", time.Since(begin).Round(10*time.Millisecond))
	}
	<-flood
	close(stop)
	<-finished
	took := time.Since(begin)
	if err := late.Stop(30 * time.Second); err != nil {
		t.Error(err)
	}
	noLeak()
	after := rss(t, s.hub.Process)
	t.Logf("%d strangers in %v, %d of them could say what they wanted; %d streams served meanwhile", len(crowd), took.Round(time.Second), came.Load(), served.Load())
	t.Logf("the hub held %d MiB before, %d at most, %d after", before>>20, peak.Load()>>20, after>>20)
	if served.Load() == 0 {
		t.Error("no stream was served meanwhile")
	}
	if peak.Load() > before+128<<20 && !harness.Race() {
		t.Errorf("the hub rose from %d to %d MiB", before>>20, peak.Load()>>20)
	}
	if after > before+48<<20 && !harness.Race() {
		t.Errorf("the hub grew from %d to %d MiB", before>>20, after>>20)
	}
}

// visitFrom connects from one of sixteen addresses, says something and waits for a
// moment to be cut off. It leaves without a word.
func visitFrom(i int, addr string, wait time.Duration, say func(net.Conn) error) error {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 0, byte(2+i%16))}}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetLinger(0) // leave nothing behind
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := say(conn); err != nil || wait == 0 {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	_, err = io.Copy(io.Discard, conn)
	if isTimeout(err) {
		return nil
	}
	return err
}

// clientHello returns the first words of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() {
		_ = tls.Client(far, &tls.Config{ServerName: "hub", NextProtos: []string{"postern-pipe/1"}}).Handshake()
	}()
	hello := make([]byte, 4096)
	n, err := near.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}

// selfSigned returns a certificate that nobody vouches for.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
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
