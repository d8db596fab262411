package hubtest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/wire"
)

// people makes a world in which people sign in. user signs somebody in.
func people(t *testing.T) (w *world, user func(email string) *api.Client) {
	t.Helper()
	issuer := oidctest.New(t)
	caFile := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(caFile, issuer.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, func(c *config.Hub) {
		c.SignIn.IssuerURL, c.SignIn.ClientID, c.SignIn.Algorithms, c.SignIn.CAFile = issuer.URL, "postern", []string{"ES256"}, caFile
	})
	return w, func(email string) *api.Client {
		t.Helper()
		claims := map[string]any{"sub": "id-of-" + email, "email": email, "email_verified": true, "nonce": api.NonceOf("secret")}
		client := *w.admin
		client.Token = ""
		s, err := client.OpenSession(t.Context(), api.SessionRequest{
			IDToken: issuer.Sign(t, issuer.Claims(time.Now(), "postern", claims)), NonceSecret: "secret", Client: "test",
		})
		if err != nil {
			t.Fatal(err)
		}
		client.Token = s.AccessToken
		return &client
	}
}

func none([]byte) error { return nil }

func denied(err error) bool {
	f := wire.AsFailure(err, wire.LegUnknown)
	return f != nil && f.Code == wire.CodeDenied
}

// TestAuditorReadsTheLog: whoever is auditor of an organization reads and verifies its
// audit log and no other, and changes nothing; whoever is not does not read it.
func TestAuditorReadsTheLog(t *testing.T) {
	t.Parallel()
	w, user := people(t)
	ctx := t.Context()
	if _, err := w.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	ann, bob := user("ann@example.org"), user("bob@example.org")
	for principal, which := range map[string]string{"user:ann@example.org": "auditor", "user:bob@example.org": "admin"} {
		if _, err := w.admin.GrantRole(ctx, "default", api.GrantRole{Role: which, Principal: principal}); err != nil {
			t.Fatal(err)
		}
	}
	w.await("default", "what the auditor is to find", func(e audit.Entry) bool { return e.Object == "robot:machines" })
	found := false
	if err := ann.Audit(ctx, "default", nil, func(line []byte) error {
		e, err := audit.ParseEntry(line)
		found = found || e.Object == "robot:machines"
		return err
	}); err != nil || !found {
		t.Errorf("the auditor reads %v, %v", found, err)
	}
	if _, err := ann.AuditHead(ctx, "default"); err != nil {
		t.Errorf("the auditor cannot verify: %v", err)
	}
	for what, err := range map[string]error{
		"another organization's log, by the auditor": ann.Audit(ctx, "acme", nil, none),
		"the hub's log, by the auditor":              ann.Audit(ctx, "", nil, none),
		"the log, by an admin":                       bob.Audit(ctx, "default", nil, none),
		"an organization that there is not":          ann.Audit(ctx, "nowhere", nil, none),
	} {
		if !denied(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	attempts := map[string]func() error{
		"robot":       func() error { _, err := ann.CreateRobot(ctx, "default", api.CreateRobot{Name: "r"}); return err },
		"robot's end": func() error { return ann.DeleteRobot(ctx, "default", "machines") },
		"token": func() error {
			_, err := ann.CreateRobotToken(ctx, "default", "machines", api.CreateToken{Name: "t"})
			return err
		},
		"token's end": func() error { return ann.DeleteRobotToken(ctx, "default", "machines", "first") },
		"agent":       func() error { _, err := ann.RegisterAgent(ctx, "default", api.RegisterAgent{ID: "a"}); return err },
		"agent's end": func() error { return ann.UnregisterAgent(ctx, "default", "a") },
		"label":       func() error { _, err := ann.LabelAgent(ctx, "default", "a", map[string]string{"b": "c"}); return err },
		"join string": func() error { _, err := ann.CreateJoin(ctx, "default", api.CreateJoin{Agent: "a"}); return err },
		"trust's end": func() error { return ann.RemoveTrust(ctx, "default", "t") },
		"grant": func() error {
			_, err := ann.GrantAccess(ctx, "default", api.CreateAccessGrant{To: "user:ann@example.org", Agent: "*", Targets: []string{"kubernetes"}})
			return err
		},
		"grant's end": func() error { return ann.RevokeAccess(ctx, "default", "default-robots") },
		"limits": func() error {
			_, err := ann.SetLimits(ctx, "default", "organization", "default", limit.Limits{})
			return err
		},
		"role": func() error {
			_, err := ann.GrantRole(ctx, "default", api.GrantRole{Role: "owner", Principal: "user:ann@example.org"})
			return err
		},
		"role's end": func() error {
			return ann.RevokeRole(ctx, "default", api.GrantRole{Role: "admin", Principal: "user:bob@example.org"})
		},
		"organization": func() error { _, err := ann.CreateOrganization(ctx, "mine"); return err },
		"its end":      func() error { return ann.DeleteOrganization(ctx, "default", true) },
	}
	for what, try := range attempts {
		if err := try(); !denied(err) {
			t.Errorf("an auditor changes something: %s: %v", what, err)
		}
	}
	w.await("default", "an attempt of the auditor", func(e audit.Entry) bool {
		return e.Action == audit.Change && e.Code == wire.CodeDenied.String() && e.Actor.String() == "user:ann@example.org"
	})
}

// TestFollowersAreBounded: eight follow a log; the ninth is told so, and may when one of
// them ends. Another organization's readers are not affected.
func TestFollowersAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ends := make([]context.CancelFunc, 8)
	shown := make(chan int, 10_000)
	for i := range ends {
		ctx, end := context.WithCancel(t.Context())
		ends[i] = end
		defer end()
		wg.Go(func() {
			first := true
			if err := w.admin.Audit(ctx, "default", url.Values{"follow": {"true"}}, func([]byte) error {
				if first {
					first = false
					shown <- i
				}
				return nil
			}); err != nil && ctx.Err() == nil {
				t.Errorf("follower %d: %v", i, err)
			}
		})
	}
	defer wg.Wait()
	for range ends {
		<-shown
	}
	err := w.admin.Audit(t.Context(), "default", nil, none)
	problem, ok := errors.AsType[*api.Problem](err)
	if !ok || problem.Status != http.StatusTooManyRequests || problem.Detail != "too many read this audit log at once" || problem.Hint == "" {
		t.Errorf("the ninth reader: %v", err)
	}
	if err := w.admin.Audit(t.Context(), "acme", nil, none); err != nil {
		t.Errorf("a reader of another log: %v", err)
	}
	ends[3]()
	took := eventually(t, patience, func() error {
		if err := w.admin.Audit(t.Context(), "default", nil, none); err != nil {
			return fmt.Errorf("when one of the others has ended: %w", err)
		}
		return nil
	})
	t.Logf("the place was free after %s", took)
	for _, end := range ends {
		end()
	}
}
