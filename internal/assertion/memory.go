package assertion

import (
	"sync"
	"time"
)

const (
	// maxRemembered bounds the assertions that are remembered at once: about 8,000
	// requests a second, in 60 MB. An agent that serves a handful remembers a handful.
	maxRemembered = 1 << 20

	// span is for how long the assertions of one generation end.
	span = 30 * time.Second
)

// memory knows the IDs of assertions that were used, until they are too old to be
// used again. They are kept in generations by the time of their end, which are
// dropped as a whole. The zero value with a limit is ready. Safe for concurrent use.
type memory struct {
	limit int

	mu          sync.Mutex
	generations map[int64]map[string]struct{} // by end/span
	count       int
}

// use remembers an ID until a time. It returns ErrReplayed if it knows the ID, and
// ErrBusy if it cannot remember more, as what is forgotten could be used twice.
func (m *memory) use(id string, until, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for g, ids := range m.generations {
		if end := time.Unix(0, (g+1)*int64(span)); end.Before(now) {
			m.count -= len(ids)
			delete(m.generations, g)
		}
	}
	g := until.UnixNano() / int64(span)
	ids := m.generations[g]
	if _, known := ids[id]; known {
		return ErrReplayed
	}
	if m.count >= m.limit {
		return ErrBusy
	}
	if ids == nil {
		if m.generations == nil {
			m.generations = make(map[int64]map[string]struct{})
		}
		ids = make(map[string]struct{})
		m.generations[g] = ids
	}
	ids[id] = struct{}{}
	m.count++
	return nil
}
