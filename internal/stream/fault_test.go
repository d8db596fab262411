package stream_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/wire"
)

// linkedWorld is a world whose pipe runs over a link that can be cut.
type linkedWorld struct {
	world
	link *testnet.Link
}

// newLinkedWorld shares the authority of base, and the time that one takes to make.
func newLinkedWorld(t *testing.T, base *pipetest.World) *linkedWorld {
	t.Helper()
	w := &linkedWorld{world: world{World: base}}
	var err error
	w.client, w.server, err = base.Connect(func(addr string) (net.Conn, error) {
		if w.link, err = testnet.Listen(testnet.Config{Target: addr}); err != nil {
			return nil, err
		}
		return net.Dial("tcp", w.link.Addr())
	})
	if err != nil {
		t.Error(err)
		return nil
	}
	w.clientHost, w.serverHost = newHost(base.Buffers), newHost(base.Buffers)
	return w
}

func (w *linkedWorld) close() {
	w.client.Close()
	w.server.Close()
	w.clientHost.wg.Wait()
	w.serverHost.wg.Wait()
	_ = w.link.Close()
}

// script is what one side says in the cutting tests: small pieces, one that takes a
// frame and a bit, one of many TLS records, and the end.
var script = []int{1, 100, wire.MaxPayloadLen + 5, 40_000, 0}

func scriptBytes() []byte {
	n := 0
	for _, k := range script {
		n += k
	}
	return random(n)
}

// say writes the script and tells how far the link had delivered after each piece.
func say(s *stream.Stream, progress func() int64) (marks []int64, err error) {
	b := scriptBytes()
	for _, n := range script {
		if n == 0 {
			err = s.CloseWrite()
		} else {
			_, err = s.Write(b[:n])
			b = b[n:]
		}
		if err != nil {
			return marks, err
		}
		marks = append(marks, progress())
	}
	return marks, nil
}

// boundaries returns the offsets on the link at which the frames of the script end,
// found by saying it once, slowly.
func boundaries(t *testing.T, base *pipetest.World, dir testnet.Direction) []int64 {
	t.Helper()
	w := newLinkedWorld(t, base)
	defer w.close()
	c, s := w.open(t)
	from, to := c, s
	if dir == testnet.Down {
		from, to = s, c
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, to) })
	start := settled(w.link, dir)
	marks, err := say(from, func() int64 { return settled(w.link, dir) - start })
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = from.Close(), to.Close()
	return marks
}

// settled returns what the link has delivered once that grows no more.
func settled(l *testnet.Link, dir testnet.Direction) int64 {
	for n := l.Delivered(dir); ; {
		time.Sleep(10 * time.Millisecond)
		if m := l.Delivered(dir); m == n {
			return n
		} else {
			n = m
		}
	}
}

// offsets returns about n places to cut at: around every boundary, within TLS
// records' and frames' headers, and spread over the rest.
func offsets(marks []int64, n int) []int64 {
	var all []int64
	last := marks[len(marks)-1]
	for _, m := range append([]int64{0}, marks...) {
		for _, d := range []int64{-23, -22, -17, -16, -6, -5, -4, -1, 0, 1, 4, 5, 6, 16, 17, 20, 21, 22, 37, 38, 43} {
			all = append(all, m+d)
		}
	}
	for i := int64(1); len(all) < n+40; i++ {
		all = append(all, i*last/int64(max(n-len(all)+int(i), 2))+i)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.DeleteFunc(all, func(o int64) bool { return o <= 0 || o >= last })
}

// inParallel calls f for each of the offsets, a few at a time.
func inParallel(offsets []int64, f func(int64)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, o := range offsets {
		slots <- struct{}{}
		wg.Go(func() { defer func() { <-slots }(); f(o) })
	}
	wg.Wait()
}

// TestCutAnywhere cuts the network after every so many bytes: the reader gets a
// beginning of what was sent and then an error that is no end.
func TestCutAnywhere(t *testing.T) {
	base, want := pipetest.NewWorld(t), scriptBytes()
	for _, dir := range []testnet.Direction{testnet.Up, testnet.Down} {
		t.Run(dir.String(), func(t *testing.T) {
			marks := boundaries(t, base, dir)
			all := offsets(marks, 100)
			if len(all) < 80 {
				t.Fatalf("only %d offsets between %v", len(all), marks)
			}
			inParallel(all, func(o int64) {
				w := newLinkedWorld(t, base)
				if w == nil {
					return
				}
				defer w.close()
				c, s := w.open(t)
				from, to := c, s
				if dir == testnet.Down {
					from, to = s, c
				}
				settled(w.link, dir)
				w.link.CutAfter(dir, o)
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = say(from, func() int64 { return 0 }) })
				got, err := io.ReadAll(to)
				var f *wire.Failure
				if !errors.As(err, &f) || f.Code != wire.CodeLost || errors.Is(err, io.EOF) {
					t.Errorf("cut after %d of %v bytes: the reader got %v; want CodeLost", o, marks, err)
				}
				if !bytes.HasPrefix(want, got) {
					t.Errorf("cut after %d: %d bytes arrived that are not what was sent", o, len(got))
				}
				wg.Wait()
				_, _ = from.Close(), to.Close()
				if a, b := <-w.clientHost.done, <-w.serverHost.done; a || b {
					t.Errorf("cut after %d: pipe came back clean: %v, %v", o, a, b)
				}
			})
		})
	}
}

// TestCutAnywhereUnderCarry does the same to connections that streams are joined to:
// client and target get a beginning of what was sent and then a reset.
func TestCutAnywhereUnderCarry(t *testing.T) {
	base, want := pipetest.NewWorld(t), scriptBytes()
	marks := boundaries(t, base, testnet.Down)
	all := slices.DeleteFunc(offsets(marks, 100), func(o int64) bool { return o >= int64(len(want)) }) // frames fall elsewhere here
	inParallel(all, func(o int64) {
		w := newLinkedWorld(t, base)
		if w == nil {
			return
		}
		defer w.close()
		c, s := w.open(t)
		near, nearLocal := pipetest.TCPPair(t, nil)
		far, farLocal := pipetest.TCPPair(t, nil)
		settled(w.link, testnet.Down)
		w.link.CutAfter(testnet.Down, o)
		var wg sync.WaitGroup
		var cErr, sErr error
		wg.Go(func() { _, cErr = c.Carry(nearLocal, nil, wire.LegClient) })
		wg.Go(func() { _, sErr = s.Carry(farLocal, nil, wire.LegTarget) })
		wg.Go(func() { _, _ = far.Write(want) })
		got, err := io.ReadAll(near)
		if !errors.Is(err, syscall.ECONNRESET) || !bytes.HasPrefix(want, got) {
			t.Errorf("cut after %d: the client got %d bytes (a beginning: %v), and %v; want a reset", o, len(got), bytes.HasPrefix(want, got), err)
		}
		if _, err := io.ReadAll(far); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("cut after %d: the target got %v; want a reset", o, err)
		}
		wg.Wait()
		if cErr == nil || sErr == nil {
			t.Errorf("cut after %d: carry returned %v and %v", o, cErr, sErr)
		}
		_, _ = near.Close(), far.Close()
	})
}
