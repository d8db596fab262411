package audit

import (
	"context"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
)

// Limits of a Flood.
const (
	floodWindow  = time.Minute
	floodSources = 1024 // in a window; further ones are counted together
	floodOthers  = "others"
)

// Flood keeps whoever is refused again and again from filling the log: of equal
// refusals from one source it records the first at once, and how many more there
// were when a minute is over. It is safe for concurrent use. Make one with NewFlood
// and run it.
type Flood struct {
	to  Recorder
	now func() time.Time

	mu  sync.Mutex
	all map[floodKey]*flood
}

// floodKey is what makes refusals equal.
type floodKey struct {
	organization string
	action       Action
	actor        identity.Principal
	source, code string
}

type flood struct {
	last  Record
	since time.Time
	more  uint64
}

// NewFlood returns a Flood that records with to. A nil now means time.Now.
func NewFlood(to Recorder, now func() time.Time) *Flood {
	if now == nil {
		now = time.Now
	}
	return &Flood{to: to, now: now, all: make(map[floodKey]*flood)}
}

// Record implements Recorder, for refusals.
func (f *Flood) Record(r Record) {
	if r.Time.IsZero() {
		r.Time = f.now()
	}
	key := floodKey{r.Organization, r.Action, r.Actor, r.Source, r.Code}
	f.mu.Lock()
	known := f.all[key]
	if known == nil && len(f.all) >= floodSources {
		// Nobody's name or address, which whoever floods may choose at will.
		r = Record{Time: r.Time, Action: r.Action, Source: floodOthers, Code: r.Code, Reason: "more sources than are told apart"}
		key = floodKey{action: r.Action, source: floodOthers, code: r.Code}
		known = f.all[key]
	}
	if known != nil {
		known.last = r
		known.more++
		f.mu.Unlock()
		return
	}
	f.all[key] = &flood{last: r, since: r.Time}
	f.mu.Unlock()
	f.to.Record(r)
}

// Run records what was counted, until ctx ends; then all the rest.
func (f *Flood) Run(ctx context.Context) {
	tick := time.NewTicker(floodWindow / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			f.flush(time.Time{})
			return
		case <-tick.C:
			f.flush(f.now().Add(-floodWindow))
		}
	}
}

// flush ends the windows that began before t; all, if it is zero.
func (f *Flood) flush(t time.Time) {
	f.mu.Lock()
	var due []Record
	for key, one := range f.all {
		if !t.IsZero() && one.since.After(t) {
			continue
		}
		delete(f.all, key)
		if one.more > 0 {
			one.last.Count = one.more
			due = append(due, one.last)
		}
	}
	f.mu.Unlock()
	for _, r := range due {
		f.to.Record(r)
	}
}
