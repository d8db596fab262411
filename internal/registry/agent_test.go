package registry_test

import (
	"errors"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

func publicKey(t *testing.T) identity.PublicKey {
	t.Helper()
	k, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func TestRegisteredAgents(t *testing.T) {
	r, _, clk := setup(t)
	ctx := t.Context()
	one, two := publicKey(t), publicKey(t)
	if _, err := r.AddAgentKey(ctx, "acme", "edge", one); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("key of an unregistered agent: %v", err)
	}
	if _, err := r.RegisterAgent(ctx, "none", "edge", ""); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("agent without organization: %v", err)
	}
	if _, err := r.RegisterAgent(ctx, "acme", "edge", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RegisterAgent(ctx, "acme", "edge", ""); !errors.Is(err, registry.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	for _, k := range []identity.PublicKey{one, two} {
		if _, err := r.AddAgentKey(ctx, "acme", "edge", k); err != nil {
			t.Fatal(err)
		}
		clk.t = clk.t.Add(time.Second)
	}
	if _, err := r.AddAgentKey(ctx, "acme", "edge", one); !errors.Is(err, registry.ErrExists) {
		t.Errorf("key twice: %v", err)
	}
	for range 14 {
		if _, err := r.AddAgentKey(ctx, "acme", "edge", publicKey(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.AddAgentKey(ctx, "acme", "edge", publicKey(t)); !errors.Is(err, registry.ErrLimit) {
		t.Errorf("a 17th key: %v", err)
	}
	keys, err := r.AgentKeys(ctx, "acme", "edge")
	if err != nil || len(keys) != 16 || keys[0].ID != one.ID() || keys[1].ID != two.ID() || keys[0].Kind != "Ed25519" {
		t.Errorf("keys %+v, %v", keys, err)
	}
	if k, err := r.FindAgentKey(ctx, "acme", "edge", one.ID()); err != nil || k.ID() != one.ID() {
		t.Errorf("find: %v", err)
	}
	ground := registry.Ground{Organization: "acme", Kind: registry.GroundAgent, Name: "edge", Item: one.ID()}
	if err := r.CheckGround(ctx, ground); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", one.ID()[:7], "00000000", one.ID() + "0"} {
		if _, err := r.RemoveAgentKey(ctx, "acme", "edge", id); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("remove %q: %v", id, err)
		}
	}
	if _, err := r.RemoveAgentKey(ctx, "acme", "edge", one.ID()[:8]); err != nil {
		t.Fatal(err)
	}
	if err := r.CheckGround(ctx, ground); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("ground of a removed key: %v", err)
	}
	if err := r.UnregisterAgent(ctx, "acme", "edge"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RegisterAgent(ctx, "acme", "edge", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.FindAgentKey(ctx, "acme", "edge", two.ID()); !errors.Is(err, registry.ErrRevoked) {
		t.Errorf("key of an earlier registration: %v", err)
	}
}
