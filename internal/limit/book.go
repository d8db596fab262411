package limit

import (
	"sync"
	"time"
)

// Book keeps the limits of parties and counts what they use. Make one with NewBook.
// Safe for concurrent use.
type Book struct {
	opt Options

	mu     sync.Mutex
	set    map[Key]Limits
	meters map[Key]*meter
	gone   map[Key]*Totals // of organizations: what the meters of agents and proxies counted before they were forgotten
	swept  time.Time
}

// Options is what a Book is made with.
type Options struct {
	Defaults Table // for parties without limits of their own

	// Hint, if not nil, says what to do about a refusal.
	Hint func(*Refusal) string

	// Count, if not nil, says how many agents and connections to the bus an
	// organization has, which the book does not count itself.
	Count func(organization string) (agents, connections int)

	// Refused, if not nil, is told of refusals: of each party and kind, once a
	// minute at most. It must not call the book.
	Refused func(*Refusal)
}

const (
	sweepEvery = time.Minute // how often meters of parties that are gone are forgotten
	idleTime   = time.Minute // how long one that nothing uses is kept: longer than its bursts
	tellEvery  = time.Minute
)

// NewBook returns a book in which nobody has limits of their own.
func NewBook(opt Options) *Book {
	return &Book{
		opt: opt, set: make(map[Key]Limits), meters: make(map[Key]*meter), gone: make(map[Key]*Totals), swept: time.Now(),
	}
}

// Enter counts in a stream or pipe of an organization, between a proxy and an agent;
// empty names are left out. The error says which limit forbids it; then nothing has
// changed. Otherwise Leave must follow.
func (b *Book) Enter(u Unit, organization, agent, proxy string) (*Use, *Refusal) {
	if b == nil {
		return nil, nil
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweep(now)
	use := &Use{book: b, unit: u}
	for _, key := range [...]Key{{Proxy, organization, proxy}, {Agent, organization, agent}, {Organization, organization, ""}} {
		if key.Level != Organization && key.Name == "" || key.Organization == "" {
			continue
		}
		m := b.meter(key, now)
		if refusal := m.enter(u, now); refusal != nil {
			for _, entered := range use.chain[:use.length] {
				entered.undo(u, now)
			}
			b.tell(m, refusal, now)
			return nil, refusal
		}
		use.chain[use.length] = m
		use.length++
	}
	return use, nil
}

func (b *Book) leave(u *Use) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range u.chain[:u.length] {
		m.leave(u.unit, now)
	}
}

// Admit says whether a party that has so many of a kind may have one more. Whoever
// asks does the counting.
func (b *Book) Admit(key Key, k Kind, have int) *Refusal {
	if b == nil {
		return nil
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meter(key, now)
	if v := m.limits.Get(k); v <= 0 || int64(have) < int64(v) {
		return nil
	}
	refusal := m.refuse(k, 0)
	b.tell(m, refusal, now)
	return refusal
}

// tell completes a refusal and reports it; mu is held.
func (b *Book) tell(m *meter, r *Refusal, now time.Time) {
	if b.opt.Hint != nil {
		r.Hint = b.opt.Hint(r)
	}
	if b.opt.Refused != nil && now.Sub(m.told[r.Kind]) >= tellEvery {
		m.told[r.Kind] = now
		b.opt.Refused(r)
	}
}

// meter returns a party's meter; mu is held.
func (b *Book) meter(key Key, now time.Time) *meter {
	m := b.meters[key]
	if m == nil {
		m = &meter{key: key, used: now}
		m.set(b.limits(key), now)
		b.meters[key] = m
	}
	return m
}

func (b *Book) limits(key Key) Limits { return b.set[key].Or(b.opt.Defaults[key.Level]) }

// Set gives a party limits of its own; what they leave unset is as by default. They
// hold at once, also for what is open: streams are not cut, but none is added.
func (b *Book) Set(key Key, l Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l == (Limits{}) {
		delete(b.set, key)
	} else {
		b.set[key] = l
	}
	b.follow(key)
}

// SetDefaults changes the limits of all that have none of their own.
func (b *Book) SetDefaults(t Table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opt.Defaults = t
	for key := range b.meters {
		b.follow(key)
	}
}

// follow makes a party's meter hold to what is set; mu is held.
func (b *Book) follow(key Key) {
	if m := b.meters[key]; m != nil && m.limits != b.limits(key) {
		m.set(b.limits(key), time.Now())
	}
}

// Limits returns the limits that hold for a party.
func (b *Book) Limits(key Key) Limits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limits(key)
}

// Know makes Sum tell of a party that has not used anything yet.
func (b *Book) Know(key Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.meter(key, time.Now())
}

// Default returns the limits of a level's parties that have none of their own.
func (b *Book) Default(l Level) Limits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opt.Defaults[l]
}

// Own returns what was set for parties of a level in an organization, by name.
func (b *Book) Own(l Level, organization string) map[string]Limits {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]Limits)
	for key, set := range b.set {
		if key.Level == l && key.Organization == organization {
			all[key.Name] = set
		}
	}
	return all
}

// Orders is the limits that a hub tells an agent, for each of its replicas.
type Orders struct {
	Agent   Limits            `json:"agent"`
	Proxy   Limits            `json:"proxy"`             // of a proxy that is not among the others
	Proxies map[string]Limits `json:"proxies,omitempty"` // that were set; what is unset is as in Proxy
}

// Obey makes the stricter hold of own limits and those of orders, for one agent of
// one organization.
func (b *Book) Obey(own Table, o Orders, organization string) {
	t := own
	t[Agent], t[Proxy] = own[Agent].And(o.Agent), own[Proxy].And(o.Proxy)
	b.SetDefaults(t)
	for name := range b.Own(Proxy, organization) {
		if _, still := o.Proxies[name]; !still {
			b.Set(Key{Proxy, organization, name}, Limits{})
		}
	}
	for name, l := range o.Proxies {
		b.Set(Key{Proxy, organization, name}, own[Proxy].And(l.Or(o.Proxy)))
	}
}

// Forget removes what an organization and its parties have set and used. What is
// open still counts nowhere else.
func (b *Book) Forget(organization string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range b.set {
		if key.Organization == organization {
			delete(b.set, key)
		}
	}
	for key := range b.meters {
		if key.Organization == organization {
			delete(b.meters, key)
		}
	}
	for key := range b.gone {
		if key.Organization == organization {
			delete(b.gone, key)
		}
	}
}

// sweep forgets the meters of agents and proxies that nothing uses, lest names that
// come and go fill the memory; mu is held.
func (b *Book) sweep(now time.Time) {
	if now.Sub(b.swept) < sweepEvery {
		return
	}
	b.swept = now
	for key, m := range b.meters {
		if key.Level == Organization || m.streams+m.pipes > 0 || now.Sub(m.used) < idleTime {
			continue
		}
		sum := Key{Level: key.Level, Organization: key.Organization}
		if b.gone[sum] == nil {
			b.gone[sum] = &Totals{}
		}
		b.gone[sum].add(m)
		delete(b.meters, key)
	}
}
