package pipe_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/wire"
)

// memoryPipe makes a pipe over an in-memory connection, for tests whose time is
// synthetic.
func memoryPipe(t *testing.T, w *pipetest.World) (client, server *pipe.Pipe, a, b *testnet.PairConn) {
	t.Helper()
	a, b = testnet.Pair(1 << 16)
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { server, serverErr = pipe.Server(t.Context(), b, w.ServerConfig(), w.Buffers) })
	client, err := pipe.Client(t.Context(), a, w.ClientConfig(), w.Buffers)
	wg.Wait()
	if err != nil || serverErr != nil {
		t.Fatalf("client %v, server %v", err, serverErr)
	}
	return client, server, a, b
}

func TestKeeperKeepsAnIdlePipeAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _, _ := memoryPipe(t, pipetest.NewWorld(t))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, p := range []*pipe.Pipe{client, server} {
			k := pipe.NewKeeper()
			k.Watch(p)
			wg.Go(func() { _ = k.Run(ctx) })
			wg.Go(func() { _, _ = p.Next() })
		}
		time.Sleep(10 * time.Minute)
		if f := errors.Join(asError(client.Dead()), asError(server.Dead())); f != nil {
			t.Errorf("an idle pipe died: %v", f)
		}
		cancel()
		wg.Wait()
	})
}

func TestKeeperFindsAFrozenPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _, b := memoryPipe(t, pipetest.NewWorld(t))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		k := pipe.NewKeeper()
		k.Watch(client)
		wg.Go(func() { _ = k.Run(ctx) })
		b.SetReadBlock(true) // the peer neither reads nor writes, and sends no end
		start := time.Now()
		_, err := client.Next()
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != wire.CodeLost {
			t.Errorf("got %v, want CodeLost", err)
		}
		if took := time.Since(start); took >= 10*time.Second || took < 6*time.Second {
			t.Errorf("it took %s to find", took)
		}
		cancel()
		wg.Wait()
		b.SetReadBlock(false)
		server.Close()
	})
}

// TestKeeperSparesASlowReader has a side that does not read for an hour, because
// its client does not: neither side may give the pipe up.
func TestKeeperSparesASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _, _ := memoryPipe(t, pipetest.NewWorld(t))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, p := range []*pipe.Pipe{client, server} {
			k := pipe.NewKeeper()
			k.Watch(p)
			wg.Go(func() { _ = k.Run(ctx) })
		}
		wg.Go(func() { // the fast side writes until it is held back, and reads what comes
			payload := make([]byte, wire.MaxPayloadLen)
			var offset uint64
			for {
				if _, err := server.Send(wire.Append(nil, wire.FrameData, 0, offset, payload)); err != nil {
					return
				}
				offset += uint64(len(payload))
			}
		})
		wg.Go(func() { _, _ = server.Next() })
		time.Sleep(time.Hour)
		if f := errors.Join(asError(client.Dead()), asError(server.Dead())); f != nil {
			t.Errorf("a slow reader was cut off: %v", f)
		}
		cancel()
		wg.Wait()
	})
}

func TestPing(t *testing.T) {
	w := pipetest.NewWorld(t)
	client, server := w.Pair(t, nil)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = server.Next() })
	if rtt, err := client.Ping(t.Context()); err != nil || rtt <= 0 {
		t.Errorf("ping: %v, %v", rtt, err)
	}
	if err := client.Poll(); err != pipe.ErrIdle {
		t.Errorf("after a ping: %v", err)
	}
	client.Close()
	wg.Wait()
	if _, err := client.Ping(t.Context()); err == nil {
		t.Error("a dead pipe answered")
	}
}

func asError(f *wire.Failure) error {
	if f == nil {
		return nil
	}
	return f
}
