package hub_test

import (
	"strings"
	"testing"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestAdminToken(t *testing.T) {
	p := newPeopled(t, nil)
	ctx := t.Context()
	old := p.adminToken()
	res, err := p.client("").Exchange(ctx, tokenRequest(t, old))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := p.admin.RotateAdminToken(ctx)
	if err != nil || fresh.Token == old || fresh.Token != p.adminToken() {
		t.Fatalf("rotated: %v", err)
	}
	_, err = p.admin.Organizations(ctx)
	wantFailure(t, "the old one", err, wire.CodeUnauthenticated, "was replaced")
	if !p.issued.Revoked(identity.Serial(certs[0])) {
		t.Error("what was issued on the old one is good")
	}
	admin, root := p.client(fresh.Token), p.user("root@example.org")
	wantFailure(t, "by itself", admin.DisableAdminToken(ctx), wire.CodeBadRequest, "cannot switch itself off")
	wantFailure(t, "by a user", p.user("ann@example.org").DisableAdminToken(ctx), wire.CodeDenied, "administer the hub")
	if err := root.DisableAdminToken(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = admin.Organizations(ctx)
	wantFailure(t, "switched off", err, wire.CodeUnauthenticated, "switched off")
	if log := p.log.String(); !strings.Contains(log, `level=WARN msg="the administrator's token was used"`) || strings.Contains(log, fresh.Token) {
		t.Error("the log does not tell of the token's use, or holds it")
	}
	again, err := root.RotateAdminToken(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.client(again.Token).Organizations(ctx); err != nil {
		t.Errorf("on again: %v", err)
	}
}
