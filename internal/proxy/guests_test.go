package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// stay is a stream that lasts until it is closed or reset.
type stay struct {
	Stream
	once sync.Once
	done chan struct{}
	why  *wire.Failure
}

func newStay() *stay { return &stay{done: make(chan struct{})} }

func (s *stay) end(f *wire.Failure) { s.once.Do(func() { s.why = f; close(s.done) }) }

func (s *stay) Close() error          { s.end(nil); return nil }
func (s *stay) Reset(f *wire.Failure) { s.end(f) }

func (s *stay) Carry(net.Conn, []byte) (Stats, error) {
	<-s.done
	if s.why != nil {
		return Stats{}, s.why
	}
	return Stats{}, nil
}

func (s *stay) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

type stays struct{ all []*stay }

func (o *stays) Open(context.Context, Request) (Stream, error) {
	s := newStay()
	o.all = append(o.all, s)
	return s, nil
}

// fakeHub knows what was revoked.
type fakeHub struct {
	mu      sync.Mutex
	revoked map[bus.Credential]bool
	broken  error
	asked   int // questions
	most    int // credentials in one
}

func (h *fakeHub) ask(_ context.Context, some []bus.Credential) (gone []bus.Credential, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	h.most = max(h.most, len(some))
	for _, c := range some {
		if h.revoked[c] {
			gone = append(gone, c)
		}
	}
	return gone, h.broken
}

func (h *fakeHub) revoke(c bus.Credential) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revoked[c] = true
}

func by(kind identity.PrincipalKind, name, item string) Request {
	return Request{For: Identity{Organization: "default", Principal: identity.Principal{Kind: kind, Name: name}, Item: item}}
}

// TestGuests: the streams of what was revoked end, and no others; whoever showed nothing
// to the hub costs no question.
func TestGuests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, next := &fakeHub{revoked: make(map[bus.Credential]bool)}, &stays{}
		g := newGuests(next, h.ask, slog.New(slog.DiscardHandler))
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { g.run(ctx) })
		defer wg.Wait()
		defer cancel()
		open := func(r Request) Stream {
			t.Helper()
			s, err := g.Open(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		open(by(identity.KindClient, "alice", "")) // of the credentials file
		time.Sleep(time.Minute)
		if h.asked != 0 {
			t.Errorf("%d questions for nobody", h.asked)
		}

		carried := make(chan error, 1)
		first := open(by(identity.KindRobot, "ci", "t1"))
		go func() { _, err := first.Carry(nil, nil); carried <- err }()
		open(by(identity.KindRobot, "ci", "t1"))
		open(by(identity.KindRobot, "ci", "t2"))
		open(by(identity.KindUser, "ci", "t1"))
		gone := open(by(identity.KindRobot, "ci", "t3"))
		_ = gone.Close()
		time.Sleep(time.Minute)
		h.revoke(bus.Credential{Kind: "robot", Name: "ci", Item: "t1"})
		begin := time.Now()
		err := <-carried
		if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeUnauthenticated || f.Leg != wire.LegClient {
			t.Errorf("the stream ended with %v", err)
		}
		if took := time.Since(begin); took > guestLook {
			t.Errorf("it ended after %s", took)
		}
		synctest.Wait()
		for i, want := range []bool{false, true, true, false, false, true} {
			if next.all[i].ended() != want {
				t.Errorf("stream %d: ended %v, want %v", i, !want, want)
			}
		}
		if len(g.live) != 2 {
			t.Errorf("%d credentials are remembered, want 2: %v", len(g.live), g.live)
		}
		// A login that is still remembered opens another one.
		late := open(by(identity.KindRobot, "ci", "t1"))
		begin = time.Now()
		if _, err := late.Carry(nil, nil); err == nil || time.Since(begin) > guestLook {
			t.Errorf("a stream on a revoked token: %v after %s", err, time.Since(begin))
		}
	})
}

// TestGuestsAreAskedForInPieces: thousands of tokens are asked for, and all of their
// streams end when the hub is there again after it was not.
func TestGuestsAreAskedForInPieces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, next := &fakeHub{revoked: make(map[bus.Credential]bool), broken: errors.New("no hub")}, &stays{}
		g := newGuests(next, h.ask, slog.New(slog.DiscardHandler))
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { g.run(ctx) })
		defer wg.Wait()
		defer cancel()
		const many = 1000
		for i := range many {
			item := fmt.Sprint("t", i)
			if _, err := g.Open(ctx, by(identity.KindRobot, "ci", item)); err != nil {
				t.Fatal(err)
			}
			h.revoke(bus.Credential{Kind: "robot", Name: "ci", Item: item})
		}
		time.Sleep(time.Minute)
		h.mu.Lock()
		h.broken = nil
		h.mu.Unlock()
		time.Sleep(guestLook)
		synctest.Wait()
		for i, s := range next.all {
			if !s.ended() {
				t.Fatalf("stream %d did not end", i)
			}
		}
		if h.most > bus.MaxCredentials {
			t.Errorf("%d credentials in one question", h.most)
		}
	})
}
