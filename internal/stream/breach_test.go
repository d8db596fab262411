package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/wire"
)

// frames puts frames one after the other.
func frames(fs ...[]byte) []byte { return bytes.Join(fs, nil) }

func data(offset uint64, text string) []byte {
	return wire.Append(nil, wire.FrameData, 0, offset, []byte(text))
}

func eof(offset uint64) []byte { return wire.Append(nil, wire.FrameEOF, 0, offset, nil) }

// header is a frame's header whose length may lie.
func header(typ wire.FrameType, length int) []byte {
	b := make([]byte, wire.HeaderLen)
	wire.Header{Type: typ, Length: length}.Put(b)
	return b
}

// TestBreaches has a peer that does not keep to the protocol. The stream fails with
// that, what was right before it counts, and nobody uses the pipe any more.
func TestBreaches(t *testing.T) {
	base := pipetest.NewWorld(t)
	opened := wire.Append(nil, wire.FrameOpened, 0, 0, []byte("192.0.2.1:80"))
	for name, tt := range map[string]struct {
		say  []byte
		read string // what arrives before the breach
	}{
		"a byte twice":           {frames(data(0, "abc"), data(2, "cd")), "abc"},
		"a byte left out":        {frames(data(0, "abc"), data(4, "e")), "abc"},
		"far ahead":              {data(math.MaxUint64, "x"), ""},
		"an end too early":       {frames(data(0, "abc"), eof(2)), "abc"},
		"an end too late":        {frames(data(0, "abc"), eof(4)), "abc"},
		"opened twice":           {opened, ""},
		"refused when open":      {wire.Append(nil, wire.FrameRefused, 0, 0, wire.Fail(wire.LegTCP, wire.CodeRefused, "no").Append(nil)), ""},
		"OPEN within a stream":   {frames(data(0, "abc"), wire.Append(nil, wire.FrameOpen, 0, 0, wire.Open{Target: "kubernetes"}.Append(nil))), "abc"},
		"RESUME":                 {wire.Append(nil, wire.FrameResume, 0, 0, make([]byte, 16)), ""},
		"no frame at all":        {bytes.Repeat([]byte{0xff}, 100), ""},
		"unknown type":           {header(11, 0), ""},
		"a frame too long":       {header(wire.FrameData, wire.MaxPayloadLen+1), ""},
		"an empty DATA":          {header(wire.FrameData, 0), ""},
		"RESET without a reason": {header(wire.FrameReset, 0), ""},
		"RESET with nonsense":    {frames(header(wire.FrameReset, 5), []byte("xxxxx")), ""},
		"RESET that is too long": {header(wire.FrameReset, 60_000), ""},
		"EOF with a payload":     {frames(header(wire.FrameEOF, 1), []byte("x")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, carried := range []bool{false, true} {
				w := &world{World: base}
				w.client, w.server = base.Pair(t, nil)
				w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := stream.Accept(w.server); err != nil {
						t.Error(err)
					}
					_, _ = w.server.Send(frames(opened, tt.say))
					_, _ = w.server.Next() // until the other side gives up
				})
				c, err := stream.Open(t.Context(), w.client, wire.Open{Target: "kubernetes"}, nil, w.clientHost)
				if err != nil {
					t.Fatal(err)
				}
				var got []byte
				if carried {
					near, local := pipetest.TCPPair(t, nil)
					wg.Go(func() { got, _ = io.ReadAll(near) })
					_, err = c.Carry(local, nil, wire.LegClient)
					// A reset may overtake what came before it.
				} else {
					if got, err = io.ReadAll(c); string(got) != tt.read {
						t.Errorf("read %q; want %q", got, tt.read)
					}
					_ = c.Close()
				}
				var f *wire.Failure
				if !errors.As(err, &f) || f.Code != wire.CodeProtocol {
					t.Errorf("carried %v: %v; want CodeProtocol", carried, err)
				}
				wg.Wait()
				if !bytes.HasPrefix([]byte(tt.read), got) {
					t.Errorf("%q came out; want a beginning of %q", got, tt.read)
				}
				if <-w.clientHost.done || w.client.Dead() == nil {
					t.Error("the pipe is used on")
				}
			}
		})
	}
}

// TestBreachesAfterTheEnd: what comes after the peer's end, while this side still
// sends, is a breach too; but for what may come.
func TestBreachesAfterTheEnd(t *testing.T) {
	base := pipetest.NewWorld(t)
	for name, tt := range map[string]struct {
		say  []byte
		code wire.Code // CodeNone: nothing is wrong
	}{
		"more":           {data(0, "x"), wire.CodeProtocol},
		"another end":    {eof(0), wire.CodeProtocol},
		"a reset":        {wire.Append(nil, wire.FrameReset, 0, 0, wire.Fail(wire.LegTarget, wire.CodeReset, "boom").Append(nil)), wire.CodeReset},
		"a sign of life": {wire.Append(nil, wire.FramePing, 0, 0, nil), wire.CodeNone},
		"an ACK":         {wire.Append(nil, wire.FrameAck, 0, 3, nil), wire.CodeNone},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{World: base}
			w.client, w.server = base.Pair(t, nil)
			w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
			c, _ := w.open(t)
			near, local := pipetest.TCPPair(t, nil)
			var wg sync.WaitGroup
			var err error
			wg.Go(func() { _, err = c.Carry(local, nil, wire.LegClient) })
			if _, err := w.server.Send(eof(0)); err != nil {
				t.Fatal(err)
			}
			if _, err := near.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("the client got %v; want the end", err)
			}
			if _, err := w.server.Send(tt.say); err != nil {
				t.Fatal(err)
			}
			if tt.code == wire.CodeNone {
				_ = near.(*net.TCPConn).CloseWrite()
				if h, err := w.server.Next(); err != nil || h.Type != wire.FrameEOF {
					t.Errorf("the peer got %v, %v; want EOF", h.Type, err)
				}
			}
			wg.Wait()
			var f *wire.Failure
			switch {
			case tt.code == wire.CodeNone && err != nil:
				t.Errorf("it ended with %v", err)
			case tt.code != wire.CodeNone && (!errors.As(err, &f) || f.Code != tt.code):
				t.Errorf("it ended with %v; want %v", err, tt.code)
			}
			if clean := <-w.clientHost.done; clean != (tt.code == wire.CodeNone) {
				t.Errorf("the pipe came back clean: %v", clean)
			}
			_ = near.Close()
		})
	}
}

// TestNextOpenComesEarly asks for the next stream as soon as one has ended for the
// proxy: the agent, which watches its pipe until its own side is done, finds the OPEN
// where it was.
func TestNextOpenComesEarly(t *testing.T) {
	w := newWorld(t)
	const n = 200
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			in, err := stream.Accept(w.server)
			if err != nil {
				t.Error(err)
				return
			}
			s, err := in.Accept("192.0.2.1:80", w.serverHost)
			if err != nil {
				t.Error(err)
				return
			}
			target, local := testnet.Pair(1 << 10)
			wg.Go(func() { // it ends when the client has
				_, _ = io.Copy(io.Discard, target)
				_, _ = target.Write([]byte("bye"))
				_ = target.CloseWrite()
			})
			if _, err := s.Carry(local, nil, wire.LegTarget); err != nil || !<-w.serverHost.done {
				t.Errorf("not clean: %v", err)
				return
			}
		}
	})
	for range n {
		c, err := stream.Open(t.Context(), w.client, wire.Open{Target: "kubernetes"}, nil, w.clientHost)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
			t.Fatalf("got %q, %v", got, err)
		}
		_ = c.Close()
		if !<-w.clientHost.done {
			t.Fatal("not clean")
		}
	}
	wg.Wait()
}

// TestBadAnswers has an agent that answers OPEN with something else.
func TestBadAnswers(t *testing.T) {
	base := pipetest.NewWorld(t)
	for name, tt := range map[string]struct {
		say  []byte
		code wire.Code
	}{
		"DATA":                {data(0, "x"), wire.CodeProtocol},
		"EOF":                 {eof(0), wire.CodeProtocol},
		"OPEN":                {wire.Append(nil, wire.FrameOpen, 0, 0, wire.Open{Target: "kubernetes"}.Append(nil)), wire.CodeProtocol},
		"a long address":      {header(wire.FrameOpened, wire.MaxAddressLen+1), wire.CodeProtocol},
		"a refusal cut short": {frames(header(wire.FrameRefused, 3), []byte{1, 0, 1}), wire.CodeProtocol},
		"nothing":             {nil, wire.CodeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := base.Pair(t, nil)
			h := newHost(base.Buffers)
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := stream.Accept(server); err != nil {
					t.Error(err)
				}
				if tt.say != nil {
					_, _ = server.Send(tt.say)
				}
				_, _ = server.Next()
				server.Close()
			})
			o := wire.Open{Target: "kubernetes"}
			if tt.say == nil {
				o.LimitMillis = 1
			}
			_, err := stream.Open(t.Context(), client, o, nil, h)
			var f *wire.Failure
			if !errors.As(err, &f) || f.Code != tt.code {
				t.Errorf("got %v; want %v", err, tt.code)
			}
			wg.Wait()
			if <-h.done {
				t.Error("the pipe came back clean")
			}
			h.wg.Wait()
		})
	}
}

// TestBadQuestions has a proxy that begins with something else than a proper OPEN.
func TestBadQuestions(t *testing.T) {
	base := pipetest.NewWorld(t)
	for name, say := range map[string][]byte{
		"DATA":          data(0, "x"),
		"EOF":           eof(0),
		"OPENED":        wire.Append(nil, wire.FrameOpened, 0, 0, []byte("x")),
		"an empty OPEN": header(wire.FrameOpen, 0),
		"half an OPEN":  frames(header(wire.FrameOpen, 20), make([]byte, 20)),
		"a long target": frames(header(wire.FrameOpen, 23), append(make([]byte, 21), 0xff, 0xff)),
		"no frame":      bytes.Repeat([]byte{0x55}, 64),
	} {
		t.Run(name, func(t *testing.T) {
			client, server := base.Pair(t, nil)
			if _, err := client.Send(say); err != nil {
				t.Fatal(err)
			}
			_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err := stream.Accept(server)
			var f *wire.Failure
			if !errors.As(err, &f) || f.Code != wire.CodeProtocol || server.Dead() == nil {
				t.Errorf("got %v, pipe dead: %v; want CodeProtocol and a dead pipe", err, server.Dead())
			}
		})
	}
}

// FuzzPeer lets a peer say anything to a stream that is open, to one that waits for
// its answer, and to an agent that waits for OPEN.
func FuzzPeer(f *testing.F) {
	f.Add(frames(data(0, "abc"), eof(3)))
	f.Add(frames(data(0, "abc"), data(3, "def"), wire.Append(nil, wire.FramePing, wire.FlagEcho, 7, nil), eof(6), eof(6)))
	f.Add(wire.Append(nil, wire.FrameReset, 0, 0, wire.Fail(wire.LegTarget, wire.CodeReset, "boom").Append(nil)))
	f.Add(wire.Append(nil, wire.FrameOpened, 0, 0, []byte("192.0.2.1:80")))
	f.Add(wire.Append(nil, wire.FrameRefused, 0, 0, wire.Fail(wire.LegDNS, wire.CodeNameNotFound, "no").WithHint("x").Append(nil)))
	f.Add(wire.Append(nil, wire.FrameOpen, 0, 0, wire.Open{Target: "tcp:a:1"}.Append(nil)))
	f.Add([]byte{1, 2, 3})
	base := pipetest.NewWorld(f)
	f.Fuzz(func(t *testing.T, say []byte) {
		if len(say) > wire.MaxFrameLen || len(say) == 0 {
			return
		}
		limit := time.Now().Add(20 * time.Millisecond)
		with := func(f func(client, server *pipe.Pipe, h *host)) {
			client, server, err := base.Connect(nil)
			if err != nil {
				t.Fatal(err)
			}
			h := newHost(base.Buffers)
			f(client, server, h)
			client.Close()
			server.Close()
			h.wg.Wait()
		}
		with(func(client, server *pipe.Pipe, h *host) { // an agent that waits
			_, _ = client.Send(say)
			_ = server.SetReadDeadline(limit)
			_, _ = stream.Accept(server)
		})
		with(func(client, server *pipe.Pipe, h *host) { // a proxy that waits for its answer
			_, _ = server.Send(say)
			ctx, cancel := context.WithDeadline(t.Context(), limit)
			defer cancel()
			s, err := stream.Open(ctx, client, wire.Open{Target: "kubernetes"}, nil, h)
			if err == nil {
				_ = s.SetReadDeadline(limit)
				_, _ = io.ReadAll(s)
			}
			client.Close()
			if err == nil {
				_ = s.Close()
			}
			<-h.done
		})
		with(func(client, server *pipe.Pipe, h *host) { // a stream that is open
			_, _ = server.Send(frames(wire.Append(nil, wire.FrameOpened, 0, 0, nil), say))
			s, err := stream.Open(t.Context(), client, wire.Open{Target: "kubernetes"}, nil, h)
			if err != nil {
				t.Fatal(err)
			}
			near, local := pipetest.TCPPair(t, nil)
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = near.SetReadDeadline(limit)
				_, _ = io.Copy(io.Discard, near)
				_ = near.Close()
				server.Close()
			})
			_, err = s.Carry(local, nil, wire.LegClient)
			wg.Wait()
			if clean := <-h.done; clean != (err == nil) {
				t.Fatalf("clean %v, %v", clean, err)
			}
		})
	})
}
