package pipe_test

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// expect reads a frame with the given payload.
func expect(t *testing.T, p *pipe.Pipe, kind wire.FrameType, payload []byte) {
	t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(10 * time.Second))
	h, err := p.Next()
	if err != nil || h.Type != kind || h.Length != len(payload) {
		t.Fatalf("got %+v, %v; want %s of %d bytes", h, err, kind, len(payload))
	}
	got := make([]byte, h.Length)
	for n := 0; n < len(got); {
		m, err := p.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if !bytes.Equal(got, payload) {
		t.Fatalf("%s: payload differs", kind)
	}
}

// TestHold: what is held arrives with what follows, and by itself when nothing
// does, in order and once, whatever the kind of connection and the length.
func TestHold(t *testing.T) {
	held := []byte("192.0.2.1:80")
	opened := wire.Append(nil, wire.FrameOpened, 0, 0, held)
	run := func(t *testing.T, sender, receiver *pipe.Pipe) {
		for _, n := range []int{0, 1, 20 << 10, wire.MaxPayloadLen} {
			if accepted, err := sender.Hold(opened); !accepted || err != nil {
				t.Fatal(accepted, err)
			}
			if n > 0 {
				payload := bytes.Repeat([]byte{byte(n)}, n)
				var wg sync.WaitGroup
				wg.Go(func() { // it may wait for the receiver
					if accepted, err := sender.Send(wire.Append(nil, wire.FrameData, 0, 0, payload)); !accepted || err != nil {
						t.Error(accepted, err)
					}
				})
				expect(t, receiver, wire.FrameOpened, held)
				expect(t, receiver, wire.FrameData, payload)
				wg.Wait()
				continue
			}
			expect(t, receiver, wire.FrameOpened, held)
		}
		for range 2 { // one held frame pushes the other
			if _, err := sender.Hold(opened); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, receiver, wire.FrameOpened, held)
		expect(t, receiver, wire.FrameOpened, held)
		sender.Close()
		if accepted, err := sender.Hold(opened); accepted || err == nil {
			t.Errorf("a closed pipe holds: %v, %v", accepted, err)
		}
		receiver.Close()
	}
	t.Run("sockets", func(t *testing.T) {
		client, server := pipetest.NewWorld(t).Pair(t, nil)
		run(t, server, client)
	})
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server, _, _ := memoryPipe(t, pipetest.NewWorld(t))
			run(t, server, client)
		})
	})
}

// TestHoldTravelsAlong counts the writes: a held frame costs none of its own.
func TestHoldTravelsAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _, _ := memoryPipe(t, pipetest.NewWorld(t))
		start := time.Now()
		if _, err := server.Hold(wire.Append(nil, wire.FrameOpened, 0, 0, []byte("x"))); err != nil {
			t.Fatal(err)
		}
		if server.Flushed() {
			t.Error("the frame did not wait")
		}
		if _, err := server.Send(wire.Append(nil, wire.FrameData, 0, 0, []byte("y"))); err != nil {
			t.Fatal(err)
		}
		expect(t, client, wire.FrameOpened, []byte("x"))
		expect(t, client, wire.FrameData, []byte("y"))
		if d := time.Since(start); d != 0 {
			t.Errorf("both came after %s", d)
		}
		server.Close()
		client.Close()
	})
}
