package audit

import (
	"context"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// Streams records streams. Most are short, so one that ends in order within some time
// is told as a whole, by one record. Any other is told when it was opened, at the end of
// that time at the latest, and when it ends. It is safe for concurrent use. Make one
// with NewStreams and run it.
type Streams struct {
	to    Recorder
	after time.Duration
	wake  chan struct{} // holds at most one wish

	mu          sync.Mutex
	asleep      bool // Run waits for wake, as there are no young streams
	ended       bool
	first, last *Stream // the young streams, in the order of their opening
}

// Stream is one that was opened. Closed ends it.
type Stream struct {
	of    *Streams
	open  Record // of its opening
	since time.Time

	// Guarded by of.mu.
	young      bool // not told yet
	prev, next *Stream
}

// NewStreams returns a Streams that records with to. An after of 0 or less tells
// each opening at once.
func NewStreams(to Recorder, after time.Duration) *Streams {
	return &Streams{to: to, after: after, wake: make(chan struct{}, 1)}
}

// Opened takes in a stream that was opened. open is the record of that: its Time is
// when the attempt began, its Duration what it took.
func (s *Streams) Opened(open Record) *Stream {
	open.Action = Open
	one := &Stream{of: s, open: open, since: open.Time.Add(open.Duration)}
	s.mu.Lock()
	if s.ended || s.after <= 0 {
		s.mu.Unlock()
		s.to.Record(open)
		return one
	}
	s.append(one)
	asleep := s.asleep
	s.asleep = false
	s.mu.Unlock()
	if asleep {
		nudge(s.wake)
	}
	return one
}

// Closed records the end of the stream: the bytes that it carried from and to the
// target, and why it did not end in order, if it did not; leg is whose failure that is
// if err does not say so. It is called once.
func (one *Stream) Closed(bytesIn, bytesOut uint64, err error, leg wire.Leg) {
	s := one.of
	s.mu.Lock()
	young := one.young
	if young {
		s.remove(one)
	}
	s.mu.Unlock()
	now := time.Now()
	end := one.open
	end.BytesIn, end.BytesOut, end.Duration = bytesIn, bytesOut, now.Sub(end.Time)
	if young && err == nil {
		end.Action = Whole
		s.to.Record(end)
		return
	}
	if young {
		s.to.Record(one.open)
	}
	end.Action, end.Time, end.Reason = Close, now, ""
	end.Outcome(err, leg)
	s.to.Record(end)
}

// Run tells of streams that live long, until ctx ends; then of all that live.
func (s *Streams) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.ended = true
			s.mu.Unlock()
			s.tell(time.Time{})
			return
		case <-s.wake:
			timer.Reset(s.after)
		case <-timer.C:
			if wait := s.tell(time.Now()); wait > 0 {
				timer.Reset(wait)
			}
		}
	}
}

// tell tells of the streams that are old enough; of all, if now is zero. It returns
// when there is more to do, or 0 if there is nothing until wake says so.
func (s *Streams) tell(now time.Time) (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := s.first; one != nil; one = s.first {
		if !now.IsZero() {
			if wait = one.since.Add(s.after).Sub(now); wait > 0 {
				break
			}
		}
		s.remove(one)
		s.to.Record(one.open) // before the record of its end, which waits for the lock
	}
	s.asleep = s.first == nil
	return max(wait, 0)
}

// append adds a stream to the young ones; s.mu is held.
func (s *Streams) append(one *Stream) {
	one.young, one.prev = true, s.last
	if s.last != nil {
		s.last.next = one
	} else {
		s.first = one
	}
	s.last = one
}

// remove takes a stream out of the young ones; s.mu is held.
func (s *Streams) remove(one *Stream) {
	if one.prev != nil {
		one.prev.next = one.next
	} else {
		s.first = one.next
	}
	if one.next != nil {
		one.next.prev = one.prev
	} else {
		s.last = one.prev
	}
	one.young, one.prev, one.next = false, nil, nil
}
