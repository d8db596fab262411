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
	each  int           // of the slots that one asker may have
	limit int           // answers that are remembered

	mu     sync.Mutex
	all    map[K]*recalled[V]
	asking map[string]int // questions under way, by asker
}

// recalled is a question, and its answer once done is closed.
type recalled[V any] struct {
	done    chan struct{}
	value   V
	err     error
	expires time.Time // zero while it is asked
}

// newRecall returns a recall that asks some questions at once, a quarter of them for one
// asker, and remembers so many answers. A nil now means time.Now.
func newRecall[K comparable, V any](questions, answers int, now func() time.Time) *recall[K, V] {
	if now == nil {
		now = time.Now
	}
	return &recall[K, V]{now: now, slots: make(chan struct{}, questions), each: max(1, questions/4), limit: answers, all: make(map[K]*recalled[V]), asking: make(map[string]int)}
}

// get returns the answer to a question. ask also says for how long it is good; one that
// is good for no time is forgotten. The answer is for all who wait, so ask does not end
// with the ctx of who happened to be the first, but with limit. Whoever asks much, by the
// name of asker, leaves room for others; "" is nobody in particular.
func (m *recall[K, V]) get(ctx context.Context, asker string, key K, limit time.Duration, ask func(ctx context.Context) (V, time.Duration, error)) (V, error) {
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
	if !m.begin(asker) {
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
	m.end(asker)
	one.value, one.err, one.expires = value, err, m.now().Add(keep)
	if keep <= 0 {
		delete(m.all, key)
	}
	close(one.done)
	return value, err
}

// begin takes a slot for an asker, if there is one for it; mu is held.
func (m *recall[K, V]) begin(asker string) bool {
	if asker != "" && m.asking[asker] >= m.each {
		return false
	}
	select {
	case m.slots <- struct{}{}:
	default:
		return false
	}
	if asker != "" {
		m.asking[asker]++
	}
	return true
}

// end gives the slot back; mu is held.
func (m *recall[K, V]) end(asker string) {
	<-m.slots
	if asker == "" {
		return
	}
	if m.asking[asker]--; m.asking[asker] == 0 {
		delete(m.asking, asker)
	}
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
