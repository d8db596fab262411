package registry_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

func TestRevocations(t *testing.T) {
	r, _, clk := setup(t)
	ctx := t.Context()
	if _, err := r.EnsureOrganization(ctx, "evil"); err != nil {
		t.Fatal(err)
	}
	first, err := r.RevokeParty(ctx, registry.Revocation{
		Organization: "acme", Role: identity.RoleAgent, Name: "edge", Reason: "stolen", By: "user:ann",
	})
	if err != nil || !first.Revoked.Equal(clk.t) {
		t.Fatalf("%+v, %v", first, err)
	}
	clk.t = clk.t.Add(time.Hour)
	again, err := r.RevokeParty(ctx, registry.Revocation{Organization: "acme", Role: identity.RoleAgent, Name: "edge", By: "user:bob"})
	if err != nil || again != first {
		t.Errorf("again: %+v, %v; want the first", again, err)
	}
	if _, err := r.RevokeParty(ctx, registry.Revocation{Organization: "acme", Role: identity.RoleProxy, Name: "ci", By: "user:bob"}); err != nil {
		t.Fatal(err)
	}
	var revoked *registry.RevokedError
	err = r.CheckParty(ctx, "acme", identity.RoleAgent, "edge")
	if !errors.As(err, &revoked) || revoked.Revocation != first || strings.Contains(err.Error(), "stolen") || strings.Contains(err.Error(), "ann") {
		t.Errorf("the revoked agent: %v", err)
	}
	for _, good := range []struct {
		org  string
		role identity.Role
		name string
	}{{"acme", identity.RoleProxy, "edge"}, {"acme", identity.RoleAgent, "edge2"}, {"evil", identity.RoleAgent, "edge"}, {"evil", identity.RoleProxy, "ci"}} {
		if err := r.CheckParty(ctx, good.org, good.role, good.name); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	if all, err := r.Revocations(ctx, "acme"); err != nil || len(all) != 2 || all[0] != first || all[1].Name != "ci" {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := r.Revocations(ctx, "evil"); err != nil || len(all) != 0 {
		t.Errorf("of the other organization: %+v, %v", all, err)
	}
	if v, err := r.RestoreParty(ctx, "acme", identity.RoleAgent, "edge"); err != nil || v != first {
		t.Errorf("restored %+v, %v", v, err)
	}
	if err := r.CheckParty(ctx, "acme", identity.RoleAgent, "edge"); err != nil {
		t.Errorf("after it was restored: %v", err)
	}
	if _, err := r.RestoreParty(ctx, "acme", identity.RoleAgent, "edge"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("restored twice: %v", err)
	}
}

// TestRevocationsRefused asks for what cannot be.
func TestRevocationsRefused(t *testing.T) {
	r, _, _ := setup(t)
	for name, tc := range map[string]struct {
		v    registry.Revocation
		want func(error) bool
	}{
		"no organization": {registry.Revocation{Organization: "none", Role: identity.RoleAgent, Name: "edge"}, func(err error) bool { return errors.Is(err, registry.ErrNotFound) }},
		"bad name":        {registry.Revocation{Organization: "acme", Role: identity.RoleAgent, Name: "a.b"}, isNameError},
		"no name":         {registry.Revocation{Organization: "acme", Role: identity.RoleProxy}, isNameError},
		"a hub":           {registry.Revocation{Organization: "acme", Role: identity.RoleHub, Name: "one"}, func(err error) bool { return err != nil }},
		"long reason": {registry.Revocation{Organization: "acme", Role: identity.RoleAgent, Name: "edge", Reason: strings.Repeat("x", 1025)},
			func(err error) bool { return errors.Is(err, registry.ErrTooLong) }},
	} {
		if v, err := r.RevokeParty(t.Context(), tc.v); !tc.want(err) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

func isNameError(err error) bool {
	var name *identity.NameError
	return errors.As(err, &name)
}

// TestRevocationsOfAnEarlierOrganization: a new organization by an old name starts afresh,
// also when the deletion of the old one was cut off.
func TestRevocationsOfAnEarlierOrganization(t *testing.T) {
	r, store, _ := setup(t)
	ctx := t.Context()
	edge := registry.Revocation{Organization: "acme", Role: identity.RoleAgent, Name: "edge", By: "user:ann"}
	if _, err := r.RevokeParty(ctx, edge); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, "organization.acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.EnsureOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if err := r.CheckParty(ctx, "acme", identity.RoleAgent, "edge"); err != nil {
		t.Errorf("an agent of the new organization: %v", err)
	}
	if all, err := r.Revocations(ctx, "acme"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if v, err := r.RevokeParty(ctx, edge); err != nil || r.CheckParty(ctx, "acme", identity.RoleAgent, "edge") == nil {
		t.Errorf("revoked in the new one: %+v, %v", v, err)
	}
	if err := r.DeleteOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if keys, err := store.List(ctx, "revocation.acme."); err != nil || len(keys) != 0 {
		t.Errorf("left over: %q, %v", keys, err)
	}
}
