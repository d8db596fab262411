package pipe

import (
	"context"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// Liveness. Each side of a pipe sends something every BeatInterval (a PING when
// there is nothing else), and gives the pipe up after SilentBeats intervals in which
// it waited and nothing came. So a dead or frozen peer, one that sends no FIN, is
// found in 7.5 to 9 seconds, while a slow reader is never taken for
// a dead one: a side that is not reading, because its client or target is not, does
// not count.
const (
	BeatInterval = 1500 * time.Millisecond
	SilentBeats  = 5
)

// watch is what a Keeper remembers of a pipe; only the Keeper touches it.
type watch struct {
	frames   uint64 // sent by the last beat
	arrivals uint64 // by the last beat
	silent   int    // beats in which a reader waited in vain
}

// Keeper sends signs of life on every pipe of a process and gives up those whose
// peer has fallen silent. One goroutine and one timer serve all pipes. Make one with
// NewKeeper, and run it.
type Keeper struct {
	mu    sync.Mutex
	pipes map[*Pipe]struct{}
	ended bool
}

// NewKeeper returns a keeper that watches nothing yet.
func NewKeeper() *Keeper { return &Keeper{pipes: make(map[*Pipe]struct{})} }

// Watch begins to look after a pipe; it ends when the pipe is dead. A pipe is
// watched by one keeper at most, from before its first stream. After the end of Run
// it closes the pipe: what nobody watches must not be used.
func (k *Keeper) Watch(p *Pipe) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		p.Close()
		return
	}
	k.pipes[p] = struct{}{}
}

// Len returns how many living pipes are watched.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.pipes)
}

// Run watches until ctx ends; then it closes every pipe that is left.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(BeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			k.mu.Lock()
			k.ended = true
			k.mu.Unlock()
			for _, p := range k.snapshot() {
				p.Close()
			}
			return nil
		case <-tick.C:
			for _, p := range k.snapshot() {
				p.beat()
			}
		}
	}
}

// snapshot forgets the dead and returns the living, so that no lock is held
// while beats are written.
func (k *Keeper) snapshot() []*Pipe {
	k.mu.Lock()
	defer k.mu.Unlock()
	living := make([]*Pipe, 0, len(k.pipes))
	for p := range k.pipes {
		if p.dead.Load() != nil {
			delete(k.pipes, p)
			continue
		}
		living = append(living, p)
	}
	return living
}

// beat sends a sign of life if nothing else was sent since the last beat, and
// counts the silence of the other side.
func (p *Pipe) beat() {
	w := &p.watch
	p.signal(wire.FramePing, 0, 0, func() bool {
		quiet := p.frames == w.frames
		w.frames = p.frames
		if quiet {
			w.frames++ // the PING itself
		}
		return quiet
	})
	arrivals := p.c.arrivals.Load()
	if arrivals != w.arrivals || !p.c.waiting.Load() {
		w.arrivals, w.silent = arrivals, 0
		return
	}
	if w.silent++; w.silent >= SilentBeats {
		_ = p.fail(wire.Fail(wire.LegRelay, wire.CodeLost,
			"nothing came over the pipe to %s for %s, though it sends a sign of life every %s",
			p.peer, SilentBeats*BeatInterval, BeatInterval).
			WithHint("the other side is frozen or gone, or the network between drops packets"))
	}
}
