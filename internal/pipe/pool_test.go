package pipe_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// meetingPlace makes pipes for a pool and serves their other ends.
type meetingPlace struct {
	*pipetest.World
	t      *testing.T
	wg     sync.WaitGroup
	joined atomic.Int64
	fail   atomic.Pointer[wire.Failure]

	mu   sync.Mutex
	ends []*pipe.Pipe
}

func (m *meetingPlace) join(ctx context.Context, n int, deliver func(*pipe.Pipe, error)) {
	for range n {
		m.wg.Go(func() {
			if f := m.fail.Load(); f != nil {
				deliver(nil, f)
				return
			}
			client, server, err := m.Connect(nil)
			if err != nil {
				m.t.Error(err)
				deliver(nil, err)
				return
			}
			m.joined.Add(1)
			m.mu.Lock()
			m.ends = append(m.ends, server)
			m.mu.Unlock()
			m.wg.Go(func() { _, _ = server.Next() }) // an agent waits for OPEN
			deliver(client, nil)
		})
	}
}

func (m *meetingPlace) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.ends {
		p.Close()
	}
	m.ends = nil
}

func newPool(t *testing.T, cfg pipe.PoolConfig) (*pipe.Pool, *meetingPlace) {
	m := &meetingPlace{World: pipetest.NewWorld(t), t: t}
	cfg.Join, cfg.Keeper = m.join, pipe.NewKeeper()
	p := pipe.NewPool(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = cfg.Keeper.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); m.cut(); m.wg.Wait() })
	return p, m
}

func TestPoolReusesTheWarmest(t *testing.T) {
	p, m := newPool(t, pipe.PoolConfig{})
	a, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.Put(a, true)
	b, err := p.Get(t.Context())
	if err != nil || a != b {
		t.Errorf("got another pipe than the one just returned (%v)", err)
	}
	p.Put(b, false)
	c, err := p.Get(t.Context())
	if err != nil || c == b {
		t.Errorf("got a pipe that did not end properly (%v)", err)
	}
	p.Put(c, true)
	if n := m.joined.Load(); n > 8 {
		t.Errorf("%d pipes were joined for one at a time", n)
	}
}

func TestPoolServesABurst(t *testing.T) {
	p, _ := newPool(t, pipe.PoolConfig{})
	const n = 40
	var wg sync.WaitGroup
	pipes := make([]*pipe.Pipe, n)
	for i := range n {
		wg.Go(func() {
			var err error
			if pipes[i], err = p.Get(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := make(map[*pipe.Pipe]bool)
	for _, q := range pipes {
		if seen[q] {
			t.Error("a pipe was lent twice")
		}
		seen[q] = true
		p.Put(q, true)
	}
	if s := p.Stats(); s.Busy != 0 || s.Idle < n {
		t.Errorf("after the burst: %+v", s)
	}
}

func TestPoolFindsDeadPipesBeforeItLendsThem(t *testing.T) {
	p, m := newPool(t, pipe.PoolConfig{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			q, err := p.Get(t.Context())
			if err == nil {
				p.Put(q, true)
			}
		})
	}
	wg.Wait()
	m.cut()
	time.Sleep(50 * time.Millisecond) // for the FINs to arrive: nothing tells when they have
	q, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Send(wire.Append(nil, wire.FramePing, 0, 0, nil)); err != nil || q.Poll() != pipe.ErrIdle {
		t.Errorf("lent a dead pipe: %v", err)
	}
	p.Put(q, true)
}

func TestPoolPassesOnWhyThereIsNone(t *testing.T) {
	p, m := newPool(t, pipe.PoolConfig{})
	if _, err := p.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := wire.Fail(wire.LegAgent, wire.CodeOverloaded, "enough is enough")
	m.fail.Store(want)
	var err error
	for err == nil {
		_, err = p.Get(t.Context())
	}
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeOverloaded {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestPoolBounds(t *testing.T) {
	p, _ := newPool(t, pipe.PoolConfig{MaxPipes: 3})
	for range 3 {
		if _, err := p.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.Get(t.Context())
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeOverloaded {
		t.Errorf("a fourth pipe of three: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := p.Get(ctx); err == nil {
		t.Error("a fourth pipe of three, with a time limit")
	}
}

// TestPoolTellsWhetherItIsSound: a pool is sound once it has joined a pipe, no more when
// it has none and could not join one, and again when it can.
func TestPoolTellsWhetherItIsSound(t *testing.T) {
	p := pipe.NewPool(pipe.PoolConfig{})
	if p.Sound() {
		t.Error("a pool that has joined nothing yet is sound")
	}
	p, m := newPool(t, pipe.PoolConfig{})
	q, err := p.Get(t.Context())
	if err != nil || !p.Sound() {
		t.Errorf("a pool that lends a pipe is not sound (%v)", err)
	}
	m.fail.Store(wire.Fail(wire.LegAgent, wire.CodeNoAgent, "nobody is there"))
	p.Put(q, false)
	for err == nil {
		_, err = p.Get(t.Context())
	}
	if p.Sound() {
		t.Error("a pool that can join none is sound")
	}
	m.fail.Store(nil)
	for err != nil {
		q, err = p.Get(t.Context())
	}
	if !p.Sound() {
		t.Error("a pool that joins again is not sound")
	}
	p.Put(q, true)
}
