package bus

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Limits of a Directory.
const (
	maxReplicas = 50_000          // further ones are not taken in
	forgetAfter = time.Hour       // how long a stopped or lost replica is still shown
	sweepEvery  = time.Second / 2 // so that silence shows within 10 seconds
)

// Directory knows the replicas of an organization's agents from their presence.
// It is safe for concurrent use.
type Directory struct {
	conn *Conn

	mu      sync.Mutex
	table   table
	names   map[string][]string // of each agent's replicas in table; nil: to be made
	changed chan struct{}
}

// NewDirectory watches presence until ctx ends or the Conn is closed. The
// agents are asked to announce themselves, so it fills within moments.
func (c *Conn) NewDirectory(ctx context.Context) (*Directory, error) {
	d := &Directory{conn: c, table: table{}, changed: make(chan struct{})}
	up := c.linkUp()
	stop, err := c.subscribe(subjectPresence+"*.*", "", func(_ *link, m *nats.Msg) { d.receive(m.Subject, m.Data) })
	if err != nil {
		return nil, err
	}
	if err := c.publish(ctx, subjectAsk, nil); err != nil {
		c.log.Debug("presence not asked for", "error", err) // the next link makes it up
	}
	if !c.start(func() {
		defer stop()
		d.run(ctx, up)
	}) {
		stop()
		return nil, errClosed
	}
	return d, nil
}

func (d *Directory) run(ctx context.Context, up <-chan struct{}) {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.conn.ctx.Done():
			return
		case <-up:
			up = d.conn.linkUp()
			// While there was no link everybody was silent to us: they get
			// another chance.
			d.update(func(t table, now time.Time) bool { t.excuse(now); return false })
			if err := d.conn.publish(ctx, subjectAsk, nil); err != nil {
				d.conn.log.Debug("presence not asked for", "error", err)
			}
		case <-sweep.C:
			if d.conn.Connected() {
				d.update(table.expire)
			}
		}
	}
}

func (d *Directory) receive(subject string, data []byte) {
	p, err := decodePresence(subject, data)
	if err != nil {
		d.conn.log.Debug("presence ignored", "subject", subject, "error", err)
		return
	}
	d.update(func(t table, now time.Time) bool { return t.apply(p, now) })
}

// update has f change the table: what is known of replicas, and either one more of them
// or some less. f reports whether people wait for the change.
func (d *Directory) update(f func(table, time.Time) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.table)
	changed := f(d.table, time.Now())
	if len(d.table) != before {
		d.names = nil
	}
	if changed {
		close(d.changed)
		d.changed = make(chan struct{})
	}
}

// Replicas returns the replicas of one agent, in the order of their names, also
// those that are stopped or lost since less than an hour. It does not look at other
// agents' replicas, however many there are.
func (d *Directory) Replicas(agent string) []Presence {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names == nil {
		d.names = make(map[string][]string)
		for k := range d.table {
			d.names[k.agent] = append(d.names[k.agent], k.replica)
		}
	}
	list := make([]Presence, 0, len(d.names[agent]))
	for _, name := range d.names[agent] {
		list = append(list, d.table[replicaKey{agent, name}].Presence)
	}
	sortPresences(list)
	return list
}

// All returns the replicas of all agents, in the order of their names.
func (d *Directory) All() []Presence {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Presence, 0, len(d.table))
	for _, e := range d.table {
		list = append(list, e.Presence)
	}
	sortPresences(list)
	return list
}

func sortPresences(list []Presence) {
	slices.SortFunc(list, func(a, b Presence) int {
		return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Replica, b.Replica))
	})
}

// Changed returns a channel that is closed at the next change of who is there
// and how: counters alone do not count. Take it before looking.
func (d *Directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

type replicaKey struct{ agent, replica string }

type entry struct {
	Presence
	heard time.Time
}

// table is a Directory's content.
type table map[replicaKey]entry

// apply takes an announcement in and reports whether something changed that
// people wait for.
func (t table) apply(p Presence, now time.Time) bool {
	k := replicaKey{p.Agent, p.Replica}
	old, known := t[k]
	if known && old.Epoch != p.Epoch && old.alive() && p.Started.Before(old.Started) {
		return false // the last words of a process whose successor we know already
	}
	if !known && len(t) >= maxReplicas {
		return false
	}
	t[k] = entry{Presence: p, heard: now}
	return !known || old.Epoch != p.Epoch || old.State != p.State || old.Zone != p.Zone ||
		old.Address != p.Address || old.LastError != p.LastError || !slices.Equal(old.Allow, p.Allow) || !samePolicy(old.Policy, p.Policy)
}

func samePolicy(x, y *PolicyStatus) bool {
	if x == nil || y == nil {
		return x == y
	}
	return x.Version == y.Version && x.Error == y.Error
}

func (e *entry) alive() bool { return e.State == StateReady || e.State == StateDraining }

// expire turns the silent ones into lost ones and forgets the long gone.
func (t table) expire(now time.Time) (changed bool) {
	for k, e := range t {
		silent := now.Sub(e.heard)
		switch {
		case e.alive() && silent > lostAfter:
			e.State, e.Since = StateLost, e.heard
			t[k] = e
			changed = true
		case !e.alive() && silent > forgetAfter:
			delete(t, k)
			changed = true
		}
	}
	return changed
}

// excuse lets the living start their silence anew.
func (t table) excuse(now time.Time) {
	for k, e := range t {
		if e.alive() {
			e.heard = now
			t[k] = e
		}
	}
}
