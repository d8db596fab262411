package limit

import (
	"cmp"
	"slices"
	"time"
)

// Totals is what has happened since the start.
type Totals struct {
	Refused   [Kinds]uint64 // by Kind
	Throttled time.Duration // that bytes have waited, summed over all that waited
}

func (t *Totals) add(m *meter) {
	for k, n := range m.refused {
		t.Refused[k] += n
	}
	t.Throttled += time.Duration(m.throttled.Load())
}

// Usage is what a party uses now, and may use.
type Usage struct {
	Key
	Own     Limits // set for this party
	Limits  Limits // that hold
	Streams int64
	Pipes   int64

	Agents, Connections int64 // of an organization

	Totals
}

// Used returns how much of a limit is in use; false for rates, which are not in use.
func (u *Usage) Used(k Kind) (int64, bool) {
	switch k {
	case Streams:
		return u.Streams, true
	case Agents:
		return u.Agents, u.Level == Organization
	case Connections:
		return u.Connections, u.Level == Organization
	default:
		return 0, false
	}
}

// count completes what is told of an organization; mu is not held.
func (b *Book) count(u *Usage) {
	if u.Level == Organization && b.opt.Count != nil {
		agents, connections := b.opt.Count(u.Organization)
		u.Agents, u.Connections = int64(agents), int64(connections)
	}
}

// Usage returns what the parties of an organization use that have limits of their
// own or were heard of lately, and the organization itself, which comes first.
func (b *Book) Usage(organization string) []Usage {
	all := b.usage(organization)
	for i := range all {
		b.count(&all[i])
	}
	return all
}

func (b *Book) usage(organization string) []Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := map[Key]bool{{Level: Organization, Organization: organization}: true}
	for key := range b.set {
		keys[key] = true
	}
	for key := range b.meters {
		keys[key] = true
	}
	all := make([]Usage, 0, len(keys))
	for key := range keys {
		if key.Organization != organization {
			continue
		}
		u := Usage{Key: key, Own: b.set[key], Limits: b.limits(key)}
		if m := b.meters[key]; m != nil {
			u.Streams, u.Pipes = m.streams, m.pipes
			u.add(m)
		}
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b Usage) int {
		return cmp.Or(cmp.Compare(a.Level, b.Level), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Sum returns sums for metrics: for each organization and level an entry without a
// Name. Parties of the level whole are told with the limits that hold for them, so
// there should be one in an organization.
func (b *Book) Sum(whole Level) []Usage {
	all := b.sum(whole)
	for i := range all {
		b.count(&all[i])
	}
	return all
}

func (b *Book) sum(whole Level) []Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	sums := make(map[Key]*Usage)
	at := func(key Key) *Usage {
		key.Name = ""
		if sums[key] == nil {
			sums[key] = &Usage{Key: key}
		}
		return sums[key]
	}
	for key, t := range b.gone {
		at(key).Totals = *t
	}
	for key, m := range b.meters {
		u := at(key)
		u.add(m)
		u.Streams, u.Pipes = u.Streams+m.streams, u.Pipes+m.pipes
		if key.Level == whole {
			u.Limits = m.limits
		}
	}
	all := make([]Usage, 0, len(sums))
	for _, u := range sums {
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b Usage) int {
		return cmp.Or(cmp.Compare(a.Organization, b.Organization), cmp.Compare(a.Level, b.Level))
	})
	return all
}
