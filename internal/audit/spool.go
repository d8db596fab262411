package audit

import (
	"context"
	"crypto/rand"
	"log/slog"
	randv2 "math/rand/v2"
	"strconv"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// Limits of a Spool.
const (
	maxSpooled  = 16384    // records; at most about 8 MB
	maxBatch    = 60 << 10 // bytes of a message; the bus takes 64 KiB
	usualRecord = 768      // bytes of one, encoded: few are longer
	gather      = 200 * time.Millisecond
	senders     = 2
	sendLimit   = 10 * time.Second // for one attempt
)

// Spool holds the records of a party in memory until the hub has acknowledged
// them. When it is full, further ones are counted and dropped: nothing waits for
// it. It is safe for concurrent use. Make one with NewSpool and run it.
type Spool struct {
	prefix string
	wake   chan struct{}
	taking sync.Mutex // one sender at a time takes from the queue

	mu       sync.Mutex
	back     []parcel // taken, and not acknowledged when a Run ended
	queue    []Record
	first    uint64 // number of the queue's first record
	underway int
	lost     uint64
	lostAll  uint64
}

// parcel is some records, encoded.
type parcel struct {
	batch []byte
	n     int
}

// Send brings a batch of records to the hub, and returns nil when the hub has them on
// disk. One with wire.CodeBadRequest is not sent again.
type Send func(ctx context.Context, batch []byte) error

// NewSpool returns an empty spool.
func NewSpool() *Spool {
	return &Spool{prefix: rand.Text()[:13] + "-", wake: make(chan struct{}, 1)}
}

// Record implements Recorder. It costs a lock and a copy.
func (s *Spool) Record(r Record) {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	s.mu.Lock()
	if len(s.queue)+s.underway >= maxSpooled {
		s.lost++
		s.lostAll++
		s.mu.Unlock()
		return
	}
	s.queue = append(s.queue, r)
	first := len(s.queue) == 1
	s.mu.Unlock()
	if first {
		nudge(s.wake)
	}
}

// Waiting returns how many records the hub has not acknowledged, and how many had
// no room since the start.
func (s *Spool) Waiting() (n int, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) + s.underway, s.lostAll
}

// Run sends records until ctx ends, and then those that are left, until final ends.
// What is left then waits for the next Run.
func (s *Spool) Run(ctx, final context.Context, send Send, log *slog.Logger) {
	nudge(s.wake)
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() { s.run(ctx, final, send, log) })
	}
	wg.Wait()
	if n, _ := s.Waiting(); n > 0 {
		log.Warn("the hub did not take the last audit records", "records", n)
	}
}

func (s *Spool) run(ctx, final context.Context, send Send, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
		case <-s.wake:
			select { // others follow soon, and travel in the same message
			case <-ctx.Done():
			case <-time.After(gather):
			}
		}
		for {
			p, more := s.take()
			if p.n == 0 {
				break
			}
			if more {
				nudge(s.wake) // for another sender
			}
			err := deliver(final, p.batch, send, log)
			if err != nil && final.Err() != nil {
				s.mu.Lock()
				s.back = append(s.back, p)
				s.mu.Unlock()
				return
			}
			s.settle(p.n, err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// settle forgets records that were acknowledged, or will never be.
func (s *Spool) settle(n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway -= n
	if err != nil { // no record says so: that one might not be taken either
		s.lostAll += uint64(n) //nolint:gosec // not negative
	}
}

// deliver sends a batch until it is acknowledged. An error means that ctx ended, or
// that the hub will never take it.
func deliver(ctx context.Context, batch []byte, send Send, log *slog.Logger) error {
	for pause, told := time.Second, false; ; pause = min(2*pause, 30*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, sendLimit)
		err := send(attempt, batch)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeBadRequest {
			log.Error("the hub cannot read audit records of this agent; they are lost", "error", err)
			return err
		}
		if !told && pause > 4*time.Second {
			told = true
			log.Warn("the hub does not take audit records; they are kept in memory", "error", err)
		} else {
			log.Debug("audit records not sent", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + randv2.N(pause/2)):
		}
	}
}

// take takes the next records out of the queue, encoded.
func (s *Spool) take() (p parcel, more bool) {
	s.taking.Lock()
	defer s.taking.Unlock()
	s.mu.Lock()
	if n := len(s.back); n > 0 {
		p, s.back = s.back[n-1], s.back[:n-1]
		s.mu.Unlock()
		return p, true
	}
	if s.lost > 0 {
		s.queue = append(s.queue, Record{
			Time: time.Now(), Action: Lost, Count: s.lost, Reason: "the agent had no room for them while the hub did not take records",
		})
		s.lost = 0
	}
	most := s.queue[:min(len(s.queue), maxBlock)] // nobody changes them: Record only appends
	number := s.first
	s.mu.Unlock()
	p.batch = make([]byte, 0, min(len(most)*usualRecord, maxBatch)+usualRecord)
	for i := range most {
		r := most[i]
		r.ID = s.prefix + strconv.FormatUint(number+uint64(i), 36)
		r.clean()
		from := len(p.batch)
		if p.batch = append(appendRecord(p.batch, &r, nil), '\n'); len(p.batch) > maxBatch && p.n > 0 {
			p.batch = p.batch[:from]
			break
		}
		p.n++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.queue[:p.n])
	s.first += uint64(p.n) //nolint:gosec // not negative
	s.underway += p.n
	if s.queue = s.queue[p.n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return p, len(s.queue) > 0
}
