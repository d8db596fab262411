package audit

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Times and sizes of an Exporter.
const (
	exportBytes  = 128 << 10 // that a sink is given at once
	exportLook   = 10 * time.Second
	exportSave   = time.Second // a cursor is on disk at most that much late
	firstPause   = time.Second
	longestPause = time.Minute
	deliverLimit = time.Minute // for a sink to take a batch
)

// Batch is some entries of one chain, in order, that a sink is given.
type Batch struct {
	Organization string
	Lines        [][]byte // one entry each, without line feeds
}

// Sink takes entries somewhere else. Deliver returns nil when the sink has all of
// them for good. After an error it is given the same batch again, so that every entry
// arrives at least once; what arrives twice has the same ID. One Deliver runs at a time.
type Sink interface {
	Deliver(ctx context.Context, b Batch) error
	Close() error
}

// Settler is a Sink that finds out later that it lost something. Settle brings that again;
// it is called when there is nothing to deliver.
type Settler interface {
	Settle(ctx context.Context) error
}

// Cursors remember how far sinks are.
type Cursors interface {
	LoadCursor(ctx context.Context, name string) (uint64, error) // 0 if there is none
	SaveCursor(ctx context.Context, name string, position uint64) error
}

// ExportMetrics is told what an Exporter does; sink is its name.
type ExportMetrics interface {
	Delivered(sink string, records int)
	SinkFailed(sink string)
	Missed(sink string, records uint64) // they vanished before the sink took them
	Lag(sink string, d time.Duration)   // how old the oldest block is that the sink has not
}

// ExporterConfig is what an Exporter works with. All fields are required.
type ExporterConfig struct {
	Name    string // of the sink, for people: "file"
	Cursor  string // names the sink's cursors: another place is another cursor
	Sink    Sink
	Journal Journal
	Cursors Cursors
	Changed func() <-chan struct{} // closed when there is more in the journal
	Metrics ExportMetrics
	Log     *slog.Logger
}

// Exporter brings all chains of a Journal to one Sink, from where it stopped
// before; a new sink gets all that is kept. While the sink fails it waits, and
// nothing else waits for it. Make one with NewExporter and run it once.
type Exporter struct {
	cfg    ExporterConfig
	chains map[string]*exported
	failed int // attempts in a row
}

// exported is how far a sink is in one chain.
type exported struct {
	position uint64 // of the last block that it has
	saved    uint64
	savedAt  time.Time
	next     uint64 // number of the entry that comes next; 0: not known
}

// NewExporter returns an exporter.
func NewExporter(cfg ExporterConfig) *Exporter {
	return &Exporter{cfg: cfg, chains: make(map[string]*exported)}
}

// Run exports until ctx ends.
func (e *Exporter) Run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.cfg.Changed()
		err := e.round(ctx)
		if late, ok := e.cfg.Sink.(Settler); ok && err == nil {
			err = e.settle(ctx, late)
		}
		pause := exportLook
		if err != nil && ctx.Err() == nil {
			changed = nil // news do not make a sink better
			pause = min(firstPause<<min(e.failed, 10), longestPause)
			pause = pause/2 + rand.N(pause/2)
			e.failed++
			e.cfg.Metrics.SinkFailed(e.cfg.Name)
			log := e.cfg.Log.Debug
			if e.failed == 1 || e.failed%10 == 0 {
				log = e.cfg.Log.Error
			}
			log("audit records not exported yet", "sink", e.cfg.Name, "error", err, "attempts", e.failed, "retry_in", pause.Round(time.Millisecond))
		} else if err == nil && e.failed > 0 {
			e.cfg.Log.Info("audit records are exported again", "sink", e.cfg.Name)
			e.failed = 0
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(pause):
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for chain, at := range e.chains {
		if at.saved != at.position {
			e.save(last, chain, at)
		}
	}
	if err := e.cfg.Sink.Close(); err != nil {
		e.cfg.Log.Warn("audit sink not closed well", "sink", e.cfg.Name, "error", err)
	}
}

// round gives the sink what it has not, of each chain in turn.
func (e *Exporter) round(ctx context.Context) error {
	for {
		chains, err := e.cfg.Journal.Chains(ctx)
		if err != nil {
			return err
		}
		more := false
		var oldest time.Time
		for _, chain := range chains {
			n, at, err := e.step(ctx, chain)
			if !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
				oldest = at
			}
			if err != nil {
				e.lag(oldest)
				return err
			}
			more = more || n > 0
		}
		if !more {
			e.lag(time.Time{})
			return nil
		}
	}
}

func (e *Exporter) settle(ctx context.Context, sink Settler) error {
	ctx, cancel := context.WithTimeout(ctx, deliverLimit)
	defer cancel()
	return sink.Settle(ctx)
}

func (e *Exporter) lag(oldest time.Time) {
	var d time.Duration
	if !oldest.IsZero() {
		d = max(time.Since(oldest), 0)
	}
	e.cfg.Metrics.Lag(e.cfg.Name, d)
}

// step gives the sink the next batch of one chain. at is when its first block was stored.
func (e *Exporter) step(ctx context.Context, chain string) (n int, at time.Time, err error) {
	state := e.chains[chain]
	if state == nil {
		position, err := e.cfg.Cursors.LoadCursor(ctx, e.cursor(chain))
		if err != nil {
			return 0, at, err
		}
		state = &exported{position: position, saved: position}
		e.chains[chain] = state
	}
	blocks, err := e.cfg.Journal.Read(ctx, chain, state.position, exportBytes)
	if err != nil || len(blocks) == 0 {
		if err == nil && state.saved != state.position {
			e.save(ctx, chain, state)
		}
		return 0, at, err
	}
	batch := Batch{Organization: chain}
	for _, b := range blocks {
		for line := range b.Entries() {
			batch.Lines = append(batch.Lines, line)
		}
	}
	attempt, cancel := context.WithTimeout(ctx, deliverLimit)
	defer cancel()
	if err := e.cfg.Sink.Deliver(attempt, batch); err != nil {
		return 0, blocks[0].Stored, err
	}
	e.count(chain, state, batch)
	state.position = blocks[len(blocks)-1].Position
	if time.Since(state.savedAt) > exportSave {
		e.save(ctx, chain, state)
	}
	return len(batch.Lines), blocks[0].Stored, nil
}

// count counts a batch, and what vanished between it and the one before.
func (e *Exporter) count(chain string, state *exported, b Batch) {
	e.cfg.Metrics.Delivered(e.cfg.Name, len(b.Lines))
	if first, err := ParseEntry(b.Lines[0]); err == nil && state.next > 0 && first.Sequence > state.next {
		gone := first.Sequence - state.next
		e.cfg.Metrics.Missed(e.cfg.Name, gone)
		e.cfg.Log.Error("audit records vanished before the sink took them", "sink", e.cfg.Name, "log", chainName(chain), "records", gone)
	}
	if last, err := ParseEntry(b.Lines[len(b.Lines)-1]); err == nil {
		state.next = last.Sequence + 1
	}
}

func (e *Exporter) cursor(chain string) string {
	if chain == "" {
		return e.cfg.Cursor + ".hub"
	}
	return e.cfg.Cursor + ".org." + chain
}

func (e *Exporter) save(ctx context.Context, chain string, state *exported) {
	state.savedAt = time.Now()
	if err := e.cfg.Cursors.SaveCursor(ctx, e.cursor(chain), state.position); err != nil {
		e.cfg.Log.Warn("place of an audit sink not saved; some records may arrive twice", "sink", e.cfg.Name, "error", err)
		return
	}
	state.saved = state.position
}
