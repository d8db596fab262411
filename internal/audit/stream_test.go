package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/wire"
)

// heard is a Recorder that remembers.
type heard struct {
	mu  sync.Mutex
	all []Record
	of  map[string][]Action // by stream
}

func (h *heard) Record(r Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, r)
	h.of[r.Stream] = append(h.of[r.Stream], r.Action)
}

// actions returns what was recorded of a stream.
func (h *heard) actions(stream string) []Action {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of[stream]
}

// streams runs a Streams.
func streams(t *testing.T, after time.Duration) (s *Streams, h *heard, stop func()) {
	h = &heard{of: make(map[string][]Action)}
	s = NewStreams(h, after)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return s, h, stop
}

func opened(s *Streams, id string) *Stream {
	return s.Opened(Record{Stream: id, Time: time.Now(), OK: true, Reason: "a rule"})
}

func TestStreamsAreToldOnceOrTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h, stop := streams(t, 2*time.Second)
		begin := time.Now()
		short, long, broken := opened(s, "short"), opened(s, "long"), opened(s, "broken")
		time.Sleep(time.Second)
		later := opened(s, "later")
		short.Closed(1, 2, nil, wire.LegAgent)
		broken.Closed(3, 4, errors.New("cut"), wire.LegTarget)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := h.actions("long"); !slices.Equal(got, []Action{Open}) {
			t.Errorf("the long one, while it lives: %v", got)
		}
		if got := h.actions("later"); got != nil {
			t.Errorf("the one that was opened later: %v", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		long.Closed(0, 0, nil, wire.LegAgent)
		later.Closed(0, 0, nil, wire.LegAgent)
		time.Sleep(time.Hour) // nobody is there, and then somebody is
		opened(s, "again")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		last := opened(s, "last")
		stop()
		last.Closed(0, 0, nil, wire.LegAgent)
		opened(s, "late").Closed(0, 0, nil, wire.LegAgent)
		for id, want := range map[string][]Action{
			"short": {Whole}, "broken": {Open, Close}, "long": {Open, Close}, "later": {Open, Close}, "again": {Open}, "last": {Open, Close}, "late": {Open, Close},
		} {
			if got := h.actions(id); !slices.Equal(got, want) {
				t.Errorf("%s: %v; want %v", id, got, want)
			}
		}
		for _, r := range h.all {
			switch {
			case r.Action == Whole:
				if !r.Time.Equal(begin) || r.Duration != time.Second || r.BytesIn != 1 || r.BytesOut != 2 || !r.OK || r.Reason != "a rule" {
					t.Errorf("%+v", r)
				}
			case r.Stream == "broken" && r.Action == Close:
				if !r.Time.Equal(begin.Add(time.Second)) || r.Duration != time.Second || r.OK || r.Reason != "target: cut" || r.BytesIn != 3 {
					t.Errorf("%+v", r)
				}
			case r.Action == Open:
				if r.Reason != "a rule" || !r.OK {
					t.Errorf("%+v", r)
				}
			}
		}
	})
}

func TestStreamsMayAllBeToldTwice(t *testing.T) {
	s, h, _ := streams(t, 0)
	opened(s, "one").Closed(0, 0, nil, wire.LegAgent)
	if got := h.actions("one"); !slices.Equal(got, []Action{Open, Close}) {
		t.Errorf("%v", got)
	}
}

// TestStreamsOfMany has many streams come and go at once: none is forgotten or
// told twice, and none ends before it was opened.
func TestStreamsOfMany(t *testing.T) {
	s, h, stop := streams(t, time.Millisecond)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 300 {
				one := opened(s, fmt.Sprint(w, "-", i))
				if i%50 == 0 {
					<-time.After(2 * time.Millisecond)
				}
				one.Closed(0, 0, nil, wire.LegAgent)
			}
		})
	}
	wg.Wait()
	stop()
	for w := range 8 {
		for i := range 300 {
			got := h.actions(fmt.Sprint(w, "-", i))
			if !slices.Equal(got, []Action{Whole}) && !slices.Equal(got, []Action{Open, Close}) {
				t.Fatalf("%d-%d: %v", w, i, got)
			}
		}
	}
}

func TestFilterTakesWholeStreams(t *testing.T) {
	for want, matches := range map[Action]bool{Open: true, Close: true, Whole: true, Change: false} {
		f := Filter{Actions: []Action{want}}
		if f.Match(&Record{Action: Whole}) != matches {
			t.Errorf("action=%s: %v", want, !matches)
		}
	}
	if f := (Filter{Actions: []Action{Whole}}); f.Match(&Record{Action: Open}) {
		t.Error("an open is no whole stream")
	}
}

// TestKeeperWritesTogether: records that come one after the other share a block.
func TestKeeperWritesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := run(t, m, newSigner(t))
		const records = 400
		for range records {
			b.Record(Record{Organization: "a", Action: Open})
			time.Sleep(time.Millisecond)
		}
		time.Sleep(pace)
		synctest.Wait()
		blocks, _ := m.Read(t.Context(), "a", 0, 1<<30)
		if most := records*int(time.Millisecond)/int(pace) + 2; len(blocks) > most {
			t.Errorf("%d blocks for %d records; want %d at most", len(blocks), records, most)
		}
		if n := len(m.entries(t, "a")); n != records {
			t.Errorf("%d records", n)
		}
	})
}

func TestWholeStreamIsLateByItsEnd(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := Record{Action: Whole, Time: now.Add(-time.Minute), Duration: time.Minute}
	if r.arrived(now); !r.Received.IsZero() || !r.Time.Equal(now.Add(-time.Minute)) {
		t.Errorf("%+v", r)
	}
	r.Duration = 2 * time.Minute // its clock is fast
	if r.arrived(now); !r.Received.Equal(now) || !r.Time.Equal(now.Add(-2*time.Minute)) {
		t.Errorf("%+v", r)
	}
}

func BenchmarkParseBatch(b *testing.B) {
	r := full().Record
	r.Action, r.Reason, r.BytesIn = Whole, "tcp:10.0.0.0/8:*, grant machines", 12345
	var batch []byte
	for range 80 {
		batch = append(appendRecord(batch, &r, nil), '\n')
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseBatch(batch, "acme", "edge", "one", r.Time); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	r := full().Record
	r.Action, r.Reason = Whole, "tcp:10.0.0.0/8:*, grant machines"
	var buf []byte
	var head Head
	b.ReportAllocs()
	for b.Loop() {
		r.clean()
		buf, head = head.Seal(buf[:0], &r)
	}
}
