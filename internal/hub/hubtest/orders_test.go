package hubtest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/party"
)

// listener is what of an agent hears orders. A whole agent of each would measure how
// this machine bears a hundred of them.
type listener struct {
	*party.Party
	id string

	mu     sync.Mutex
	newest []byte
	at     time.Time
}

// listener enrols an agent and has it hear its orders until the test ends.
func (w *world) listener(id string) *listener {
	w.t.Helper()
	settings := w.party("r1")
	settings.AgentID = id
	member, err := party.Start(w.t.Context(), party.Config{
		Settings: settings, Role: identity.RoleAgent, Name: id, Replica: "r1", Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	l := &listener{Party: member, id: id}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- member.Bus.FollowOrders(ctx, id, "r1", l.receive, l.knows) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		member.Close()
	})
	return l
}

func (l *listener) receive(message []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest, l.at = append(l.newest[:0], message...), time.Now()
}

func (l *listener) knows() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest != nil
}

// orders returns the newest orders.
func (l *listener) orders() (orders.Document, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return orders.Open(l.newest, l.Session.Grant().Configuration.OrdersKeys, config.DefaultOrganization, l.id)
}

// version returns the version of the newest orders, without looking at all of them, and
// when they came.
func (l *listener) version() (version uint64, at time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest == nil {
		return 0, l.at, errors.New("agent " + l.id + " has no orders")
	}
	z, err := gzip.NewReader(bytes.NewReader(l.newest[ed25519.SignatureSize:]))
	if err != nil {
		return 0, l.at, err
	}
	for text := json.NewDecoder(z); err == nil; {
		var token json.Token
		if token, err = text.Token(); token == "version" {
			return version, l.at, text.Decode(&version)
		}
	}
	return 0, l.at, err
}

// TestAccessReachesAHundredAgents: among hundreds of access grants, a change reaches a
// hundred agents within the two seconds that are promised.
func TestAccessReachesAHundredAgents(t *testing.T) {
	t.Parallel()
	const agents, grants, promise = 100, 500, 2 * time.Second
	w, ctx := newWorld(t, nil), t.Context()
	w.log = slog.New(slog.DiscardHandler)
	have, err := w.admin.AccessGrants(ctx, config.DefaultOrganization)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(have); i < grants; i++ {
		if _, err := w.admin.GrantAccess(ctx, config.DefaultOrganization, api.CreateAccessGrant{
			To: fmt.Sprintf("group:team-%d", i), Agent: "*", Targets: []string{fmt.Sprintf("tcp:10.0.%d.0/24:443", i%256), "tcp:db.team.example:5432"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	all := make([]*listener, agents)
	for i := range all {
		all[i] = w.listener(fmt.Sprintf("edge-%d", i))
	}
	// known waits until all agents were told of a number of grants, and returns when the
	// last was. To read them takes longer than to tell them, so one reads, and of the
	// others it is only looked at the version.
	known := func(want int) (last time.Time) {
		t.Helper()
		var version uint64
		eventually(t, patience, func() error {
			d, err := all[0].orders()
			if err == nil && len(d.Access) != want {
				err = fmt.Errorf("agent %s knows %d access grants, not %d", all[0].id, len(d.Access), want)
			}
			version = d.Version
			return err
		})
		for _, l := range all {
			eventually(t, patience, func() error {
				got, at, err := l.version()
				if err == nil && got < version {
					err = fmt.Errorf("agent %s has orders %d, not %d", l.id, got, version)
				}
				if at.After(last) {
					last = at
				}
				return err
			})
		}
		return last
	}
	for _, l := range all { // those that came later may have a later version of the same
		eventually(t, patience, func() error { _, _, err := l.version(); return err })
	}
	for i := range 3 {
		begin := time.Now()
		g, err := w.admin.GrantAccess(ctx, config.DefaultOrganization, api.CreateAccessGrant{To: "group:new", Agent: "*", Targets: []string{"kubernetes"}})
		if err != nil {
			t.Fatal(err)
		}
		granted := known(grants + 1).Sub(begin)
		begin = time.Now()
		if err := w.admin.RevokeAccess(ctx, config.DefaultOrganization, g.ID); err != nil {
			t.Fatal(err)
		}
		revoked := known(grants).Sub(begin)
		t.Logf("round %d: %d agents were told of a grant within %s, of its end within %s", i, agents, granted.Round(time.Millisecond), revoked.Round(time.Millisecond))
		if max(granted, revoked) > promise+slack {
			t.Errorf("round %d: told within %s and %s; want %s", i, granted, revoked, promise)
		}
	}
}
