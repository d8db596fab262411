package registry

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
)

// What a Store and the Registry answer.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrConflict = errors.New("changed meanwhile")
	ErrTooLong  = errors.New("description is too long")
	ErrPattern  = errors.New("control plane cannot be chosen like this")
)

// Store keeps small values under keys and gives each change a revision, as the
// bus's key-value buckets do. Keys are words of a-z, 0-9 and '-', separated by
// dots. Implementations are safe for concurrent use, and a change is durable
// and seen by every later call when its method returns.
type Store interface {
	// Get returns a value and its revision, or ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)

	// Create stores a value under a key that has none, or returns ErrExists.
	Create(ctx context.Context, key string, value []byte) (revision uint64, err error)

	// Update replaces the value that has the given revision, or returns
	// ErrConflict when the key has another one or none.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)

	// Delete removes a key; it is no error if the key does not exist.
	Delete(ctx context.Context, key string) error

	// List returns the keys that begin with prefix, which ends with a dot, in
	// any order.
	List(ctx context.Context, prefix string) ([]string, error)
}

// Memory is a Store that forgets everything with the process; for tests.
type Memory struct {
	mu      sync.Mutex
	values  map[string]memoryValue
	counter uint64
}

type memoryValue struct {
	data     []byte
	revision uint64
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{values: make(map[string]memoryValue)} }

// Get implements Store.
func (m *Memory) Get(_ context.Context, key string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		return nil, 0, ErrNotFound
	}
	return slices.Clone(v.data), v.revision, nil
}

// Create implements Store.
func (m *Memory) Create(_ context.Context, key string, value []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; ok {
		return 0, ErrExists
	}
	return m.put(key, value), nil
}

// Update implements Store.
func (m *Memory) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.values[key]; !ok || v.revision != revision {
		return 0, ErrConflict
	}
	return m.put(key, value), nil
}

// Delete implements Store.
func (m *Memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
	return nil
}

// List implements Store.
func (m *Memory) List(_ context.Context, prefix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := slices.Collect(maps.Keys(m.values))
	return slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) }), nil
}

// put stores a value under a new revision; m.mu is held.
func (m *Memory) put(key string, value []byte) uint64 {
	m.counter++
	m.values[key] = memoryValue{data: slices.Clone(value), revision: m.counter}
	return m.counter
}
