package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

// clock is a clock that stands still until it is set.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func setup(t *testing.T) (*registry.Registry, *registry.Memory, *clock) {
	t.Helper()
	store, clk := registry.NewMemory(), &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r := registry.New(store, clk.now)
	if _, err := r.EnsureOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	return r, store, clk
}

func signer(t *testing.T) *identity.TokenSigner {
	t.Helper()
	s, err := identity.NewTokenSigner("a.test")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mint makes a robot and a token, and returns its claims and the secret.
func mint(t *testing.T, r *registry.Registry, s *identity.TokenSigner, org, robot, name string) (identity.RobotClaims, string) {
	t.Helper()
	if _, err := r.CreateRobot(t.Context(), org, robot, ""); err != nil && !errors.Is(err, registry.ErrExists) {
		t.Fatal(err)
	}
	tok, secret, err := r.CreateToken(t.Context(), org, robot, name, time.Time{}, s.SignRobot)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.VerifyRobot(secret, tok.Created)
	if err != nil {
		t.Fatal(err)
	}
	return c, secret
}

func TestOrganizations(t *testing.T) {
	r, _, _ := setup(t)
	ctx := t.Context()
	if _, err := r.CreateOrganization(ctx, "acme"); !errors.Is(err, registry.ErrExists) {
		t.Errorf("create twice: %v", err)
	}
	if _, err := r.CreateOrganization(ctx, "no.dots"); err == nil {
		t.Error("bad name accepted")
	}
	first, err := r.Organization(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.EnsureOrganization(ctx, "acme"); err != nil || again != first {
		t.Errorf("ensure: %v, %v; want %v", again, err, first)
	}
	if _, err := r.CreateOrganization(ctx, "aaa"); err != nil {
		t.Fatal(err)
	}
	all, err := r.Organizations(ctx)
	if err != nil || len(all) != 2 || all[0].Name != "aaa" || all[1] != first {
		t.Errorf("list: %v, %v", all, err)
	}
	if err := r.DeleteOrganization(ctx, "other"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("delete unknown: %v", err)
	}
}

func TestRobotsAndTokens(t *testing.T) {
	r, _, clk := setup(t)
	ctx, s := t.Context(), signer(t)
	if _, err := r.CreateRobot(ctx, "none", "bot", ""); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("robot without organization: %v", err)
	}
	c, secret := mint(t, r, s, "acme", "bot", "laptop")
	if _, err := r.CreateRobot(ctx, "acme", "bot", ""); !errors.Is(err, registry.ErrExists) {
		t.Errorf("robot twice: %v", err)
	}
	if _, _, err := r.CreateToken(ctx, "acme", "bot", "laptop", time.Time{}, s.SignRobot); !errors.Is(err, registry.ErrExists) {
		t.Errorf("token twice: %v", err)
	}
	if _, _, err := r.CreateToken(ctx, "acme", "nobody", "x", time.Time{}, s.SignRobot); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("token without robot: %v", err)
	}

	clk.t = clk.t.Add(time.Hour)
	if err := r.CheckToken(ctx, c, secret); err != nil {
		t.Fatal(err)
	}
	if err := r.CheckToken(ctx, c, secret+"x"); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("other secret: %v", err)
	}
	all, err := r.Tokens(ctx, "acme", "bot")
	if err != nil {
		t.Fatal(err)
	}
	want := []registry.Token{{
		Organization: "acme", Robot: "bot", RobotUID: all[0].RobotUID, AccessID: c.AccessID, Name: "laptop",
		Hash: identity.HashSecret(secret), Created: clk.t.Add(-time.Hour), LastUsed: clk.t,
	}}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}

	if err := r.DeleteToken(ctx, "acme", "bot", "other"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("delete unknown: %v", err)
	}
	if err := r.DeleteToken(ctx, "acme", "bot", "laptop"); err != nil {
		t.Fatal(err)
	}
	if err := r.CheckToken(ctx, c, secret); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("after delete: %v", err)
	}
	c2, _ := mint(t, r, s, "acme", "bot", "laptop")
	if err := r.DeleteToken(ctx, "acme", "bot", c2.AccessID); err != nil {
		t.Errorf("delete by access ID: %v", err)
	}
}

func TestLastUsedIsWrittenRarely(t *testing.T) {
	r, store, clk := setup(t)
	c, secret := mint(t, r, signer(t), "acme", "bot", "laptop")
	key := "token.acme.bot." + c.AccessID
	revision := func() uint64 {
		if err := r.CheckToken(t.Context(), c, secret); err != nil {
			t.Fatal(err)
		}
		_, rev, err := store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	first := revision()
	clk.t = clk.t.Add(59 * time.Second)
	if again := revision(); again != first {
		t.Error("written again within a minute")
	}
	clk.t = clk.t.Add(2 * time.Second)
	if later := revision(); later == first {
		t.Error("not written after a minute")
	}
}

// A parent that is made again under the same name must not revive the children
// of the one before, even those that the deletion did not remove.
func TestDeletedParentsStayDeleted(t *testing.T) {
	ctx, s := t.Context(), signer(t)
	for name, remove := range map[string]func(*registry.Registry) error{
		"organization": func(r *registry.Registry) error { return r.DeleteOrganization(ctx, "acme") },
		"robot":        func(r *registry.Registry) error { return r.DeleteRobot(ctx, "acme", "bot") },
	} {
		t.Run(name, func(t *testing.T) {
			store := &stubborn{Memory: registry.NewMemory()}
			r := registry.New(store, nil)
			if _, err := r.CreateOrganization(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			c, secret := mint(t, r, s, "acme", "bot", "laptop")
			if err := remove(r); !errors.Is(err, errStubborn) {
				t.Fatalf("delete: %v", err)
			}
			if err := r.CheckToken(ctx, c, secret); !errors.Is(err, registry.ErrRevoked) {
				t.Errorf("after delete: %v", err)
			}
			if _, err := r.EnsureOrganization(ctx, "acme"); err != nil {
				t.Fatal(err)
			}
			if err := r.CheckToken(ctx, c, secret); !errors.Is(err, registry.ErrRevoked) {
				t.Errorf("after new organization: %v", err)
			}
			if _, err := r.CreateRobot(ctx, "acme", "bot", ""); err != nil {
				t.Fatal(err)
			}
			if err := r.CheckToken(ctx, c, secret); !errors.Is(err, registry.ErrRevoked) {
				t.Errorf("after new robot: %v", err)
			}
			if all, err := r.Tokens(ctx, "acme", "bot"); err != nil || len(all) != 0 {
				t.Errorf("tokens: %v, %v", all, err)
			}
			mint(t, r, s, "acme", "bot", "laptop")
		})
	}
}

var errStubborn = errors.New("stubborn store")

// stubborn is a store that deletes a first key and then no other.
type stubborn struct {
	*registry.Memory
	seen int
}

func (s *stubborn) Delete(ctx context.Context, key string) error {
	if s.seen++; s.seen > 1 {
		return errStubborn
	}
	return s.Memory.Delete(ctx, key)
}

func TestDeleteOrganizationLeavesNothing(t *testing.T) {
	r, store, _ := setup(t)
	ctx, s := t.Context(), signer(t)
	if _, err := r.CreateOrganization(ctx, "acme-2"); err != nil {
		t.Fatal(err)
	}
	other, otherSecret := mint(t, r, s, "acme-2", "bot", "laptop")
	for i := range 3 {
		mint(t, r, s, "acme", fmt.Sprintf("bot-%d", i), "one")
		mint(t, r, s, "acme", fmt.Sprintf("bot-%d", i), "two")
	}
	if err := r.DeleteOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"organization.acme", "robot.acme.", "token.acme."} {
		keys, _ := store.List(ctx, prefix)
		if len(keys) > 1 || (len(keys) == 1 && keys[0] != "organization.acme-2") {
			t.Errorf("left: %v", keys)
		}
	}
	if err := r.CheckToken(ctx, other, otherSecret); err != nil {
		t.Errorf("token of another organization: %v", err)
	}
}

func TestConcurrentUseOfOneToken(t *testing.T) {
	r, _, _ := setup(t)
	c, secret := mint(t, r, signer(t), "acme", "bot", "laptop")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := r.CheckToken(t.Context(), c, secret); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// The memory store against a plain map.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		m := registry.NewMemory()
		model, revs := map[string]string{}, map[string]uint64{}
		key := rapid.SampledFrom([]string{"a.x", "a.y", "b.x"})
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.String().Draw(t, "value")
				rev, err := m.Create(ctx, k, []byte(v))
				if _, exists := model[k]; exists != errors.Is(err, registry.ErrExists) {
					t.Fatalf("create %s: %v", k, err)
				} else if !exists {
					model[k], revs[k] = v, rev
				}
			},
			"update": func(t *rapid.T) {
				k, v, stale := key.Draw(t, "key"), rapid.String().Draw(t, "value"), rapid.Bool().Draw(t, "stale")
				rev := revs[k]
				if stale {
					rev++
				}
				_, exists := model[k]
				rev, err := m.Update(ctx, k, []byte(v), rev)
				if ok := exists && !stale; ok != (err == nil) || !ok && !errors.Is(err, registry.ErrConflict) {
					t.Fatalf("update %s: %v", k, err)
				} else if ok {
					model[k], revs[k] = v, rev
				}
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if err := m.Delete(ctx, k); err != nil {
					t.Fatal(err)
				}
				delete(model, k)
			},
			"": func(t *rapid.T) {
				keys, err := m.List(ctx, "a.")
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range keys {
					v, rev, err := m.Get(ctx, k)
					if err != nil || string(v) != model[k] || rev != revs[k] {
						t.Fatalf("%s = %q @ %d, %v; want %q @ %d", k, v, rev, err, model[k], revs[k])
					}
				}
				for _, k := range []string{"a.x", "a.y"} {
					if _, ok := model[k]; ok != slices.Contains(keys, k) {
						t.Fatalf("list %v, model %v", keys, model)
					}
				}
			},
		})
	})
}
