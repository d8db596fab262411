package hub_test

import (
	"slices"
	"testing"

	"postern.dev/postern/internal/api"
)

// TestExplainKnowsGroups: who explains what a user may reach need not know his groups, but
// learns them of people of that organization only.
func TestExplainKnowsGroups(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	for _, org := range []string{"acme", "other"} {
		if _, err := p.admin.CreateOrganization(ctx, org); err != nil {
			t.Fatal(err)
		}
		if _, err := p.admin.GrantAccess(ctx, org, api.CreateAccessGrant{ID: "dba", To: "group:sre", Agent: "office", Targets: []string{"gateway"}}); err != nil {
			t.Fatal(err)
		}
	}
	eve := p.user("eve@example.org")
	p.user("ann@example.org", "sre", "staff")
	p.grant("acme", "viewer", "user:eve@example.org")
	p.grant("other", "viewer", "user:eve@example.org")
	p.grant("acme", "viewer", "group:staff")
	ask := func(c *api.Client, org string, from ...string) api.AccessExplanation {
		t.Helper()
		e, err := c.ExplainAccess(ctx, org, api.AccessQuery{From: from, Agent: "office", Target: "gateway"})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	const ann = "user:ann@example.org"
	for who, one := range map[string]struct {
		client *api.Client
		org    string
		knows  bool
	}{
		"a colleague":                  {eve, "acme", true},
		"somebody of another":          {eve, "other", false},
		"the administrator of the hub": {p.admin, "other", true},
	} {
		e := ask(one.client, one.org, ann)
		if known := e.Hub.Verdict == api.VerdictAllowed && slices.Equal(e.From, []string{ann, "group:sre", "group:staff"}) && !e.GroupsOf.IsZero(); known != one.knows {
			t.Errorf("%s: %+v", who, e)
		}
		if !one.knows && (len(e.From) != 1 || !e.GroupsOf.IsZero()) {
			t.Errorf("%s learns %v of %s", who, e.From, e.GroupsOf)
		}
	}
	if e := ask(eve, "acme", ann, "group:staff"); e.Hub.Verdict != api.VerdictRefused || !e.GroupsOf.IsZero() || len(e.From) != 2 {
		t.Errorf("with a group that is named: %+v", e)
	}
	if e := ask(eve, "acme", "user:nobody@example.org"); e.Hub.Verdict != api.VerdictRefused || !e.GroupsOf.IsZero() {
		t.Errorf("of one who never signed in: %+v", e)
	}
}
