package relay

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func proxyOf(org string) identity.ID {
	return identity.ID{TrustDomain: "test.internal", Organization: org, Role: identity.RoleProxy, Name: "near", Replica: "p"}
}

func agentOf(org string) identity.ID {
	return identity.ID{TrustDomain: "test.internal", Organization: org, Role: identity.RoleAgent, Name: "edge", Replica: "a"}
}

// TestRendezvousPairsOnce lets the bearers of many tickets come at random times, some
// never, some twice, some too late or with a context that ends, and checks that each
// ticket joins two at most, and exactly those who came in time.
func TestRendezvousPairsOnce(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			meet := newRendezvous(8 * time.Second)
			var wg sync.WaitGroup
			var mu sync.Mutex
			pairs := make(map[wire.Ticket]int)
			told := make(map[wire.Ticket]int) // parties that were told of a peer
			const n = 200
			for range n {
				ticket := wire.NewTicket("")
				bearers := []identity.ID{proxyOf("acme"), agentOf("acme")}
				if r.IntN(4) == 0 {
					bearers = append(bearers, bearers[r.IntN(2)]) // somebody comes again
				}
				if r.IntN(5) == 0 {
					bearers = bearers[:1] // the other one does not come
				}
				for _, id := range bearers {
					at, patience := time.Duration(r.Int64N(int64(10*time.Second))), time.Duration(r.Int64N(int64(20*time.Second)))
					wg.Go(func() {
						time.Sleep(at)
						ctx, cancel := context.WithTimeout(context.Background(), patience)
						defer cancel()
						p := &party{id: id, met: make(chan outcome, 1)}
						peer, _, second, refusal := meet.meet(ctx, ticket, p)
						if (peer == nil) == (refusal == nil) {
							t.Errorf("peer %v, refusal %v", peer, refusal)
						}
						if peer == nil {
							return
						}
						if peer == p || peer.id.Role == id.Role {
							t.Error("joined with itself, or its like")
						}
						mu.Lock()
						defer mu.Unlock()
						told[ticket]++
						if second {
							pairs[ticket]++
							peer.met <- outcome{peer: p}
						}
					})
				}
			}
			wg.Wait()
			for ticket, n := range pairs {
				if n != 1 || told[ticket] != 2 {
					t.Errorf("a ticket joined %d pairs; %d parties were told", n, told[ticket])
				}
			}
			if len(told) != len(pairs) || len(pairs) < n/10 {
				t.Errorf("%d tickets joined pairs, and for %d somebody was told so", len(pairs), len(told))
			}
			if waiting, burnt := meet.counts(); waiting != 0 || burnt != n {
				t.Errorf("%d wait, %d tickets of %d are remembered", waiting, burnt, n)
			}

			// In the end nothing is remembered.
			time.Sleep(burnTime + time.Second)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, _, _, _ = meet.meet(ctx, wire.NewTicket(""), &party{id: proxyOf("acme"), met: make(chan outcome, 1)})
			if waiting, burnt := meet.counts(); waiting != 0 || burnt != 1 || len(meet.order) != 1 || len(meet.shares) != 1 {
				t.Errorf("%d wait, %d tickets are remembered long after", waiting, burnt)
			}
		})
	}
}

func TestRendezvousIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meet := newRendezvous(8 * time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range maxWaiting {
			wg.Go(func() {
				org := string(rune('a' + i/maxWaitingPerOrg))
				_, _, _, _ = meet.meet(ctx, wire.NewTicket(""), &party{id: proxyOf(org), met: make(chan outcome, 1)})
			})
		}
		synctest.Wait()
		if _, _, _, f := meet.meet(ctx, wire.NewTicket(""), &party{id: proxyOf("acme"), met: make(chan outcome, 1)}); f == nil || f.Code != wire.CodeOverloaded {
			t.Errorf("one more than may wait: %v", f)
		}
		cancel()
		wg.Wait()
	})
}

// TestOneOrganizationCannotFillTheRendezvous lets one present as many tickets as it
// likes. It is refused in the end, and another one meets as ever.
func TestOneOrganizationCannotFillTheRendezvous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meet := newRendezvous(8 * time.Second)
		meet.perOrg = share{waiting: 50, burnt: 400}
		come := func(ctx context.Context, id identity.ID, ticket wire.Ticket) *wire.Failure {
			self := &party{id: id, met: make(chan outcome, 1)}
			peer, _, second, f := meet.meet(ctx, ticket, self)
			if second && peer != nil {
				peer.met <- outcome{peer: self}
			}
			return f
		}
		pair := func(org string) *wire.Failure {
			ticket := wire.NewTicket("")
			var f *wire.Failure
			var wg sync.WaitGroup
			wg.Go(func() { f = come(t.Context(), proxyOf(org), ticket) })
			synctest.Wait()
			if g := come(t.Context(), agentOf(org), ticket); g != nil {
				return g
			}
			wg.Wait()
			return f
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range meet.perOrg.waiting {
			wg.Go(func() { _ = come(ctx, proxyOf("evil"), wire.NewTicket("")) })
		}
		synctest.Wait()
		if f := come(ctx, proxyOf("evil"), wire.NewTicket("")); f == nil || f.Code != wire.CodeOverloaded {
			t.Errorf("one more of the organization than may wait: %v", f)
		}
		if f := pair("acme"); f != nil {
			t.Errorf("another organization: %v", f)
		}
		cancel()
		wg.Wait()

		// The same with tickets that have been used.
		ctx, cancel = context.WithCancel(context.Background())
		cancel()
		refused := 0
		for range meet.perOrg.burnt {
			if f := come(ctx, proxyOf("evil"), wire.NewTicket("")); f.Code == wire.CodeOverloaded {
				refused++
			}
		}
		if refused != meet.perOrg.waiting { // those above were used too
			t.Errorf("%d tickets were refused, want %d", refused, meet.perOrg.waiting)
		}
		if f := pair("acme"); f != nil {
			t.Errorf("another organization, beside used tickets: %v", f)
		}
		time.Sleep(burnTime + time.Second)
		if f := pair("evil"); f != nil {
			t.Errorf("it is not let in again: %v", f)
		}
	})
}

func TestMayPair(t *testing.T) {
	for name, tt := range map[string]struct {
		a, b identity.ID
		ok   bool
	}{
		"proxy and agent":    {proxyOf("acme"), agentOf("acme"), true},
		"agent and proxy":    {agentOf("acme"), proxyOf("acme"), true},
		"two proxies":        {proxyOf("acme"), proxyOf("acme"), false},
		"two agents":         {agentOf("acme"), agentOf("acme"), false},
		"two organizations":  {proxyOf("acme"), agentOf("evil"), false},
		"two trust domains":  {proxyOf("acme"), identity.ID{TrustDomain: "other.internal", Organization: "acme", Role: identity.RoleAgent}, false},
		"a hub and an agent": {identity.ID{TrustDomain: "test.internal", Organization: "acme", Role: identity.RoleHub}, agentOf("acme"), false},
	} {
		if f := mayPair(tt.a, tt.b); (f == nil) != tt.ok {
			t.Errorf("%s: %v", name, f)
		}
	}
}
