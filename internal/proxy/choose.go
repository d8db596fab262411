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

// pick chooses a replica: of two drawn at random, in our own zone if there are
// any, the one with fewer streams, or the nearer one when they are equal.
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
	var near, far, mute []candidate
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
		c := candidate{r, max(p.Streams, int(r.streams.Load())), p.RTT}
		switch {
		case time.Now().Before(d.shunned[key]):
			mute = append(mute, c)
		case d.cfg.Zone != "" && p.Zone == d.cfg.Zone:
			near = append(near, c)
		default:
			far = append(far, c)
		}
	}
	if len(near) == 0 {
		near = far
	}
	if len(near) == 0 {
		near = mute
	}
	if len(near) == 0 {
		return nil, known
	}
	a, b := near[rand.N(len(near))], near[rand.N(len(near))]
	if b.load < a.load || b.load == a.load && b.rtt < a.rtt {
		a = b
	}
	return a.replica, known
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

// maxMemory bounds how many agents, existing or not, are remembered.
const maxMemory = 1024

// memory is what the directory said of an agent, and when.
type memory struct {
	replicas []bus.Presence
	at       time.Time
	changed  <-chan struct{} // closed when it is out of date
}

type candidate struct {
	replica *replica
	load    int
	rtt     time.Duration
}
