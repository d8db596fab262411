package proxy

import (
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

// kept is a stream that the transport keeps for further requests. An agent that
// drains waits for its streams, so one that is idle then is closed, and one that is not
// when its request is done. It reports what it carried when it is closed.
type kept struct {
	Stream
	in, out atomic.Int64
	closed  func(Stats)
	once    sync.Once
	over    atomic.Bool // it was closed
	forget  func() bool // the call of leave

	// reading: the transport waits for bytes, and has none left that came before.
	reading atomic.Bool
	changed chan struct{} // holds one when reading begins and at the end, for awaitReader

	mu      sync.Mutex
	user    *forwarded // the request that it serves
	used    bool       // it has served one
	leaving bool
	timer   *time.Timer // until a stream that was never used is closed
}

// firstUse is how long a new stream may wait for its first request. The transport would
// take it for a failure if it was closed before; and it may not come, because another
// stream was free sooner.
const firstUse = time.Second

// trace tells a request's stream when it begins to serve it, and when it is idle again.
func (f *forwarded) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if k, ok := info.Conn.(*kept); ok {
				f.kept.Store(k)
				k.begin(f)
				if info.Reused {
					k.awaitReader()
				}
			}
		},
		PutIdleConn: func(err error) {
			if k := f.kept.Load(); err == nil && k != nil {
				k.end(f)
			}
		},
	}
}

func (k *kept) begin(f *forwarded) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.user, k.used = f, true
}

// end notes that a request is done. The next one may have begun meanwhile.
func (k *kept) end(f *forwarded) {
	k.mu.Lock()
	idle := k.user == f
	if idle {
		k.user = nil
	}
	leaving := k.leaving
	k.mu.Unlock()
	if idle && leaving {
		_ = k.Close()
	}
}

// leave is called when the replica at the other end is about to go. A request that the
// transport gives to the stream at this very moment is sent over another one, unless it
// has a body.
func (k *kept) leave() {
	k.mu.Lock()
	k.leaving = true
	idle := k.user == nil
	if !k.used {
		k.timer = time.AfterFunc(firstUse, k.leaveUnused)
		idle = false
	}
	k.mu.Unlock()
	if idle {
		_ = k.Close()
	}
}

func (k *kept) leaveUnused() {
	k.mu.Lock()
	idle := k.user == nil
	k.mu.Unlock()
	if idle {
		_ = k.Close()
	}
}

func (k *kept) Read(b []byte) (int, error) {
	k.reading.Store(true)
	k.change()
	n, err := k.Stream.Read(b)
	k.reading.Store(false)
	k.in.Add(int64(n))
	return n, err
}

func (k *kept) change() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// readerWait is how long the transport may take to look for what a target has sent
// behind its answer.
const readerWait = time.Second

// awaitReader waits, before a further request is written, until the transport reads again.
// It offers a stream for the next request before it has looked whether the target sent
// more than its answer; what it finds only then, it takes for the answer to that request.
// So it is given the time to find it first and to close the stream: the request is sent
// over another one.
func (k *kept) awaitReader() {
	if k.reading.Load() {
		return
	}
	timer := time.NewTimer(readerWait)
	defer timer.Stop()
	for !k.reading.Load() && !k.over.Load() {
		select {
		case <-k.changed:
		case <-timer.C:
			_ = k.Close()
			return
		}
	}
}

func (k *kept) Write(b []byte) (int, error) {
	n, err := k.Stream.Write(b)
	k.out.Add(int64(n))
	return n, err
}

func (k *kept) Close() error {
	k.over.Store(true)
	k.change()
	k.forget()
	k.mu.Lock()
	if k.timer != nil {
		k.timer.Stop()
	}
	k.mu.Unlock()
	err := k.Stream.Close()
	k.once.Do(func() { k.closed(Stats{BytesIn: k.in.Load(), BytesOut: k.out.Load()}) })
	return err
}
