package registry_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

// newJoin makes a join string for agent edge of acme that is good for an hour.
func newJoin(t *testing.T, r *registry.Registry, clk *clock, change func(*registry.Join)) (registry.Join, string) {
	t.Helper()
	want := registry.Join{Organization: "acme", Agent: "edge", Expires: clk.now().Add(time.Hour)}
	if change != nil {
		change(&want)
	}
	j, secret, err := r.CreateJoin(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	return j, secret
}

// wantKeys compares an agent's keys with some, in the order of their making.
func wantKeys(t *testing.T, r *registry.Registry, want ...identity.PublicKey) {
	t.Helper()
	got, err := r.AgentKeys(t.Context(), "acme", "edge")
	if err != nil || len(got) != len(want) {
		t.Errorf("%d keys, %v; want %d", len(got), err, len(want))
		return
	}
	for i, k := range got {
		if k.ID != want[i].ID() {
			t.Errorf("key %d is %s", i, k.ID)
		}
	}
}

func TestJoin(t *testing.T) {
	r, _, clk := setup(t)
	ctx := t.Context()
	j, secret := newJoin(t, r, clk, nil)
	one, two := publicKey(t), publicKey(t)
	for name, id := range map[string][3]string{
		"organization": {"none", j.ID, secret}, "ID": {"acme", "0000000000000000", secret}, "secret": {"acme", j.ID, secret[1:] + "0"},
		"no secret": {"acme", j.ID, ""}, "hash as secret": {"acme", j.ID, j.Hash}, "key of a store": {"acme", "a.b", secret},
	} {
		if _, err := r.UseJoin(ctx, id[0], id[1], id[2], one); !errors.Is(err, registry.ErrJoinUnknown) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	used, err := r.UseJoin(ctx, "acme", j.ID, secret, one)
	if err != nil || used.KeyID != one.ID() || used.Agent != "edge" || used.Used.IsZero() {
		t.Fatalf("%+v, %v", used, err)
	}
	wantKeys(t, r, one)
	if _, err := r.UseJoin(ctx, "acme", j.ID, secret, two); !errors.Is(err, registry.ErrJoinUsed) {
		t.Errorf("another key: %v", err)
	}

	// The answer was lost, and found again long after the string's end.
	clk.t = clk.t.Add(2 * time.Hour)
	if again, err := r.UseJoin(ctx, "acme", j.ID, secret, one); err != nil || again.KeyID != one.ID() {
		t.Errorf("the same key again: %+v, %v", again, err)
	}
	// A key that was removed does not come back by the dead secret.
	if _, err := r.RemoveAgentKey(ctx, "acme", "edge", one.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseJoin(ctx, "acme", j.ID, secret, one); err != nil {
		t.Error(err)
	}
	wantKeys(t, r)
	if err := r.UnregisterAgent(ctx, "acme", "edge"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseJoin(ctx, "acme", j.ID, secret, one); err != nil {
		t.Error(err)
	}
	if _, err := r.Agent(ctx, "acme", "edge"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the agent is back: %v", err)
	}

	all, err := r.Joins(ctx, "acme")
	if err != nil || len(all) != 1 || !all[0].Registered {
		t.Errorf("%+v, %v", all, err)
	}
	clk.t = clk.t.Add(8 * 24 * time.Hour)
	if all, err = r.Joins(ctx, "acme"); err != nil || len(all) != 0 {
		t.Errorf("a week later: %+v, %v", all, err)
	}
}

func TestJoinRefusals(t *testing.T) {
	r, _, clk := setup(t)
	ctx := t.Context()
	late, lateSecret := newJoin(t, r, clk, nil)
	gone, goneSecret := newJoin(t, r, clk, nil)
	if _, err := r.RevokeJoin(ctx, "acme", gone.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseJoin(ctx, "acme", gone.ID, goneSecret, publicKey(t)); !errors.Is(err, registry.ErrJoinUnknown) {
		t.Errorf("revoked: %v", err)
	}
	for _, id := range []string{gone.ID, "", "*", ">"} {
		if _, err := r.RevokeJoin(ctx, "acme", id); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("revoke %q: %v", id, err)
		}
	}
	clk.t = clk.t.Add(time.Hour + time.Second)
	if _, err := r.UseJoin(ctx, "acme", late.ID, lateSecret, publicKey(t)); !errors.Is(err, registry.ErrJoinExpired) {
		t.Errorf("expired: %v", err)
	}

	// Registered by hand in between: the ID has an owner.
	early, earlySecret := newJoin(t, r, clk, nil)
	further, furtherSecret := newJoin(t, r, clk, func(j *registry.Join) { j.Further = true })
	if _, err := r.RegisterAgent(ctx, "acme", "edge", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseJoin(ctx, "acme", early.ID, earlySecret, publicKey(t)); !errors.Is(err, registry.ErrExists) {
		t.Errorf("registered meanwhile: %v", err)
	}
	wantKeys(t, r)
	if _, _, err := r.CreateJoin(ctx, registry.Join{Organization: "acme", Agent: "edge", Expires: clk.now().Add(time.Hour)}); !errors.Is(err, registry.ErrExists) {
		t.Errorf("for a registered agent: %v", err)
	}
	key := publicKey(t)
	if _, err := r.UseJoin(ctx, "acme", further.ID, furtherSecret, key); err != nil {
		t.Errorf("a further key: %v", err)
	}
	wantKeys(t, r, key)

	// An organization of the same name knows nothing of the earlier one's.
	j, secret := newJoin(t, r, clk, func(j *registry.Join) { j.Agent = "other" })
	if err := r.DeleteOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UseJoin(ctx, "acme", j.ID, secret, publicKey(t)); !errors.Is(err, registry.ErrJoinUnknown) {
		t.Errorf("of an earlier organization: %v", err)
	}
	for range 1024 {
		newJoin(t, r, clk, nil)
	}
	if _, _, err := r.CreateJoin(ctx, registry.Join{Organization: "acme", Agent: "edge", Expires: clk.now().Add(time.Hour)}); !errors.Is(err, registry.ErrLimit) {
		t.Errorf("too many: %v", err)
	}
}

// TestJoinRace has many agents come at once with one secret, each several times:
// one key wins, and all who bring that one are told so.
func TestJoinRace(t *testing.T) {
	r, _, clk := setup(t)
	j, secret := newJoin(t, r, clk, nil)
	keys := make([]identity.PublicKey, 16)
	for i := range keys {
		keys[i] = publicKey(t)
	}
	var mu sync.Mutex
	won := map[string]int{}
	var wg sync.WaitGroup
	for range 3 {
		for _, key := range keys {
			wg.Go(func() {
				_, err := r.UseJoin(t.Context(), "acme", j.ID, secret, key)
				if err != nil && !errors.Is(err, registry.ErrJoinUsed) {
					t.Error(err)
				}
				if err == nil {
					mu.Lock()
					won[key.ID()]++
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d keys won", len(won))
	}
	got, err := r.AgentKeys(t.Context(), "acme", "edge")
	if err != nil || len(got) != 1 || won[got[0].ID] != 3 {
		t.Errorf("keys %+v, %v; winners %v", got, err, won)
	}
}

// dying is a store of a hub that is killed at its nth change.
type dying struct {
	registry.Store
	left int
}

var errKilled = errors.New("killed")

func (d *dying) alive() error {
	if d.left--; d.left < 0 {
		return errKilled
	}
	return nil
}

func (d *dying) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := d.alive(); err != nil {
		return 0, err
	}
	return d.Store.Create(ctx, key, value)
}

func (d *dying) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if err := d.alive(); err != nil {
		return 0, err
	}
	return d.Store.Update(ctx, key, value, revision)
}

// TestJoinGoesOn kills the hub at every change of a use: the agent comes again with
// the same key and gets through, and nobody else does.
func TestJoinGoesOn(t *testing.T) {
	for n := range 10 {
		r, store, clk := setup(t)
		j, secret := newJoin(t, r, clk, nil)
		mine, theirs := publicKey(t), publicKey(t)
		_, err := registry.New(&dying{store, n}, clk.now).UseJoin(t.Context(), "acme", j.ID, secret, mine)
		if err == nil {
			if n < 4 {
				t.Errorf("a use makes %d changes only", n)
			}
			return
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if n > 0 {
			if _, err := r.UseJoin(t.Context(), "acme", j.ID, secret, theirs); !errors.Is(err, registry.ErrJoinUsed) {
				t.Errorf("killed at change %d, another key: %v", n, err)
			}
		}
		if _, err := r.UseJoin(t.Context(), "acme", j.ID, secret, mine); err != nil {
			t.Errorf("killed at change %d: %v", n, err)
		}
		wantKeys(t, r, mine)
	}
	t.Error("it never got through")
}
