package hub_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

// TestGone: what clients of other proxies showed is told to be gone when it was revoked,
// or what gave it its rights, and not before; however often it was asked for.
func TestGone(t *testing.T) {
	p := newPeopled(t, func(c *config.SignIn) { c.SessionTTL = 10 * time.Minute })
	ctx := t.Context()
	p.grant("default", "viewer", "group:sre")
	enrol := func(token string) (item string) {
		t.Helper()
		request := tokenRequest(t, token)
		request.Role, request.Name, request.Replica = "proxy", "near", "verify"
		res, err := p.client("").Exchange(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		return res.Item
	}
	ground := func(kind, name, token string) registry.Ground {
		return registry.Ground{Organization: "default", Kind: kind, Name: name, Item: enrol(token)}
	}
	first, second := p.robot("default", "one"), p.robot("default", "two")
	ann, bob := p.user("ann@example.org", "sre"), p.user("bob@example.org", "sre")
	all := []registry.Ground{
		ground("robot", "one", first.Token), ground("robot", "two", second.Token),
		ground("user", "ann@example.org", ann.Token), ground("user", "bob@example.org", bob.Token),
	}
	if all[0].Item != first.AccessID {
		t.Errorf("the hub tells of item %q, want %q", all[0].Item, first.AccessID)
	}
	want := func(when string, want ...int) {
		t.Helper()
		for range 2 { // the first time it may come from the registry, the second from memory
			got, err := p.issued.Gone(ctx, all)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Fatalf("%s: %v\n%s", when, err, diff)
			}
		}
	}
	want("at first")
	if err := p.admin.DeleteRobotToken(ctx, "default", "one", "one"); err != nil {
		t.Fatal(err)
	}
	want("after a token", 0)
	if err := p.admin.RevokeUser(ctx, "ann@example.org"); err != nil {
		t.Fatal(err)
	}
	want("after a user", 0, 2)
	if err := p.admin.RevokeRole(ctx, "default", api.GrantRole{Role: "viewer", Principal: "group:sre"}); err != nil {
		t.Fatal(err)
	}
	want("after the last role", 0, 2, 3)
	if err := p.admin.DeleteOrganization(ctx, "default", true); err != nil {
		t.Fatal(err)
	}
	want("after the organization", 0, 1, 2, 3)

	// What nobody ever showed is not good either, whoever asks.
	foreign := []registry.Ground{
		{Organization: "default", Kind: "robot", Name: "one", Item: "nonsense"}, {Organization: "other", Kind: "robot", Name: "one", Item: first.AccessID},
	}
	if got, err := p.issued.Gone(ctx, foreign); err != nil || len(got) != 2 {
		t.Errorf("nonsense: gone %v, %v", got, err)
	}
	if got, err := p.issued.Gone(ctx, []registry.Ground{{Organization: "default", Kind: "wizard", Name: "one", Item: "x"}}); err == nil || len(got) != 0 {
		t.Errorf("an unknown kind: gone %v, %v", got, err)
	}
}

// moodyStore counts how often it is read, and may refuse.
type moodyStore struct {
	registry.Store
	reads   int
	refuses error
}

func (s *moodyStore) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	s.reads++
	if s.refuses != nil {
		return nil, 0, s.refuses
	}
	return s.Store.Get(ctx, key)
}

// TestGoneLooksOnce: a ground that stands is looked up once, and a registry that does not
// answer is no proof of anything.
func TestGoneLooksOnce(t *testing.T) {
	ctx := t.Context()
	store := &moodyStore{Store: registry.NewMemory()}
	reg := registry.New(store, nil)
	g, err := hub.OpenIssued(ctx, registry.NewMemory(), reg, newFixture(t), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.CreateRobot(ctx, "acme", "bot", ""); err != nil {
		t.Fatal(err)
	}
	token, _, err := reg.CreateToken(ctx, "acme", "bot", "one", time.Time{}, func(identity.RobotClaims) (string, error) { return "secret", nil })
	if err != nil {
		t.Fatal(err)
	}
	asked := []registry.Ground{{Organization: "acme", Kind: "robot", Name: "bot", Item: token.AccessID}}
	store.refuses = errors.New("out of order")
	for range 2 {
		if gone, err := g.Gone(ctx, asked); !errors.Is(err, store.refuses) || len(gone) != 0 {
			t.Errorf("a registry that is out of order: gone %v, %v", gone, err)
		}
	}
	store.refuses, store.reads = nil, 0
	for range 100 {
		if gone, err := g.Gone(ctx, asked); err != nil || len(gone) != 0 {
			t.Fatalf("gone %v, %v", gone, err)
		}
	}
	if store.reads == 0 || store.reads > 5 {
		t.Errorf("100 questions cost %d reads", store.reads)
	}
}
