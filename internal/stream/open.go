package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// NewID draws a stream ID.
func NewID() (id wire.StreamID) {
	_, _ = rand.Read(id[:]) // never fails: see crypto/rand
	return id
}

// MaxEarly is the most that Open sends along, in bytes.
const MaxEarly = 8 << 10

// answerGrace is how much longer than the agent's own limit an opener waits for
// its answer.
const answerGrace = 2 * time.Second

// Open asks for a stream over an idle pipe and waits until the agent has reached
// the target. early is what is already known to go to the target, at most
// MaxEarly bytes: it travels with the request, in one record. Whatever the outcome, host.Done takes the pipe back in the end, when
// Open failed at once or later. Errors are *wire.Failure: the agent's refusal,
// CodeCanceled or CodeTimeout when ctx or the time limit of o ended, or CodeLost, in
// which case the target has seen no byte but those of early, and another pipe may be
// tried if there were none.
func Open(ctx context.Context, p *pipe.Pipe, o wire.Open, early []byte, host Host) (*Stream, error) {
	s := newStream(p, host, o.Stream)
	frame := make([]byte, wire.HeaderLen, 2*wire.HeaderLen+len(o.Target)+len(early)+64)
	frame = o.Append(frame)
	header := wire.Header{Type: wire.FrameOpen, Length: len(frame) - wire.HeaderLen}
	if len(early) > 0 {
		header.Flags = wire.FlagEarly
	}
	header.Put(frame)
	if len(early) > 0 {
		frame = wire.Append(frame, wire.FrameData, 0, 0, early)
		s.sent = uint64(len(early))
		host.Count(0, len(early))
	}
	if o.LimitMillis > 0 {
		_ = p.SetReadDeadline(time.Now().Add(time.Duration(o.LimitMillis)*time.Millisecond + answerGrace))
	}
	stop := context.AfterFunc(ctx, func() {
		_ = p.SetReadDeadline(past)
		_ = p.SetWriteDeadline(past)
	})
	_, err := p.Send(frame)
	if err == nil {
		err = s.answer()
	}
	canceled := !stop() // then deadlines may still fall on the pipe: nobody else must get it
	if canceled && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		_ = p.SetReadDeadline(time.Time{})
		return s, nil
	}
	var refusal *refusedError
	switch {
	case errors.As(err, &refusal):
		// The pipe is sound; the refused stream ends in order.
		s.peerDone.Store(true)
		s.closed.Store(true)
		s.finish(s.sendEOF(0) == nil && !canceled)
		return nil, refusal.failure
	case ctx.Err() != nil:
		f := wire.Fail(wire.LegClient, wire.CodeCanceled, "opening %s: %v", o.Target, context.Cause(ctx)).WithCause(ctx.Err())
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f.Leg, f.Code = wire.LegAgent, wire.CodeTimeout
		}
		s.Reset(f)
		return nil, f
	case timedOut(err):
		f := wire.Fail(wire.LegAgent, wire.CodeTimeout, "no answer from %s to open %s", p.Peer(), o.Target)
		s.Reset(f)
		return nil, f
	default:
		s.finish(false)
		return nil, wire.AsFailure(err, wire.LegRelay)
	}
}

// refusedError carries the agent's REFUSED out of answer.
type refusedError struct{ failure *wire.Failure }

func (e *refusedError) Error() string { return e.failure.Error() }

// answer reads OPENED or REFUSED.
func (s *Stream) answer() error {
	h, err := s.p.Next()
	if err != nil {
		return err
	}
	switch h.Type {
	case wire.FrameOpened:
		b := make([]byte, h.Length)
		if err := readFull(s.p, b); err != nil {
			return err
		}
		s.far = addr(b)
		return nil
	case wire.FrameRefused:
		f, err := readFailure(s.p, h.Length)
		if err != nil {
			return err
		}
		return &refusedError{f}
	case wire.FrameReset:
		// It cannot be meant for this stream, which nobody has accepted yet: the one
		// before ended for us, and was reset by the peer after that.
		s.p.Close()
		return wire.Fail(wire.LegRelay, wire.CodeLost, "the pipe's last stream was reset after its end")
	default:
		return s.protocolError("%s where OPENED was due", h.Type)
	}
}

// Incoming is a stream that a proxy asks for and that is not yet answered. Answer
// it once, by Accept or Refuse.
type Incoming struct {
	wire.Open
	p     *pipe.Pipe
	early bool // data for the target is there already
}

// Accept waits on an idle pipe for the next OPEN. An error means that the pipe is
// dead, or that its read deadline has passed.
func Accept(p *pipe.Pipe) (*Incoming, error) {
	h, err := p.Next()
	if err != nil {
		return nil, err
	}
	if h.Type != wire.FrameOpen {
		p.Close()
		return nil, wire.Fail(wire.LegProxy, wire.CodeProtocol, "%s where OPEN was due", h.Type)
	}
	b := make([]byte, h.Length)
	if err := readFull(p, b); err != nil {
		return nil, err
	}
	o, err := wire.ParseOpen(b)
	if err != nil {
		p.Close()
		return nil, wire.Fail(wire.LegProxy, wire.CodeProtocol, "%v", err)
	}
	return &Incoming{Open: o, p: p, early: h.Flags&wire.FlagEarly != 0}, nil
}

// Accept tells the proxy that the target was reached, at the given address, and
// returns the stream. When the client has spoken first, the target is likely to answer
// soon: then the message waits a moment, so that it can travel with that answer.
func (in *Incoming) Accept(reached string, host Host) (*Stream, error) {
	if len(reached) > wire.MaxAddressLen {
		reached = reached[:wire.MaxAddressLen]
	}
	s := newStream(in.p, host, in.Stream)
	send := in.p.Send
	if in.early {
		send = in.p.Hold
	}
	if _, err := send(wire.Append(nil, wire.FrameOpened, 0, 0, []byte(reached))); err != nil {
		s.finish(false)
		return nil, err
	}
	return s, nil
}

// Refuse tells the proxy why there is no stream, and reads to the end of what it
// had already sent. nil means that the pipe may carry the next stream; host.Done is
// not called.
func (in *Incoming) Refuse(f *wire.Failure, host Host) error {
	s := newStream(in.p, host, in.Stream)
	_ = in.p.SetReadDeadline(time.Now().Add(lingerTime))
	if _, err := in.p.Send(wire.Append(nil, wire.FrameRefused, 0, 0, f.Append(nil))); err != nil {
		return err
	}
	buf := host.Buffers().Get()
	defer host.Buffers().Put(buf)
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for {
		err := s.await()
		if err == nil {
			_, err = s.take(buf[:])
		}
		if err != nil {
			if s.peerDone.Load() {
				return in.p.SetReadDeadline(time.Time{})
			}
			return err
		}
	}
}

func readFailure(p *pipe.Pipe, n int) (*wire.Failure, error) {
	b := make([]byte, n)
	if err := readFull(p, b); err != nil {
		return nil, err
	}
	f, err := wire.ParseFailure(b)
	if err != nil {
		p.Close()
		return nil, wire.Fail(wire.LegRelay, wire.CodeProtocol, "%v", err)
	}
	return f, nil
}

// readFull reads a control frame's payload, which is small and came in the same
// record as its header: a time-out in its midst ends the pipe.
func readFull(p *pipe.Pipe, b []byte) error {
	for len(b) > 0 {
		n, err := p.Read(b)
		if err != nil {
			p.Close()
			return err
		}
		b = b[n:]
	}
	return nil
}
