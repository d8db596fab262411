package audit

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"time"
)

// Block is what a Journal keeps: some entries of one chain, that were written
// together.
type Block struct {
	Position uint64    // in the journal of its chain, from 1 on
	Stored   time.Time // when
	Lines    []byte    // entries, each ended by a line feed
}

// Entries returns the lines, without their line feeds.
func (b Block) Entries() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for line := range bytes.Lines(b.Lines) {
			if line = bytes.TrimSuffix(line, []byte("\n")); len(line) > 0 && !yield(line) {
				return
			}
		}
	}
}

// ErrPosition says that a journal's last block is not the one that was expected.
var ErrPosition = errors.New("the audit journal's last block is another than expected")

// Journal stores chains, named by organization; "" is the hub's own. Old blocks
// vanish at the end of their time, from the first one on. It is safe for concurrent use.
type Journal interface {
	// Append stores a block behind the one at position last, and returns its
	// position when it is safe on disk. If another block is the last one it
	// returns ErrPosition. When it returns, lines are the caller's again.
	Append(ctx context.Context, chain string, last uint64, lines []byte) (uint64, error)

	// Read returns blocks behind a position, in order, about maxBytes of them;
	// none if there are none. Positions that have vanished are passed over.
	Read(ctx context.Context, chain string, after uint64, maxBytes int) ([]Block, error)

	// Bounds returns the positions of the first and last blocks. first is one
	// more than last when there are no blocks; last stays when they vanish.
	Bounds(ctx context.Context, chain string) (first, last uint64, err error)

	// Chains returns the names of all chains.
	Chains(ctx context.Context) ([]string, error)
}

// Seek returns the position of the last block that was stored before t, from which
// a reader finds all that was stored since.
func Seek(ctx context.Context, j Journal, chain string, t time.Time) (uint64, error) {
	first, last, err := j.Bounds(ctx, chain)
	if err != nil || t.IsZero() {
		return max(first, 1) - 1, err
	}
	low, high := max(first, 1)-1, last // the answer is in low..high
	for low < high {
		middle := low + (high-low)/2
		blocks, err := j.Read(ctx, chain, middle, 1)
		if err != nil {
			return 0, err
		}
		if len(blocks) > 0 && blocks[0].Stored.Before(t) {
			low = max(blocks[0].Position, middle+1)
		} else {
			high = middle
		}
	}
	return min(low, last), nil
}

// Heads remembers the newest heads of chains, elsewhere than the Journal, so that
// its end cannot be cut off unnoticed.
type Heads interface {
	LoadHead(chain string) (Head, error) // the zero Head if there is none
	SaveHead(chain string, h Head) error
}
