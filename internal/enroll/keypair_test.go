package enroll_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestUnusableKeys(t *testing.T) {
	dir := t.TempDir()
	public := filepath.Join(dir, "public")
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(public, key.Public().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key  *enroll.KeyPair
		want string
	}{
		"missing": {&enroll.KeyPair{File: filepath.Join(dir, "none")}, "none cannot be read"},
		"public":  {&enroll.KeyPair{File: public}, "it is the public key"},
		"value":   {&enroll.KeyPair{Value: "secret"}, "the private key given: "},
	} {
		req := request()
		req.Secret, req.Key = nil, tc.key
		err := enroll.New(newFakeHub(t, time.Hour), req, nil).Start(t.Context())
		if err == nil || !enroll.Permanent(err) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Credentials that were refused are renewed at once, and a refusal by the hub is
// final then though they have not expired.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		s := enroll.New(hub, request(), nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := s.Grant()
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		synctest.Wait()
		s.Refused()
		synctest.Wait()
		if s.Grant() == first {
			t.Fatal("not renewed at once")
		}
		for range 100 { // a hub that gives what the bus refuses is not asked without end
			s.Refused()
			time.Sleep(100 * time.Millisecond)
		}
		if n := hub.requests(); n > 8 {
			t.Errorf("%d exchanges in ten seconds", n)
		}
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 401, api.ErrorInvalidGrant } })
		s.Refused()
		start := time.Now()
		if err := <-done; !enroll.Permanent(err) || wire.AsFailure(err, wire.LegUnknown).Code != wire.CodeUnauthenticated {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("ended after %s", took)
		}
	})
}
