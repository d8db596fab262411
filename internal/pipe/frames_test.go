package pipe_test

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// fill sends DATA until the network takes no more at once, and then what is left
// of the last frame never gets a chance: from here on the sender is idle.
func fill(t *testing.T, p *pipe.Pipe) (sent int) {
	t.Helper()
	payload := make([]byte, 1000) // small frames, so that the last one ends near the brim
	var offset uint64
	for {
		_ = p.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		accepted, err := p.Send(wire.Append(nil, wire.FrameData, 0, offset, payload))
		if accepted {
			offset += uint64(len(payload))
			sent++
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sent
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// drain reads DATA frames until none has come for a while.
func drain(p *pipe.Pipe, patience time.Duration) (frames int, err error) {
	buf := make([]byte, wire.MaxPayloadLen)
	for {
		_ = p.SetReadDeadline(time.Now().Add(patience))
		h, err := p.Next()
		if err != nil {
			return frames, err
		}
		for n := 0; n < h.Length; {
			m, err := p.Read(buf[:h.Length-n])
			if err != nil {
				return frames, err
			}
			n += m
		}
		frames++
	}
}

// TestSignsOfLifeAfterAFullNetwork has a sender whose last bytes did not fit into
// the network, and who has nothing more to say. When the slow reader has caught up
// it must get those bytes, and signs of life: else it would take the pipe for dead.
func TestSignsOfLifeAfterAFullNetwork(t *testing.T) {
	for name, deadline := range map[string]time.Time{"no deadline": {}, "a deadline that has passed": time.Unix(1, 0)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := pipetest.NewWorld(t)
			client, server := w.Pair(t, nil)
			sent := fill(t, client)
			_ = client.SetWriteDeadline(deadline)
			k := pipe.NewKeeper()
			k.Watch(client)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = k.Run(ctx) })
			frames, err := drain(server, 3*pipe.BeatInterval)
			if frames != sent || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d frames of %d arrived, then %v", frames, sent, err)
			}
			cancel()
			wg.Wait()
		})
	}
}

// TestBrokenPipeIsNoEnd: whoever asks with errors.Is must not take a broken pipe
// for the end of a stream.
func TestBrokenPipeIsNoEnd(t *testing.T) {
	w := pipetest.NewWorld(t)
	client, server := w.Pair(t, nil)
	server.Close()
	_, err := client.Next()
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.CodeLost || errors.Is(err, io.EOF) {
		t.Errorf("error %v; want CodeLost and not io.EOF", err)
	}
}
