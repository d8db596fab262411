package relay

import (
	"errors"
	"time"
)

// errStopped ends a direction that waited for its turn when its pipe ended.
var errStopped = errors.New("the pipe ended while it waited for its turn")

// signLen bounds a sign of life: one record of the inner TLS with a PING in it, and
// room to spare.
const signLen = 128

// signEvery is how often a direction of a pipe may send so few bytes without waiting
// for its turn: a bit more often than signs of life are sent.
const signEvery = time.Second

// pace holds one direction of a pipe to the limits on bytes per second. Signs of
// life pass it by, so that a pipe whose organization is busy is not taken for dead.
type pace struct {
	pair *pair
	sign time.Time // when the last few bytes passed without waiting
}

// limited reports whether there is any limit now.
func (p *pace) limited() bool { return p.pair.use.Throttled() }

// wait waits until n bytes may pass.
func (p *pace) wait(n int) error {
	if n <= signLen {
		if now := time.Now(); now.Sub(p.sign) >= signEvery {
			p.sign = now
			return nil
		}
	}
	if !p.pair.use.Take(n, p.pair) {
		return errStopped
	}
	return nil
}
