package pipe

import (
	"sync"

	"postern.dev/postern/internal/wire"
)

// sealedLen holds a whole frame after TLS has cut it into records: 16 KiB of
// payload each, with 5 bytes of header, 1 of type and a tag of 16.
const sealedLen = wire.MaxFrameLen + (wire.MaxFrameLen/(16<<10)+2)*22

// Buffer is memory for one frame, in the clear or sealed.
type Buffer [sealedLen]byte

// Buffers lends buffers to all the pipes of a process. A pipe holds one only
// while bytes are moving, so that memory follows traffic and not the number of open
// streams. Safe for concurrent use; make one with NewBuffers.
type Buffers struct{ pool sync.Pool }

// NewBuffers returns an empty stock.
func NewBuffers() *Buffers {
	b := &Buffers{}
	b.pool.New = func() any { return new(Buffer) }
	return b
}

// Get lends a buffer; its content is arbitrary.
func (b *Buffers) Get() *Buffer { return b.pool.Get().(*Buffer) }

// Put takes a buffer back; the caller no longer uses it.
func (b *Buffers) Put(buf *Buffer) { b.pool.Put(buf) }
