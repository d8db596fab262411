package controller

import (
	"crypto/sha256"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/operator/api/v1alpha1"
)

// How often a Proxy is looked at while nothing is heard of it: the hub and the Secret tell nothing
// by themselves. Half as much again is added at random.
const (
	lookOften  = 2 * time.Second // as long as it is not as it should be, and for a while after a change
	lookSeldom = 5 * time.Second
	lookLater  = 20 * time.Second // after many looks that found the same trouble
	// askFrontAgain is how often the hub's own proxy is asked again about a password that it took.
	askFrontAgain = 5 * time.Minute
	manyLooks     = 30
	// maxLooks bounds how many looks the operator takes in a second: with more Proxies, each is
	// looked at less often.
	maxLooks = 20
)

// memory is what is remembered of a Proxy. It saves work, and nothing depends on it.
type memory struct {
	uid     types.UID
	dirty   bool      // something that was made for it has changed
	applied string    // digest of what was applied last
	at      time.Time // when
	secret  string    // version of the password's Secret then
	foreign *problem  // what came of it
	token   [sha256.Size]byte
	taken   [sha256.Size]byte // digest of the line and password that the hub's own proxy took; zero for none
	takenAt time.Time
	looks   int // that found the same
}

// pause returns when to look at a Proxy again.
func (r *Reconciler) pause(key types.NamespacedName, f facts, same bool) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memory[key]
	if m == nil {
		return lookOften
	}
	if !same {
		m.looks = 0
	}
	m.looks = min(m.looks+1, manyLooks)
	wait := lookOften
	switch {
	case f.works():
		wait = lookSeldom
	case m.looks >= manyLooks && f.problem != nil:
		wait = lookLater
	case m.looks >= manyLooks:
		wait = lookSeldom
	}
	wait = max(wait, time.Duration(len(r.memory))*time.Second/maxLooks)
	return wait + rand.N(wait/2)
}

// remember returns what is remembered of a Proxy. Its fields are guarded by mu.
func (r *Reconciler) remember(p v1alpha1.Object) *memory {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.memory == nil {
		r.memory = make(map[types.NamespacedName]*memory)
	}
	key := client.ObjectKeyFromObject(p)
	m := r.memory[key]
	if m == nil || m.uid != p.GetUID() {
		m = &memory{uid: p.GetUID()}
		r.memory[key] = m
	}
	return m
}

// touched notes that something of a Proxy was changed by somebody.
func (r *Reconciler) touched(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.memory[key]; m != nil {
		m.dirty = true
	}
}

func (r *Reconciler) forget(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.memory[key]; m != nil {
		r.Metrics.Forgot(m.uid)
	}
	delete(r.memory, key)
}
