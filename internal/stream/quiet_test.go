package stream_test

import (
	"io"
	"testing"
	"time"

	"postern.dev/postern/internal/stream"
	"postern.dev/postern/internal/wire"
)

// TestQuiet tells a stream that waits from one that has something for its reader,
// without taking it away, or that has ended.
func TestQuiet(t *testing.T) {
	t.Parallel()
	const long = time.Hour
	for name, test := range map[string]struct {
		do   func(c, s *stream.Stream) error
		left time.Duration
		want bool
		text string // that can be read afterwards
	}{
		"nothing came":         {func(_, _ *stream.Stream) error { return nil }, time.Second, true, ""},
		"not for long":         {func(_, _ *stream.Stream) error { return nil }, long, false, ""},
		"a sign of life":       {ping, long, true, ""},
		"bytes":                {func(_, s *stream.Stream) error { _, err := s.Write([]byte("hello")); return err }, 0, false, "hello"},
		"its end":              {func(_, s *stream.Stream) error { return s.CloseWrite() }, 0, false, ""},
		"the other side left":  {func(_, s *stream.Stream) error { return s.Close() }, 0, false, ""},
		"the pipe broke":       {func(_, s *stream.Stream) error { s.Pipe().Close(); return nil }, 0, false, ""},
		"closed on this side":  {func(c, _ *stream.Stream) error { return c.Close() }, 0, false, ""},
		"a sign, then its end": {func(c, s *stream.Stream) error { _ = ping(c, s); return s.CloseWrite() }, long, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c, s := w.open(t)
			for range 2 {
				if !c.Quiet(0) {
					t.Fatal("a fresh stream is not quiet")
				}
			}
			if err := test.do(c, s); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); c.Quiet(test.left) != test.want; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("quiet: %v", !test.want)
				}
			}
			if test.text != "" {
				got := make([]byte, len(test.text))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != test.text {
					t.Errorf("read %q, %v", got, err)
				}
			}
			_, _ = c.Close(), s.Close()
		})
	}
}

// ping has the server's side give a sign of life.
func ping(_, s *stream.Stream) error {
	_, err := s.Pipe().Send(wire.Append(nil, wire.FramePing, 0, 0, nil))
	return err
}
