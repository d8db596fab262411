package proxy

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/wire"
)

// shun keeps a replica that nobody hears any more from being chosen while there
// are others: its presence lasts some seconds longer than it does.
func (d *Dialer) shun(key replicaKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shunned[key] = time.Now().Add(shunTime)
	for k, until := range d.shunned {
		if time.Now().After(until) {
			delete(d.shunned, k)
		}
	}
}

// pick chooses a replica, and waits for one while agents are still being heard of.
func (d *Dialer) pick(ctx context.Context, agent string, avoid map[replicaKey]bool) (*replica, error) {
	for {
		changed := d.dir.Changed()
		r, known := d.choose(agent, avoid)
		if r != nil {
			return r, nil
		}
		settle := settleTime - time.Since(d.started)
		if settle <= 0 || len(avoid) > 0 {
			return nil, d.noAgent(agent, known)
		}
		timer := time.NewTimer(settle)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, d.noAgent(agent, known).WithCause(ctx.Err())
		}
		timer.Stop()
	}
}

func (d *Dialer) noAgent(agent string, known []bus.Presence) *wire.Failure {
	f := wire.Fail(wire.LegAgent, wire.CodeNoAgent, "no replica of agent %s is connected", agent)
	if len(known) == 0 {
		return f.WithHint("no such agent has been seen in organization %s: check its ID, and that it runs; see postern agents", d.cfg.Organization)
	}
	last := slices.MaxFunc(known, func(a, b bus.Presence) int { return a.Since.Compare(b.Since) })
	return f.WithHint("replica %s is %s since %s; see postern status %s", last.Replica, last.State, last.Since.UTC().Format(time.RFC3339), agent)
}

func (d *Dialer) choose(agent string, avoid map[replicaKey]bool) (*replica, []bus.Presence) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.known(agent)
	if d.ended {
		return nil, known
	}
	if len(known) == 0 {
		return nil, nil
	}
	d.wanted[agent] = true
	var all []candidate
	now := time.Now()
	for _, p := range known {
		key := replicaKey{agent, p.Replica, p.Epoch}
		r := d.replicas[key]
		switch {
		case avoid[key]:
			continue
		case p.State == bus.StateReady:
			r = d.pool(key)
		case p.State != bus.StateLost || r == nil || r.pool.Stats().Idle == 0:
			continue
		}
		all = append(all, candidate{
			replica: r, load: max(p.Streams, int(r.streams.Load())), rtt: p.RTT,
			ill:  !r.pool.Sound() || now.Before(d.shunned[key]),
			lost: p.State == bus.StateLost,
			far:  d.cfg.Zone != "" && p.Zone != d.cfg.Zone,
		})
	}
	if len(all) == 0 {
		return nil, known
	}
	return best(all, rand.N[int]).replica, known
}

// candidate is a replica that may be chosen.
type candidate struct {
	replica *replica
	load    int           // streams, of all proxies
	rtt     time.Duration // from the replica to the hub
	ill     bool          // its data path does not work, as far as we know, or it did not answer
	lost    bool          // it is silent on the bus, though it has pipes
	far     bool          // in another zone than ours
}

// rank orders candidates: any of a lower rank is better than all of a higher one.
func (c *candidate) rank() (n int) {
	if c.ill {
		n += 4
	}
	if c.lost {
		n += 2
	}
	if c.far {
		n++
	}
	return n
}

// best chooses among the candidates of the lowest rank: of two that are drawn, the one
// with fewer streams, or the nearer one when they have as many. draw returns a number
// below n at random.
func best(all []candidate, draw func(n int) int) *candidate {
	lowest := slices.MinFunc(all, func(a, b candidate) int { return a.rank() - b.rank() })
	rank := lowest.rank()
	all = slices.DeleteFunc(all, func(c candidate) bool { return c.rank() != rank })
	i := draw(len(all))
	a := &all[i]
	if len(all) == 1 {
		return a
	}
	b := &all[(i+1+draw(len(all)-1))%len(all)] // another one
	if b.load < a.load || b.load == a.load && b.rtt < a.rtt {
		return b
	}
	return a
}

// knownFor is how long what the directory said of an agent is used again, unless it
// changes: the counters of its replicas come every few seconds only.
const knownFor = 250 * time.Millisecond

// known returns an agent's replicas; the caller holds mu.
func (d *Dialer) known(agent string) []bus.Presence {
	if m, ok := d.memory[agent]; ok && time.Since(m.at) < knownFor {
		select {
		case <-m.changed:
		default:
			return m.replicas
		}
	}
	m := memory{changed: d.dir.Changed(), at: time.Now()}
	m.replicas = d.dir.Replicas(agent)
	if len(d.memory) >= maxMemory {
		clear(d.memory)
	}
	d.memory[agent] = m
	return m.replicas
}

// heardOf reports whether an agent has replicas, alive or not.
func (d *Dialer) heardOf(agent string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.known(agent)) > 0
}

// maxMemory bounds how many agents, existing or not, are remembered.
const maxMemory = 1024

// memory is what the directory said of an agent, and when.
type memory struct {
	replicas []bus.Presence
	at       time.Time
	changed  <-chan struct{} // closed when it is out of date
}
