package hubtest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/wire"
)

// TestWorkloadTokens has an agent and a proxy enrol with tokens of an issuer alone,
// renew with the ones that replace them, and be cut off within seconds when the
// organization trusts the issuer no more.
func TestWorkloadTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Hub) { c.CredentialTTL = 12 * time.Second })
	issuer := oidctest.New(t)
	for _, one := range []struct{ role, id string }{{"agent", agentID}, {"proxy", "near"}} {
		if _, err := w.admin.CreateTrust(t.Context(), config.DefaultOrganization, api.CreateTrust{
			Name: "cluster-" + one.role, Issuer: issuer.URL, CA: string(issuer.CA), Audiences: []string{"postern"},
			Claims: []string{"sub=system:serviceaccount:postern:" + one.role}, Role: one.role, Identity: one.id,
		}); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	file := func(role string) string { return filepath.Join(dir, role) }
	project := func(life time.Duration) { // as a kubelet does: the file is replaced as a whole
		now := time.Now()
		for _, role := range []string{"agent", "proxy"} {
			token := issuer.Sign(t, issuer.Claims(now, "postern", map[string]any{
				"sub": "system:serviceaccount:postern:" + role, "exp": now.Add(life).Unix(),
			}))
			if err := os.WriteFile(file(role)+".new", []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file(role)+".new", file(role)); err != nil {
				t.Fatal(err)
			}
		}
	}
	project(time.Hour)
	edge := w.agent("a", func(c *config.Agent) {
		c.TokenFile, c.WorkloadTokenFile, c.DrainTimeout = "", file("agent"), 100*time.Millisecond
	})
	target := serve(t, echo)
	p := w.proxy(func(c *config.Proxy) { c.TokenFile, c.WorkloadTokenFile = "", file("proxy") }, target)
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	held := hold(t, p, target, 1)[0]

	issuer.Rotate()
	project(30 * time.Minute)
	renewals := func() int {
		return strings.Count(w.book.String(), "to=workload:cluster-agent/system:serviceaccount:postern:agent")
	}
	before := renewals()
	eventually(t, patience, func() error {
		if err := ping(held); err != nil {
			t.Fatalf("the stream that runs: %v", err)
		}
		if n := renewals(); n < before+2 {
			return errors.New("not renewed")
		}
		return nil
	})

	if err := w.admin.RemoveTrust(t.Context(), config.DefaultOrganization, "cluster-agent"); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	err := cut(held, 5*time.Second+slack)
	streamCut := time.Since(removed)
	if err != nil {
		t.Errorf("its stream: %v", err)
	}
	select {
	case <-edge.done:
	case <-time.After(patience):
		t.Fatal("the agent runs on")
	}
	t.Logf("the stream was cut after %s, and the agent ended after %s", streamCut.Round(time.Millisecond), time.Since(removed).Round(time.Millisecond))
	var f *wire.Failure
	if err := edge.forget(); !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated || !strings.Contains(f.Error(), "trusts no issuer") && !strings.Contains(f.Error(), "rule") {
		t.Errorf("the agent ended with %v", err)
	}
}
