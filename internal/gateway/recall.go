package gateway

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errBusy says that too many questions are under way.
var errBusy = errors.New("too many questions at once")

// recall asks questions and remembers the answers for a while. Who asks what somebody is
// asking already waits for that answer. Safe for concurrent use.
type recall[K comparable, V any] struct {
	now   func() time.Time
	slots chan struct{} // questions under way
	limit int           // answers that are remembered

	mu  sync.Mutex
	all map[K]*recalled[V]
}

// recalled is a question, and its answer once done is closed.
type recalled[V any] struct {
	done    chan struct{}
	value   V
	err     error
	expires time.Time // zero while it is asked
}

// newRecall returns a recall that asks some questions at once and remembers so many
// answers. A nil now means time.Now.
func newRecall[K comparable, V any](questions, answers int, now func() time.Time) *recall[K, V] {
	if now == nil {
		now = time.Now
	}
	return &recall[K, V]{now: now, slots: make(chan struct{}, questions), limit: answers, all: make(map[K]*recalled[V])}
}

// get returns the answer to a question. ask also says for how long it is good; one that
// is good for no time is forgotten. The answer is for all who wait, so ask does not end
// with the ctx of who happened to be the first, but with limit.
func (m *recall[K, V]) get(ctx context.Context, key K, limit time.Duration, ask func(ctx context.Context) (V, time.Duration, error)) (V, error) {
	m.mu.Lock()
	one := m.all[key]
	if one != nil && !one.expires.IsZero() && !m.now().Before(one.expires) {
		delete(m.all, key)
		one = nil
	}
	if one != nil {
		m.mu.Unlock()
		select {
		case <-one.done:
			return one.value, one.err
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
	select {
	case m.slots <- struct{}{}:
	default:
		m.mu.Unlock()
		var none V
		return none, errBusy
	}
	one = &recalled[V]{done: make(chan struct{})}
	m.room()
	m.all[key] = one
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	value, keep, err := ask(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	<-m.slots
	one.value, one.err, one.expires = value, err, m.now().Add(keep)
	if keep <= 0 {
		delete(m.all, key)
	}
	close(one.done)
	return value, err
}

// room makes room for one more answer; mu is held.
func (m *recall[K, V]) room() {
	if len(m.all) < m.limit {
		return
	}
	now := m.now()
	for key, one := range m.all {
		if !one.expires.IsZero() && !now.Before(one.expires) {
			delete(m.all, key)
		}
	}
	for key, one := range m.all { // any: who comes again is asked about again
		if len(m.all) < m.limit {
			return
		}
		if !one.expires.IsZero() {
			delete(m.all, key)
		}
	}
}
