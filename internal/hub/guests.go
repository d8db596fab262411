package hub

import (
	"context"
	"errors"
	"net"

	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// guest is what lives on a ground without a certificate of its own: a stream through
// the hub's own proxies, whose client showed a token as its password.
type guest struct {
	ground registry.Ground
	cut    func()
}

// Lodge has cut called when a ground vanishes; leave ends that. The error is
// registry.ErrRevoked when it has vanished already.
func (i *Issued) Lodge(ctx context.Context, ground registry.Ground, cut func()) (leave func(), err error) {
	one := &guest{ground, cut}
	i.mu.Lock()
	if i.guests == nil {
		i.guests = make(map[*guest]struct{})
	}
	i.guests[one] = struct{}{}
	i.mu.Unlock()
	leave = func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.guests, one)
	}
	// Only now look at the ground: a revocation that did not see this guest yet
	// removed the ground before, and is seen here.
	if err := i.stands(ctx, ground); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// evict cuts the guests on some grounds, and returns how many there were.
func (i *Issued) evict(gone map[registry.Ground]bool) int {
	var cuts []func()
	i.mu.Lock()
	for one := range i.guests {
		if gone[one.ground] {
			cuts = append(cuts, one.cut)
			delete(i.guests, one)
		}
	}
	for ground := range gone {
		delete(i.shown, ground) // whoever asks next learns it from the registry
	}
	i.mu.Unlock()
	for _, cut := range cuts {
		cut()
	}
	return len(cuts)
}

// lodgedStream is a stream that ends with the token that its client showed.
type lodgedStream struct {
	proxy.Stream
	leave func()
}

// Carry implements proxy.Stream.
func (s *lodgedStream) Carry(local net.Conn, early []byte) (proxy.Stats, error) {
	defer s.leave()
	return s.Stream.Carry(local, early)
}

// Close implements net.Conn.
func (s *lodgedStream) Close() error {
	s.leave()
	return s.Stream.Close()
}

// lodge makes a stream of the hub's own proxies end with the token that was shown
// for it, if there was one.
func (i *Issued) lodge(ctx context.Context, who proxy.Identity, s proxy.Stream) (proxy.Stream, error) {
	if who.Item == "" {
		return s, nil
	}
	revoked := wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the credential of %s was revoked", who.Principal)
	caller := Caller{Principal: who.Principal, Organization: who.Organization, Item: who.Item}
	leave, err := i.Lodge(ctx, caller.Ground(who.Organization), func() { reset(s, revoked) })
	if err != nil {
		_ = s.Close()
		if errors.Is(err, registry.ErrRevoked) {
			return nil, revoked
		}
		return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the credential up").WithCause(err)
	}
	return &lodgedStream{Stream: s, leave: leave}, nil
}

// reset ends a stream for a reason, without waiting for it.
func reset(s proxy.Stream, f *wire.Failure) {
	if r, ok := s.(interface{ Reset(*wire.Failure) }); ok {
		r.Reset(f)
		return
	}
	_ = s.Close()
}
