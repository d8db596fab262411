package issuer

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of how often one caller gets tokens. An operator with a thousand providers
// renews one in two seconds; the burst is for its first start.
const (
	paceEvery = 200 * time.Millisecond
	paceBurst = 2000
	paceKnown = 4096 // callers that are remembered; about 200 bytes each
)

// Pace limits how often each caller gets a token. It is safe for concurrent use.
type Pace struct {
	every time.Duration
	burst int

	mu    sync.Mutex
	all   map[string]*list.Element // of *paced
	order *list.List               // the one that asked last in front
}

type paced struct {
	name    string
	limiter *rate.Limiter
}

// NewPace returns the pace at which callers may have tokens.
func NewPace() *Pace { return newPace(paceEvery, paceBurst) }

func newPace(every time.Duration, burst int) *Pace {
	return &Pace{every: every, burst: burst, all: make(map[string]*list.Element), order: list.New()}
}

// Wait returns how long a caller has to wait before it may ask again; 0 if it may
// go on now, which is counted.
func (p *Pace) Wait(caller string, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.all[caller]
	if ok {
		p.order.MoveToFront(e)
	} else {
		if p.order.Len() >= paceKnown {
			oldest := p.order.Back()
			delete(p.all, p.order.Remove(oldest).(*paced).name)
		}
		e = p.order.PushFront(&paced{caller, rate.NewLimiter(rate.Every(p.every), p.burst)})
		p.all[caller] = e
	}
	r := e.Value.(*paced).limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}
