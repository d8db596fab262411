// Package pipetest makes real pipes for tests: TCP over loopback, inner TLS with
// certificates of an authority made for the occasion.
package pipetest

import (
	"context"
	"crypto/tls"
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
	chain, err := w.Authority.IssueParty(id, key.Public(), time.Hour, time.Now())
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

// Pair makes a pipe and returns both its ends. Dial, if not nil, connects to the
// address that the other end listens on, for instance through a testnet.Link.
func (w *World) Pair(t testing.TB, dial func(addr string) (net.Conn, error)) (client, server *pipe.Pipe) {
	t.Helper()
	a, b := TCPPair(t, dial)
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { server, serverErr = pipe.Server(context.Background(), b, w.ServerConfig(), w.Buffers) })
	client, err := pipe.Client(context.Background(), a, w.ClientConfig(), w.Buffers)
	wg.Wait()
	if err != nil || serverErr != nil {
		t.Fatalf("making a pipe: client %v, server %v", err, serverErr)
	}
	t.Cleanup(client.Close)
	t.Cleanup(server.Close)
	return client, server
}

// TCPPair returns two ends of a TCP connection over loopback.
func TCPPair(t testing.TB, dial func(addr string) (net.Conn, error)) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if dial == nil {
		dial = func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }
	}
	var wg sync.WaitGroup
	var acceptErr error
	wg.Go(func() { accepted, acceptErr = l.Accept() })
	dialled, err = dial(l.Addr().String())
	wg.Wait()
	if err != nil || acceptErr != nil {
		t.Fatalf("connecting: %v, %v", err, acceptErr)
	}
	return dialled, accepted
}
