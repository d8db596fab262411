// Package pipetest makes real pipes for tests: TCP over loopback, inner TLS with
// certificates of an authority made for the occasion.
package pipetest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
)

// World is an authority and credentials of a proxy and an agent that it issued.
type World struct {
	Authority    *identity.Authority
	Proxy, Agent *identity.Credentials
	Buffers      *pipe.Buffers
}

// NewWorld makes a world whose organization is "acme", with agent "west".
func NewWorld(t testing.TB) *World {
	t.Helper()
	a, err := identity.NewAuthority("test.internal", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Authority: a, Buffers: pipe.NewBuffers()}
	w.Proxy = w.Credentials(t, identity.ID{Organization: "acme", Role: identity.RoleProxy, Name: "near", Replica: "p1"})
	w.Agent = w.Credentials(t, identity.ID{Organization: "acme", Role: identity.RoleAgent, Name: "west", Replica: "a1"})
	return w
}

// Credentials issues credentials for id in the world's trust domain.
func (w *World) Credentials(t testing.TB, id identity.ID) *identity.Credentials {
	t.Helper()
	id.TrustDomain = w.Authority.TrustDomain()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.Authority.IssueParty(id, key.Public(), identity.Holder{}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, cert := range certs {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return &identity.Credentials{ID: id, Certificate: c, Roots: w.Authority.Pool(),
		NotBefore: certs[0].NotBefore, NotAfter: certs[0].NotAfter}
}

// ClientConfig is the inner TLS of the world's proxy; any peer of the
// organization will do.
func (w *World) ClientConfig() *tls.Config {
	return identity.InnerClientConfig(func() *identity.Credentials { return w.Proxy }, anyone)
}

// ServerConfig is the inner TLS of the world's agent.
func (w *World) ServerConfig() *tls.Config {
	return identity.InnerServerConfig(func() *identity.Credentials { return w.Agent }, anyone)
}

func anyone(identity.ID) error { return nil }

// patience bounds what a test waits for in vain.
const patience = 20 * time.Second

// Pair makes a pipe and returns both its ends, which are closed after the test.
// Dial, if not nil, connects to the address that the other end listens on, for
// instance through a testnet.Link. It is for the test's own goroutine.
func (w *World) Pair(t testing.TB, dial func(addr string) (net.Conn, error)) (client, server *pipe.Pipe) {
	t.Helper()
	client, server, err := w.Connect(dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	t.Cleanup(server.Close)
	return client, server
}

// Connect is Pair for any goroutine; the caller closes both ends.
func (w *World) Connect(dial func(addr string) (net.Conn, error)) (client, server *pipe.Pipe, err error) {
	a, b, err := connect(dial)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { server, serverErr = pipe.Server(ctx, b, w.ServerConfig(), w.Buffers) })
	client, err = pipe.Client(ctx, a, w.ClientConfig(), w.Buffers)
	wg.Wait()
	if err := errors.Join(err, serverErr); err != nil {
		_, _ = a.Close(), b.Close()
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return client, server, nil
}

// TCPPair returns two ends of a TCP connection over loopback; the caller closes
// them.
func TCPPair(t testing.TB, dial func(addr string) (net.Conn, error)) (dialled, accepted net.Conn) {
	t.Helper()
	a, b, err := connect(dial)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func connect(dial func(addr string) (net.Conn, error)) (dialled, accepted net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("listening for a pipe: %w", err)
	}
	defer func() { _ = l.Close() }()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	direct := dial == nil
	if direct {
		dial = func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }
	}
	if dialled, err = dial(l.Addr().String()); err != nil {
		return nil, nil, fmt.Errorf("connecting for a pipe: %w", err)
	}
	for {
		if accepted, err = l.Accept(); err != nil {
			_ = dialled.Close()
			return nil, nil, fmt.Errorf("accepting for a pipe: %w", err)
		}
		if !direct || accepted.RemoteAddr().String() == dialled.LocalAddr().String() {
			return dialled, accepted, nil
		}
		_ = accepted.Close() // a stray: who had this port before us was meant
	}
}
