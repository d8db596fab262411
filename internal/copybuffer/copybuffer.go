// Package copybuffer lends the buffers with which bodies of HTTP are copied.
package copybuffer

import "sync"

// Pool is an httputil.BufferPool of buffers of one size. Safe for concurrent use; make
// one with New.
type Pool struct {
	size int
	pool sync.Pool
}

// New returns an empty stock of buffers of size bytes.
func New(size int) *Pool { return &Pool{size: size} }

// Get implements httputil.BufferPool.
func (p *Pool) Get() []byte {
	if one, ok := p.pool.Get().(*[]byte); ok {
		return *one
	}
	return make([]byte, p.size)
}

// Put implements httputil.BufferPool.
func (p *Pool) Put(one []byte) { p.pool.Put(&one) }
