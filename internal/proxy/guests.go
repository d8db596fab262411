package proxy

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/wire"
)

// Times of the questions after what was revoked. A stream ends within both together, or
// as soon as the hub can be asked again.
const (
	guestLook     = 2 * time.Second
	guestPatience = 2 * time.Second
	guestTrials   = 5 // questions in a row without an answer, before somebody is told
)

// guests lets streams through to another Opener, and ends those whose client showed a
// token or session that is revoked later. A proxy in a process of its own enrolled on a
// ground of its own, which says nothing of its clients': so it asks the hub for theirs,
// all at once, as long as there are any. It asks for the state instead of being told of
// changes, so that nothing is missed when the bus was down. Safe for concurrent use.
type guests struct {
	next Opener
	ask  func(context.Context, []bus.Credential) (revoked []bus.Credential, err error)
	log  *slog.Logger

	mu   sync.Mutex
	live map[bus.Credential]map[*guestStream]struct{}
}

func newGuests(next Opener, ask func(context.Context, []bus.Credential) ([]bus.Credential, error), log *slog.Logger) *guests {
	return &guests{next: next, ask: ask, log: log, live: make(map[bus.Credential]map[*guestStream]struct{})}
}

// guestStream is a stream that ends with what its client showed.
type guestStream struct {
	Stream
	leave func()
}

// Carry implements Stream.
func (s *guestStream) Carry(local net.Conn, early []byte) (Stats, error) {
	defer s.leave()
	return s.Stream.Carry(local, early)
}

// Close implements net.Conn.
func (s *guestStream) Close() error {
	s.leave()
	return s.Stream.Close()
}

// Open implements Opener.
func (g *guests) Open(ctx context.Context, r Request) (Stream, error) {
	stream, err := g.next.Open(ctx, r)
	if err != nil || r.For.Item == "" { // nothing was shown, or not to the hub
		return stream, err
	}
	shown := bus.Credential{Kind: string(r.For.Principal.Kind), Name: r.For.Principal.Name, Item: r.For.Item}
	s := &guestStream{Stream: stream}
	s.leave = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if delete(g.live[shown], s); len(g.live[shown]) == 0 {
			delete(g.live, shown)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.live[shown] == nil {
		g.live[shown] = make(map[*guestStream]struct{})
	}
	g.live[shown][s] = struct{}{}
	return s, nil
}

// run asks, and ends what is to end, until ctx does.
func (g *guests) run(ctx context.Context) {
	tick := time.NewTicker(guestLook)
	defer tick.Stop()
	failed := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := g.look(ctx)
		switch {
		case err == nil:
			failed = 0
		case ctx.Err() == nil:
			if failed++; failed == guestTrials {
				g.log.Warn("the hub does not tell what was revoked; streams whose token was revoked may go on until it does", "error", err)
			}
		}
	}
}

// look asks once for all that is shown at the moment.
func (g *guests) look(ctx context.Context) error {
	g.mu.Lock()
	shown := make([]bus.Credential, 0, len(g.live))
	for c := range g.live {
		shown = append(shown, c)
	}
	g.mu.Unlock()
	for some := range slices.Chunk(shown, bus.MaxCredentials) {
		ctx, cancel := context.WithTimeout(ctx, guestPatience)
		revoked, err := g.ask(ctx, some)
		cancel()
		if err != nil {
			return err
		}
		for _, c := range revoked {
			g.evict(c)
		}
	}
	return nil
}

// evict ends the streams of a credential.
func (g *guests) evict(c bus.Credential) {
	g.mu.Lock()
	streams := g.live[c]
	delete(g.live, c)
	g.mu.Unlock()
	f := wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the credential of %s:%s was revoked", c.Kind, c.Name)
	for s := range streams {
		cut(s.Stream, f)
	}
	g.log.Info("streams of a revoked credential ended", "identity", c.Kind+":"+c.Name, "item", c.Item, "streams", len(streams))
}

// cut ends a stream, and says why where it can.
func cut(s Stream, why *wire.Failure) {
	if r, ok := s.(interface{ Reset(*wire.Failure) }); ok {
		r.Reset(why)
		return
	}
	_ = s.Close()
}
