package hub_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestSessionsOfUsers(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	ann, bob, root := p.user("ann@example.org"), p.user("bob@example.org"), p.user("root@example.org")
	p.user("ann@example.org")
	all, err := ann.Sessions(ctx, "")
	if err != nil || len(all) != 2 || all[0].User != "ann@example.org" || all[0].Source != "127.0.0.1" || all[0].Client != "test" {
		t.Fatalf("ann's: %+v, %v", all, err)
	}
	if all, err := root.Sessions(ctx, ""); err != nil || len(all) != 4 {
		t.Errorf("all: %d, %v", len(all), err)
	}
	_, err = bob.Sessions(ctx, "ann@example.org")
	wantFailure(t, "another's", err, wire.CodeDenied, "its own sessions only")
	_, err = p.client(p.robot("default", "bot").Token).Sessions(ctx, "")
	wantFailure(t, "robot", err, wire.CodeDenied, "its own sessions only")
	if err := bob.RevokeSession(ctx, all[0].ID); !api.IsNotFound(err) {
		t.Errorf("another's: %v", err)
	}
	for _, s := range all {
		if err := ann.RevokeSession(ctx, s.ID); err != nil && s.ID == all[0].ID {
			t.Error(err)
		}
	}
	_, err = ann.WhoAmI(ctx)
	wantFailure(t, "signed out", err, wire.CodeUnauthenticated, "ended or was revoked")

	// Users: revoked, they are out at once, and allowed again they have to sign in.
	if err := root.RevokeUser(ctx, "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	_, err = bob.WhoAmI(ctx)
	wantFailure(t, "revoked", err, wire.CodeUnauthenticated, "ended or was revoked")
	_, err = p.open(p.idToken("bob@example.org", nil))
	wantFailure(t, "revoked, and again", err, wire.CodeUnauthenticated, "was revoked at this hub")
	wantFailure(t, "oneself", root.RevokeUser(ctx, "root@example.org"), wire.CodeBadRequest, "revoke yourself")
	if err := root.RevokeUser(ctx, "never@example.org"); err != nil {
		t.Error(err)
	}
	users, err := root.Users(ctx)
	if err != nil || len(users) != 4 || users[1].Revoked.IsZero() || users[2].Name != "never@example.org" || !users[0].Revoked.IsZero() {
		t.Errorf("users: %+v, %v", users, err)
	}
	if err := root.AllowUser(ctx, "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	_, err = bob.WhoAmI(ctx)
	wantFailure(t, "allowed, with a session of before", err, wire.CodeUnauthenticated, "ended or was revoked")
	p.user("bob@example.org")
	if err := root.AllowUser(ctx, "nobody"); !api.IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
}

// TestEnrolWithSession: a user is a proxy of organizations where the user has a role,
// no longer than the session lasts.
func TestEnrolWithSession(t *testing.T) {
	p := newPeopled(t, func(c *config.SignIn) { c.SessionTTL = 10 * time.Minute })
	ctx := t.Context()
	ann := p.user("ann@example.org", "sre", "dev")
	request := tokenRequest(t, ann.Token)
	request.Role, request.Name = "proxy", "laptop"
	_, err := p.client("").Exchange(ctx, request)
	wantFailure(t, "without a role", err, wire.CodeDenied, "permission to read")
	p.grant("default", "auditor", "group:sre")
	res, err := p.client("").Exchange(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	holder, err := identity.CertificateHolder(certs[0])
	want := identity.Holder{Principal: identity.Principal{Kind: identity.KindUser, Name: "ann@example.org"}, Groups: []string{"dev", "sre"}}
	if diff := cmp.Diff(want, holder); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if res.ExpiresIn > 600 || certs[0].NotAfter.After(p.now().Add(10*time.Minute)) {
		t.Errorf("the certificate outlives the session: %d s, %s", res.ExpiresIn, certs[0].NotAfter)
	}
	agent := request
	agent.Role = "agent"
	_, err = p.client("").Exchange(ctx, agent)
	wantFailure(t, "agent", err, wire.CodeDenied, "enrols proxies only")
	hubs := request
	hubs.Name = "hub"
	_, err = p.client("").Exchange(ctx, hubs)
	wantFailure(t, "the hub's name", err, wire.CodeDenied, "hub's own")
	boss := request
	boss.SubjectToken = p.user("boss@example.org", "platform").Token
	boss.Role = "agent"
	_, err = p.client("").Exchange(ctx, boss)
	wantFailure(t, "agent, by an administrator", err, wire.CodeDenied, "enrols proxies only")

	serial := identity.Serial(certs[0])
	if p.issued.Revoked(serial) {
		t.Fatal("revoked before its time")
	}
	if err := p.admin.RevokeRole(ctx, "default", api.GrantRole{Role: "auditor", Principal: "group:sre"}); err != nil {
		t.Fatal(err)
	}
	if !p.issued.Revoked(serial) {
		t.Error("the last role is gone, and the certificate is good")
	}
}

// TestVouchingForUsers: a robot's certificate cannot be moved to a user's ground, nor
// the other way round, to escape a revocation.
func TestVouchingForUsers(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	p.grant("default", "viewer", "group:sre")
	enrol := func(token, previous string) string {
		t.Helper()
		request := tokenRequest(t, token)
		request.Role, request.Name, request.Previous = "proxy", "laptop", previous
		res, err := p.client("").Exchange(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := identity.ParseCertificates([]byte(res.AccessToken))
		if err != nil {
			t.Fatal(err)
		}
		return identity.Serial(certs[0])
	}
	robots := enrol(p.robot("default", "bot").Token, "")
	users := enrol(p.user("ann@example.org", "sre").Token, robots)
	others := enrol(p.user("bob@example.org", "sre").Token, users)
	if err := p.admin.DeleteRobot(ctx, "default", "bot"); err != nil {
		t.Fatal(err)
	}
	if err := p.admin.RevokeUser(ctx, "ann@example.org"); err != nil {
		t.Fatal(err)
	}
	if !p.issued.Revoked(robots) || !p.issued.Revoked(users) || p.issued.Revoked(others) {
		t.Errorf("revoked: %v, %v, %v; want true, true, false", p.issued.Revoked(robots), p.issued.Revoked(users), p.issued.Revoked(others))
	}
}
