package hubtest_test

import (
	"errors"
	"strings"
	"testing"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// forbidden wants a proxy's answer that access grants refuse a target.
func forbidden(err error) error {
	var a *answer
	if errors.As(err, &a) && a.status == 403 && strings.Contains(a.body, "the hub's access grants do not let robot:machines reach "+agentID) {
		return nil
	}
	if err == nil {
		return errors.New("it is allowed")
	}
	return err
}

// TestAccessAcrossARestart: neither a restart of the hub nor one of the agent brings
// back what was taken away, or loses what was granted; at no moment in between is
// there a stream that should not be.
func TestAccessAcrossARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	first := w.agent("a", nil)
	target := serve(t, echo)
	p := w.proxy(nil, target)
	try := func() error { return onceBy(p.http, "", target) }
	eventually(t, patience, try)
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, "default-robots"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error { return forbidden(try()) })
	never := func() error {
		err := try()
		if err == nil {
			t.Fatal("a stream that nothing allows was opened")
		}
		return forbidden(err)
	}

	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	// The new one's way to the hub is slow, and stands still for a moment: until it
	// knows, it lets nobody in.
	slow := w.link()
	w.agent("b", func(c *config.Agent) { c.ConnectURL = "tls://" + slow.Addr() })
	slow.Freeze()
	for range 3 {
		_ = never()
	}
	slow.Thaw()
	eventually(t, patience, never)

	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	w.startHub()
	eventually(t, patience, never)
	all, err := w.admin.AccessGrants(t.Context(), config.DefaultOrganization)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range all {
		if g.ID == "default-robots" {
			t.Error("the hub has made the grant again that was taken away")
		}
	}
	if _, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{
		To: "robot:machines", Agent: agentID, Targets: []string{"tcp:" + target},
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("granted within %s", eventually(t, patience, try))
}
