package hub

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// recentFor is how long it is remembered whose a token is. That it was not revoked
	// meanwhile is for Issued.Lodge to say.
	recentFor = 5 * time.Second

	maxRecent = 4096
)

// recentCallers remembers whose the tokens are that were shown a moment ago, for those
// who make many requests with one. It keeps no token. Safe for concurrent use.
type recentCallers struct {
	key [sha256.Size]byte // of the digests: a dump of them helps nobody
	mu  sync.Mutex
	all map[[sha256.Size]byte]recentCaller
}

type recentCaller struct {
	Caller
	until time.Time
}

func newRecentCallers() *recentCallers {
	r := &recentCallers{all: make(map[[sha256.Size]byte]recentCaller)}
	_, _ = rand.Read(r.key[:]) // never fails
	return r
}

func (r *recentCallers) digest(token string) (d [sha256.Size]byte) {
	h := hmac.New(sha256.New, r.key[:])
	_, _ = h.Write([]byte(token)) // never fails
	h.Sum(d[:0])
	return d
}

func (r *recentCallers) get(d [sha256.Size]byte, now time.Time) (Caller, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.all[d]
	return c.Caller, ok && now.Before(c.until)
}

func (r *recentCallers) put(d [sha256.Size]byte, c Caller, now time.Time) {
	until := now.Add(recentFor)
	if !c.Expires.IsZero() && c.Expires.Before(until) {
		until = c.Expires
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= maxRecent {
		for k, old := range r.all {
			if !now.Before(old.until) {
				delete(r.all, k)
			}
		}
	}
	if len(r.all) < maxRecent {
		r.all[d] = recentCaller{c, until}
	}
}
