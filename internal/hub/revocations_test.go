package hub_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// exchanged gets credentials and returns the serial number of their certificate.
func (f *fixture) exchanged(req api.TokenRequest) string {
	f.t.Helper()
	res, err := f.client("").Exchange(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		f.t.Fatal(err)
	}
	return identity.Serial(certs[0])
}

// as makes a token request one of a party.
func (f *fixture) as(req api.TokenRequest, org, role, name string) api.TokenRequest {
	f.t.Helper()
	key, _, err := bus.NewUserKey()
	if err != nil {
		f.t.Fatal(err)
	}
	req.Organization, req.Role, req.Name, req.BusKey = org, role, name, key
	return req
}

// TestRevokeByName revokes an agent and a proxy by name: what they have is taken back, what
// others have is not, and they get nothing until they are restored.
func TestRevokeByName(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	f.issued.Audit(f)
	ours, theirs := tokenRequest(t, f.robot("default", "bot").Token), tokenRequest(t, f.robot("acme", "bot").Token)
	for _, party := range []struct{ role, name string }{{"agent", "edge"}, {"proxy", "near"}} {
		mine := f.as(ours, "default", party.role, party.name)
		kept := []string{f.exchanged(f.as(theirs, "acme", party.role, party.name)), f.exchanged(f.as(ours, "default", party.role, party.name+"-2"))}
		gone := f.exchanged(mine)
		v, err := f.admin.RevokeParty(ctx, "default", party.role, party.name, api.RevokeParty{Reason: "laptop stolen"})
		if err != nil || v.Role != party.role || v.Name != party.name || v.By != "admin:break-glass" || v.Reason != "laptop stolen" {
			t.Fatalf("%+v, %v", v, err)
		}
		if !f.issued.Revoked(gone) || f.voided[len(f.voided)-1] != mine.BusKey {
			t.Errorf("%s %s: its certificate is good still, or its bus user: %q", party.role, party.name, f.voided)
		}
		for _, serial := range kept {
			if f.issued.Revoked(serial) {
				t.Errorf("%s %s: a certificate of another party was revoked", party.role, party.name)
			}
		}
		_, err = f.client("").Exchange(ctx, mine)
		wantFailure(t, "exchange", err, wire.CodeDenied, party.role+" "+party.name+" of organization default was revoked at ")
		if !api.IsPartyRevoked(err) || strings.Contains(err.Error(), "laptop") {
			t.Errorf("%s %s: %v; want that it is revoked, and not why", party.role, party.name, err)
		}
		var failure *wire.Failure
		if !errors.As(err, &failure) || !strings.Contains(failure.Hint, "postern "+party.role+" restore "+party.name+" -a default") {
			t.Errorf("%s %s: the hint does not say how to restore: %v", party.role, party.name, failure)
		}
		f.wantRecord("the revocation of "+party.name, func(r audit.Record) bool {
			return r.Action == audit.Change && r.OK && r.Object == party.role+":"+party.name && r.What == "revoke: laptop stolen" && r.Organization == "default"
		})
		f.wantRecord("what was cut of "+party.name, func(r audit.Record) bool {
			return r.Action == audit.Revoke && r.OK && r.Object == party.role+":"+party.name && r.Organization == "default"
		})
		f.wantRecord("the refusal of "+party.name, func(r audit.Record) bool {
			return r.Action == audit.Exchange && !r.OK && r.Object == party.role+":"+party.name && r.Code == wire.CodeDenied.String()
		})
		if again, err := f.admin.RevokeParty(ctx, "default", party.role, party.name, api.RevokeParty{}); err != nil || again.Revoked != v.Revoked {
			t.Errorf("again: %+v, %v", again, err)
		}
		if err := f.admin.RestoreParty(ctx, "default", party.role, party.name); err != nil {
			t.Fatal(err)
		}
		f.wantRecord("that "+party.name+" was restored", func(r audit.Record) bool {
			return r.Action == audit.Change && r.OK && r.Object == party.role+":"+party.name && r.What == "restore"
		})
		if later := f.exchanged(mine); f.issued.Revoked(later) || !f.issued.Revoked(gone) {
			t.Errorf("%s %s: restored, and its new certificate is not good, or the old one is", party.role, party.name)
		}
		if err := f.admin.RestoreParty(ctx, "default", party.role, party.name); !api.IsNotFound(err) {
			t.Errorf("%s %s: restored twice: %v", party.role, party.name, err)
		}
	}
}

// TestRevokeByNameWhateverIsShown revokes an agent that has a key of its own, and one that
// the administrator enrolled; unregistering and registering it does not let it in.
func TestRevokeByNameWhateverIsShown(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	key := f.registered("default")
	gone := f.exchanged(f.asserted(t, key, nil, nil))
	if _, err := f.admin.RevokeParty(ctx, "default", "agent", "edge", api.RevokeParty{}); err != nil {
		t.Fatal(err)
	}
	if !f.issued.Revoked(gone) {
		t.Error("the certificate is good still")
	}
	_, err := f.client("").Exchange(ctx, f.asserted(t, key, nil, nil))
	wantFailure(t, "by key", err, wire.CodeDenied, "was revoked at")
	if err := f.admin.UnregisterAgent(ctx, "default", "edge"); err != nil {
		t.Fatal(err)
	}
	_, err = f.client("").Exchange(ctx, f.as(tokenRequest(t, f.robot("default", "bot").Token), "default", "agent", "edge"))
	wantFailure(t, "by a robot's token", err, wire.CodeDenied, "was revoked at")
	admin := f.as(tokenRequest(t, f.adminToken()), "default", "agent", "edge")
	admin.SubjectTokenType = api.TokenTypeAccess
	_, err = f.client("").Exchange(ctx, admin)
	wantFailure(t, "by the administrator's token", err, wire.CodeDenied, "was revoked at")
	// Who could not have the name anyway learns nothing of it.
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	_, err = f.client("").Exchange(ctx, f.as(tokenRequest(t, f.robot("acme", "bot").Token), "default", "agent", "edge"))
	wantFailure(t, "another organization's robot", err, wire.CodeDenied, "not of default")
	if api.IsPartyRevoked(err) {
		t.Errorf("another organization's robot is told that the agent is revoked: %v", err)
	}
}

// TestRevokeByNameRefused asks for what cannot be revoked.
func TestRevokeByNameRefused(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	for name, tc := range map[string]struct{ org, role, name, reason, text string }{
		"the hub's own":    {"default", "proxy", "hub", "", "the hub's own proxies"},
		"another role":     {"default", "robot", "bot", "", "want agent or proxy"},
		"a bad name":       {"default", "agent", "Edge", "", "1 to 63 characters"},
		"no organization":  {"nowhere", "agent", "edge", "", ""},
		"too long a story": {"default", "agent", "edge", strings.Repeat("x", 1025), "at most 1024"},
	} {
		_, err := f.admin.RevokeParty(ctx, tc.org, tc.role, tc.name, api.RevokeParty{Reason: tc.reason})
		wantFailure(t, name, err, wire.CodeBadRequest, tc.text)
	}
	if all, err := f.admin.Revocations(ctx, "default"); err != nil || len(all) != 0 {
		t.Errorf("revoked after all: %+v, %v", all, err)
	}
	// An agent may be called as the hub's proxies are.
	if _, err := f.admin.RevokeParty(ctx, "default", "agent", "hub", api.RevokeParty{}); err != nil {
		t.Error(err)
	}
}

// TestRevokedAgentsAreShown lists a revoked agent with the others, though it is not there;
// a robot, whose token may be the agent's, is not told why.
func TestRevokedAgentsAreShown(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	f.seen = []bus.Presence{{Agent: "alpha", Replica: "r1", State: bus.StateReady}, {Agent: "edge", Replica: "r1", State: bus.StateReady}}
	for _, id := range []string{"edge", "zulu"} {
		if _, err := f.admin.RevokeParty(ctx, "default", "agent", id, api.RevokeParty{Reason: "stolen"}); err != nil {
			t.Fatal(err)
		}
	}
	agents, err := f.admin.Agents(ctx, "default")
	if err != nil || len(agents) != 3 {
		t.Fatalf("%+v, %v", agents, err)
	}
	for i, want := range []struct {
		id       string
		state    string
		replicas int
	}{{"alpha", api.StateReady, 1}, {"edge", api.StateRevoked, 1}, {"zulu", api.StateRevoked, 0}} {
		a := agents[i]
		if a.ID != want.id || a.State != want.state || len(a.Replicas) != want.replicas || (a.Revoked != nil) != (want.state == api.StateRevoked) {
			t.Errorf("%+v; want %+v", a, want)
		}
	}
	if v := agents[2].Revoked; v == nil || v.Reason != "stolen" || v.By != "admin:break-glass" {
		t.Errorf("told of the revocation: %+v", v)
	}
	robot := f.client(f.robot("default", "bot").Token)
	one, err := robot.Agent(ctx, "default", "zulu")
	if err != nil || one.Revoked == nil || one.Revoked.Reason != "" || one.Revoked.By != "" {
		t.Errorf("a robot is told %+v, %v", one.Revoked, err)
	}
	if _, err := robot.Revocations(ctx, "default"); err == nil {
		t.Error("a robot lists revocations")
	}
}

// TestRevocationAtTheStart finds, when a hub starts, what was revoked while it could not
// be enforced: it is enforced then, and recorded.
func TestRevocationAtTheStart(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	store := registry.NewMemory()
	open := func() *hub.Issued {
		t.Helper()
		issued, err := hub.OpenIssued(ctx, store, f.reg, f, nil, f.now)
		if err != nil {
			t.Fatal(err)
		}
		return issued
	}
	key := f.registered("default")
	admin := registry.Ground{Organization: "default", Kind: registry.GroundAdmin}
	grounds := map[string]registry.Ground{
		"edge": {Organization: "default", Kind: registry.GroundAgent, Name: "edge", Item: key.Public().ID()}, "plant": admin, "other": admin,
	}
	issued := open()
	for name, ground := range grounds {
		if err := issued.Issue(ctx, hub.Issuance{
			Ground: ground, Serial: name, ID: "spiffe://x/org/default/agent/" + name + "/r1", BusKey: "U" + name, Expires: f.now().Add(time.Hour),
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.reg.RevokeParty(ctx, registry.Revocation{Organization: "default", Role: identity.RoleAgent, Name: "plant", By: "user:ann"}); err != nil {
		t.Fatal(err)
	}
	if err := f.reg.UnregisterAgent(ctx, "default", "edge"); err != nil {
		t.Fatal(err)
	}
	issued = open() // the process ended before it took anything back
	if !issued.Revoked("plant") || !issued.Revoked("edge") || issued.Revoked("other") {
		t.Errorf("revoked: plant %t, edge %t, other %t", issued.Revoked("plant"), issued.Revoked("edge"), issued.Revoked("other"))
	}
	issued.Audit(f)
	for _, object := range []string{"agent:plant", grounds["edge"].String()} {
		f.wantRecord(object, func(r audit.Record) bool {
			return r.Action == audit.Revoke && r.Object == object && r.Organization == "default" && strings.Contains(r.What, "at the start")
		})
	}
	told := len(f.records)
	open().Audit(f)
	if len(f.records) != told {
		t.Errorf("told again at the next start: %+v", f.records[told:])
	}
	// What is issued at the moment of the revocation is seen too.
	err := issued.Issue(ctx, hub.Issuance{
		Ground: admin, Serial: "late", ID: "spiffe://x/org/default/agent/plant/r2", BusKey: "Ulate", Expires: f.now().Add(time.Hour),
	})
	if _, ok := errors.AsType[*registry.RevokedError](err); !ok || !issued.Revoked("late") {
		t.Errorf("issued to a revoked agent: %v", err)
	}
}

// TestDistrustCountsOut: agents whose credentials came from a distrusted authority have none.
func TestDistrustCountsOut(t *testing.T) {
	f := newFixture(t)
	serial := f.exchanged(tokenRequest(t, f.robot("default", "bot").Token))
	if n := f.issued.Agents("default"); n != 1 {
		t.Fatalf("%d agents have credentials", n)
	}
	f.issued.Distrust(t.Context(), f.state.Authority().Pin())
	if n := f.issued.Agents("default"); n != 0 || !f.issued.Revoked(serial) {
		t.Errorf("%d agents have credentials, and the certificate is revoked: %t", n, f.issued.Revoked(serial))
	}
}
