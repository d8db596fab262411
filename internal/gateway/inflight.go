package gateway

import (
	"sync"

	"postern.dev/postern/internal/wire"
)

// Limits bound what goes on at once. Zero means no limit.
type Limits struct {
	Short int // requests of one caller that are answered soon
	Long  int // watches, followed logs, exec and the like of one caller
	Total int // of all callers together
}

// inflight counts the requests that run. It remembers callers with requests only.
type inflight struct {
	limits Limits

	mu    sync.Mutex
	total int
	by    map[inflightKey]*[2]int // short and long
}

type inflightKey struct{ organization, principal string }

func newInflight(l Limits) *inflight {
	return &inflight{limits: l, by: make(map[inflightKey]*[2]int)}
}

func (i *inflight) of(c *call) (key inflightKey, kind, limit int) {
	key = inflightKey{c.caller.Organization, c.caller.Principal.String()}
	if c.long() {
		return key, 1, i.limits.Long
	}
	return key, 0, i.limits.Short
}

// enter counts a call in, or says which limit forbids it.
func (i *inflight) enter(c *call) error {
	key, kind, limit := i.of(c)
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.by[key]
	if n == nil {
		n = new([2]int)
	}
	if limit > 0 && n[kind] >= limit {
		what, flag := "requests", "--gateway-requests-per-user"
		if kind == 1 {
			what, flag = "watches and streams", "--gateway-streams-per-user"
		}
		return wire.Fail(wire.LegHub, wire.CodeOverloaded, "%s has %d %s at the gateway, which is the limit", c.caller.Principal, n[kind], what).
			WithHint("wait until others have ended, or have the hub's operator raise %s", flag)
	}
	if i.limits.Total > 0 && i.total >= i.limits.Total {
		return wire.Fail(wire.LegHub, wire.CodeOverloaded, "the gateway has %d requests, which is the limit", i.total).WithHint("try again")
	}
	i.total++
	n[kind]++
	i.by[key] = n
	return nil
}

func (i *inflight) leave(c *call) {
	key, kind, _ := i.of(c)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.total--
	n := i.by[key]
	if n[kind]--; *n == [2]int{} {
		delete(i.by, key)
	}
}
