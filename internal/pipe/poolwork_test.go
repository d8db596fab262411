package pipe_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// runPool runs a pool, and its keeper, until stop.
func runPool(cfg pipe.PoolConfig) (p *pipe.Pool, stop func()) {
	cfg.Keeper = pipe.NewKeeper()
	p = pipe.NewPool(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = cfg.Keeper.Run(ctx) })
	return p, func() { cancel(); wg.Wait() }
}

// TestPoolBacksOff has an agent that cannot be reached for an hour.
func TestPoolBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		var rounds atomic.Int64
		unreachable := wire.Fail(wire.LegAgent, wire.CodeNoAgent, "nobody is there")
		p, stop := runPool(pipe.PoolConfig{Join: func(_ context.Context, n int, deliver func(*pipe.Pipe, error)) {
			rounds.Add(1)
			for range n {
				wg.Go(func() { time.Sleep(time.Millisecond); deliver(nil, unreachable) })
			}
		}})
		time.Sleep(time.Hour)
		if n := rounds.Swap(0); n < 200 || n > 600 {
			t.Errorf("%d attempts to be warm in an hour; want one every 7.5 to 15 s or a bit more", n)
		}

		// Many clients ask at once, again and again: they hear why, at once, and
		// the relay hears little of it.
		for range 1000 {
			if _, err := p.Get(t.Context()); !errors.Is(err, unreachable) {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := rounds.Load(); n < 2 || n > 8 {
			t.Errorf("%d rounds of joins for 1000 requests in a second; want about 5", n)
		}
		stop()
		wg.Wait()
	})
}

// TestPoolRecoversAtOnce: what was learned in bad times does not hold up the good.
func TestPoolRecoversAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := pipetest.NewWorld(t)
		var wg sync.WaitGroup
		var up atomic.Bool
		var far []*pipe.Pipe
		p, stop := runPool(pipe.PoolConfig{Join: func(_ context.Context, n int, deliver func(*pipe.Pipe, error)) {
			for range n {
				if !up.Load() {
					wg.Go(func() { deliver(nil, errors.New("down")) })
					continue
				}
				client, server, _, _ := memoryPipe(t, w)
				far = append(far, server)
				wg.Go(func() { deliver(client, nil) })
			}
		}})
		time.Sleep(10*time.Minute + pipe.BeatInterval/2) // between two attempts to be warm, not in one
		up.Store(true)
		q, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Put(q, true)
		time.Sleep(pipe.BeatInterval + 100*time.Millisecond)
		if s := p.Stats(); s.Idle < 2 {
			t.Errorf("not warm after the first success: %+v", s)
		}
		stop()
		wg.Wait()
		for _, q := range far {
			q.Close()
		}
	})
}

// TestPoolKeepsCount lets many borrow pipes that come late, fail to come, come back
// clean or spoilt, or die while they are idle, and counts in the end.
func TestPoolKeepsCount(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			r := &lockedRand{r: rand.New(rand.NewPCG(seed, 1))}
			w := pipetest.NewWorld(t)
			var wg sync.WaitGroup
			var mu sync.Mutex
			var near, far []*pipe.Pipe
			agent := pipe.NewKeeper() // an agent's, so that idle pipes hear from it
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() { _ = agent.Run(ctx) })
			p, stop := runPool(pipe.PoolConfig{MaxPipes: 12, MinIdle: 2, IdleTimeout: 5 * time.Second,
				Join: func(ctx context.Context, n int, deliver func(*pipe.Pipe, error)) {
					for range n {
						wg.Go(func() {
							time.Sleep(r.upTo(300 * time.Millisecond))
							if ctx.Err() != nil || r.one(4) {
								deliver(nil, errors.New("bad luck"))
								return
							}
							client, server, _, _ := memoryPipe(t, w)
							agent.Watch(server)
							mu.Lock()
							near, far = append(near, client), append(far, server)
							mu.Unlock()
							deliver(client, nil)
						})
					}
				}})
			served, timedOut := 0, 0
			var clients sync.WaitGroup
			for range 40 {
				clients.Go(func() {
					for range 5 {
						time.Sleep(r.upTo(2 * time.Second))
						limit := r.upTo(400 * time.Millisecond)
						ctx, cancel := context.WithTimeout(context.Background(), limit)
						begin := time.Now()
						q, err := p.Get(ctx)
						cancel()
						if took := time.Since(begin); took > limit+50*time.Millisecond { // idle pipes are looked at, a millisecond each
							t.Errorf("asked for %s and waited %s", limit, took)
						}
						mu.Lock()
						if err != nil {
							timedOut++
						} else {
							served++
						}
						mu.Unlock()
						if err != nil {
							continue
						}
						time.Sleep(r.upTo(time.Second))
						p.Put(q, !r.one(3))
					}
				})
			}
			clients.Go(func() { // pipes die at any time
				for range 20 {
					time.Sleep(r.upTo(500 * time.Millisecond))
					mu.Lock()
					if len(far) > 0 {
						far[r.upTo(time.Duration(len(far)))].Close()
					}
					mu.Unlock()
				}
			})
			clients.Wait()
			time.Sleep(time.Minute)
			s := p.Stats()
			for range 10 { // a pipe that is being looked at counts as busy
				if s.Busy > 0 {
					time.Sleep(3 * time.Millisecond)
					s = p.Stats()
				}
			}
			if s.Busy != 0 || s.Joining != 0 || s.Idle != 2 {
				t.Errorf("seed %d: nobody has a pipe, and the pool counts %+v", seed, s)
			}
			if served == 0 || served+timedOut != 200 {
				t.Errorf("seed %d: %d were served and %d not", seed, served, timedOut)
			}
			stop()
			cancel()
			wg.Wait()
			for _, q := range near {
				if q.Dead() == nil {
					t.Errorf("seed %d: a pipe outlived its pool", seed)
				}
			}
		})
	}
}

type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (l *lockedRand) upTo(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.r.Int64N(int64(d)))
}

func (l *lockedRand) one(in int) bool { return l.upTo(time.Duration(in)) == 0 }

func TestKeeperClosesWhatComesTooLate(t *testing.T) {
	w := pipetest.NewWorld(t)
	client, _ := w.Pair(t, nil)
	k := pipe.NewKeeper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = k.Run(ctx)
	k.Watch(client)
	if client.Dead() == nil {
		t.Error("a pipe that nobody watches lives")
	}
}
