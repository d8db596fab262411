package pipe

import (
	"time"

	"postern.dev/postern/internal/wire"
)

// Send seals one whole frame, or several, and writes them: frame is at most
// wire.MaxFrameLen long. accepted tells whether the frame will reach the peer if
// the pipe lives: a time-out while an earlier frame was still being written leaves
// this one untouched, a later time-out leaves it to be finished by the next Send.
func (p *Pipe) Send(frame []byte) (accepted bool, err error) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if p.held {
		p.held = false
		p.release.Stop()
		if len(frame) <= gatherLen && p.dead.Load() == nil { // both in one call
			return true, p.seal(frame)
		}
	}
	if err := p.c.flush(); err != nil {
		return false, p.writeFailed(err)
	}
	return true, p.seal(frame)
}

const (
	// holdTime is how long Hold waits for company: a target near the agent answers
	// sooner, and nobody waits for what is held.
	holdTime = 500 * time.Microsecond

	// gatherLen is how long a frame may be to be sent together with a held one, so
	// that both fit into one buffer.
	gatherLen = wire.MaxFrameLen / 2
)

// Hold is Send for a short frame that another is likely to follow soon: it waits a
// moment for that one, so that both cost one call and one wake-up of the peer.
func (p *Pipe) Hold(frame []byte) (accepted bool, err error) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if err := p.c.flush(); err != nil {
		return false, p.writeFailed(err)
	}
	if f := p.dead.Load(); f != nil {
		return false, f
	}
	p.frames++
	if _, err := p.tls.Write(frame); err != nil { // into memory
		return false, p.writeFailed(err)
	}
	p.held = true
	if p.release == nil {
		p.release = time.AfterFunc(holdTime, p.letGo)
	} else {
		p.release.Reset(holdTime)
	}
	return true, nil
}

// letGo writes what is still held; it waits for nobody.
func (p *Pipe) letGo() {
	if !p.wmu.TryLock() { // a Send is at it, which takes it along
		return
	}
	if p.held {
		p.held = false
		p.push()
		return
	}
	p.wmu.Unlock()
}

// push starts to write what is sealed, and unlocks wmu: at once, or in the background
// where a write cannot be tried. A reader, or the next Send, finds out what became of it.
func (p *Pipe) push() {
	if p.c.raw != nil {
		_ = p.c.tryFlush()
		p.wmu.Unlock()
		return
	}
	go func() { // it ends with the connection at the latest
		defer p.wmu.Unlock()
		_ = p.c.flush()
	}()
}

// seal encrypts and writes; the caller holds wmu and nothing is pending.
func (p *Pipe) seal(frame []byte) error {
	if f := p.dead.Load(); f != nil {
		return f
	}
	p.frames++
	if _, err := p.tls.Write(frame); err != nil {
		return p.writeFailed(err)
	}
	if err := p.c.flush(); err != nil {
		return p.writeFailed(err)
	}
	return nil
}

// signal seals a frame without payload, if nothing else is being written: signs
// of life are not needed where data is in the way. It never waits for the network.
// wanted decides, under the write lock, whether the frame is still wanted.
func (p *Pipe) signal(t wire.FrameType, flags uint8, number uint64, wanted func() bool) {
	if !p.wmu.TryLock() {
		return
	}
	if p.dead.Load() != nil {
		p.wmu.Unlock()
		return
	}
	// What a write that timed out, or an earlier signal, has left is a sign of
	// life by itself, and nobody else may ever come to finish it.
	if !p.c.pending() && wanted() {
		var frame [wire.HeaderLen]byte
		wire.Header{Type: t, Flags: flags, Offset: number}.Put(frame[:])
		p.frames++
		_, _ = p.tls.Write(frame[:]) // into memory; a reader, or the next Send, finds out
	}
	if !p.c.pending() {
		p.wmu.Unlock()
		return
	}
	p.push()
}

// Flush writes what a Send that timed out has left, if anything.
func (p *Pipe) Flush() error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if err := p.c.flush(); err != nil {
		return p.writeFailed(err)
	}
	return nil
}

// Flushed reports whether everything sent has been taken by the network.
func (p *Pipe) Flushed() bool {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	return !p.c.pending()
}
