package stream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/wire"
)

// memoryWorld is a world whose time is synthetic: a pipe over memory, with a keeper
// and a host at each end.
type memoryWorld struct {
	world
	near, far *freezing // under the ends of the pipe
	stop      func()
}

// freezing is one end of a network that can freeze: then a close is not heard at
// the other end either.
type freezing struct {
	*testnet.PairConn
	frozen, closed atomic.Bool
}

func (c *freezing) freeze(on bool) {
	c.frozen.Store(on)
	c.SetReadBlock(on)
}

func (c *freezing) Close() error {
	c.closed.Store(true)
	if c.frozen.Load() {
		return c.SetDeadline(time.Unix(1, 0))
	}
	return c.PairConn.Close()
}

func (c *freezing) Read(b []byte) (int, error)  { return c.do(c.PairConn.Read, b) }
func (c *freezing) Write(b []byte) (int, error) { return c.do(c.PairConn.Write, b) }

func (c *freezing) do(f func([]byte) (int, error), b []byte) (int, error) {
	n, err := f(b)
	if c.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

func newMemoryWorld(t *testing.T) *memoryWorld {
	t.Helper()
	w := &memoryWorld{world: world{World: pipetest.NewWorld(t)}}
	a, b := testnet.Pair(256 << 10)
	w.near, w.far = &freezing{PairConn: a}, &freezing{PairConn: b}
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { w.server, serverErr = pipe.Server(t.Context(), w.far, w.ServerConfig(), w.Buffers) })
	var err error
	w.client, err = pipe.Client(t.Context(), w.near, w.ClientConfig(), w.Buffers)
	wg.Wait()
	if err := errors.Join(err, serverErr); err != nil {
		t.Fatal(err)
	}
	w.clientHost, w.serverHost = newHost(w.Buffers), newHost(w.Buffers)
	ctx, cancel := context.WithCancel(context.Background())
	var keepers sync.WaitGroup
	for _, p := range []*pipe.Pipe{w.client, w.server} {
		k := pipe.NewKeeper()
		k.Watch(p)
		keepers.Go(func() { _ = k.Run(ctx) })
	}
	w.stop = func() {
		w.freeze(false)
		cancel()
		keepers.Wait()
		w.clientHost.wg.Wait()
		w.serverHost.wg.Wait()
	}
	return w
}

// freeze stops every byte on the way, without an end.
func (w *memoryWorld) freeze(on bool) {
	w.near.freeze(on)
	w.far.freeze(on)
}

// side is one end of a stream, carried to a local connection.
type side struct {
	local *testnet.PairConn // the client's, or the target's, end
	err   error             // of Carry
	took  time.Duration     // until Carry returned
	done  chan struct{}
}

func carried(s *stream.Stream, leg wire.Leg) *side {
	local, inner := testnet.Pair(64 << 10)
	c := &side{local: local, done: make(chan struct{})}
	begin := time.Now()
	go func() {
		defer close(c.done)
		_, c.err = s.Carry(inner, nil, leg)
		c.took = time.Since(begin)
	}()
	return c
}

// pour writes until it is stopped; now and then it pauses, for synthetic time goes
// on only while everybody waits.
func pour(c io.Writer) {
	b := make([]byte, 100_000)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestFrozenPipeIsFound freezes the network under streams that do this and that:
// both sides find out in less than ten seconds, and say that the pipe was lost.
func TestFrozenPipeIsFound(t *testing.T) {
	for name, prepare := range map[string]func(client, target *side, wg *sync.WaitGroup){
		"idle":       func(*side, *side, *sync.WaitGroup) {},
		"uploading":  func(client, _ *side, wg *sync.WaitGroup) { wg.Go(func() { pour(client.local) }) },
		"download":   func(_, target *side, wg *sync.WaitGroup) { wg.Go(func() { pour(target.local) }) },
		"both ways":  func(c, s *side, wg *sync.WaitGroup) { wg.Go(func() { pour(c.local) }); wg.Go(func() { pour(s.local) }) },
		"client end": func(client, _ *side, _ *sync.WaitGroup) { _ = client.local.CloseWrite() },
		"target end": func(_, target *side, _ *sync.WaitGroup) { _ = target.local.CloseWrite() },
		"target end, uploading": func(client, target *side, wg *sync.WaitGroup) {
			_ = target.local.CloseWrite()
			wg.Go(func() { pour(client.local) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newMemoryWorld(t)
				c, s := w.open(t)
				client, target := carried(c, wire.LegClient), carried(s, wire.LegTarget)
				var wg sync.WaitGroup
				prepare(client, target, &wg)
				for _, e := range []*side{client, target} { // everybody reads
					wg.Go(func() { _, _ = io.Copy(io.Discard, e.local) })
				}
				time.Sleep(2 * time.Second)
				w.freeze(true)
				frozen := time.Now()
				for name, e := range map[string]*side{"client": client, "target": target} {
					select {
					case <-e.done:
					case <-time.After(time.Minute):
						t.Errorf("the %s's side has not found out after a minute", name)
						continue
					}
					if took := time.Since(frozen); took >= 10*time.Second {
						t.Errorf("the %s's side found out after %s", name, took)
					}
					var f *wire.Failure
					if !errors.As(e.err, &f) || f.Code != wire.CodeLost {
						t.Errorf("the %s's side ended with %v; want CodeLost", name, e.err)
					}
				}
				w.stop()
				_, _ = client.local.Close(), target.local.Close()
				<-client.done
				<-target.done
				wg.Wait()
			})
		})
	}
}

// TestQuietStreamLives keeps streams for an hour over which little passes, or
// nothing, and nothing is wrong.
func TestQuietStreamLives(t *testing.T) {
	for name, prepare := range map[string]func(client, target *side, wg *sync.WaitGroup){
		"idle":             func(*side, *side, *sync.WaitGroup) {},
		"client end":       func(client, _ *side, _ *sync.WaitGroup) { _ = client.local.CloseWrite() },
		"target end":       func(_, target *side, _ *sync.WaitGroup) { _ = target.local.CloseWrite() },
		"client reads not": func(_, target *side, wg *sync.WaitGroup) { wg.Go(func() { pour(target.local) }) },
		"target reads not": func(client, _ *side, wg *sync.WaitGroup) { wg.Go(func() { pour(client.local) }) },
		"target end, and reads not": func(client, target *side, wg *sync.WaitGroup) {
			_ = target.local.CloseWrite()
			wg.Go(func() { pour(client.local) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newMemoryWorld(t)
				c, s := w.open(t)
				client, target := carried(c, wire.LegClient), carried(s, wire.LegTarget)
				var wg sync.WaitGroup
				prepare(client, target, &wg)
				time.Sleep(time.Hour)
				select {
				case <-client.done:
					t.Errorf("cut after %s: %v", client.took, client.err)
				case <-target.done:
					t.Errorf("cut after %s: %v", target.took, target.err)
				default:
				}
				_, _ = client.local.Close(), target.local.Close()
				<-client.done
				<-target.done
				w.stop()
				wg.Wait()
			})
		})
	}
}
