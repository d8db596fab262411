package enroll_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

const nextToken = "aaaa.bbbb.dddd-next"

// replace puts a file in the place of another at once, or makes it.
func replace(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// mount makes what a node makes of a Secret: a link to a link to a folder, of which the middle one
// is replaced by the function returned.
func mount(t *testing.T, text string) (file string, swap func(text string)) {
	t.Helper()
	dir, version := t.TempDir(), 0
	swap = func(text string) {
		t.Helper()
		version++
		folder := filepath.Join(dir, fmt.Sprint("..", version))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(folder, "secret"), text)
		if err := os.Symlink(filepath.Base(folder), filepath.Join(dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap(text)
	file = filepath.Join(dir, "secret")
	if err := os.Symlink(filepath.Join("..data", "secret"), file); err != nil {
		t.Fatal(err)
	}
	return file, swap
}

// shown is the token that was shown last.
func (h *fakeHub) shown() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.forms[len(h.forms)-1]["subject_token"]
}

// proof is one way to show who one is, by what is in a file.
type proof struct {
	first, next string            // two secrets, as files have them
	none        map[string]string // what is no other secret than the first
	use         func(r *enroll.Request, file string)
	of          func(shown string) string // which of the two was shown
}

func proofs(t *testing.T) map[string]proof {
	keys := make(map[string]string) // their text by their ID
	newKey := func() (text string, public []byte) {
		key, err := identity.NewAgentKey(identity.KeyEd25519)
		if err != nil {
			t.Fatal(err)
		}
		b, err := key.PEM()
		if err != nil {
			t.Fatal(err)
		}
		keys[key.Public().ID()] = string(b)
		return string(b), key.Public().PEM()
	}
	first, public := newKey()
	next, _ := newKey()
	return map[string]proof{
		"token": {
			first: token, next: nextToken,
			none: map[string]string{"same": token + "\n", "JSON": `{"token":"` + token + `"}`, "half": "aaaa.bbbb.", "empty": ""},
			use:  func(r *enroll.Request, file string) { r.Secret = &enroll.RobotToken{File: file} },
			of:   func(shown string) string { return shown },
		},
		"key": {
			first: first, next: next,
			none: map[string]string{"same": first + "\n", "half": next[:len(next)/2], "public": string(public), "empty": ""},
			use:  func(r *enroll.Request, file string) { r.Secret, r.Key = nil, &enroll.KeyPair{File: file} },
			of: func(shown string) string {
				a, err := identity.ParseAssertion(shown)
				if err != nil {
					return err.Error()
				}
				return keys[a.KeyID]
			},
		},
	}
}

// session is a party that shows what is in a file.
func (p proof) session(t *testing.T, hub *fakeHub, file string) *enroll.Session {
	t.Helper()
	r := request()
	p.use(&r, file)
	s := enroll.New(hub, r, nil)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// eachProof runs a test with both in a bubble of time.
func eachProof(t *testing.T, test func(t *testing.T, p proof)) {
	for name, p := range proofs(t) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, p) })
		})
	}
}

// TestAnotherSecretIsShownSoon replaces the file long before a renewal. What is no other secret is
// not shown, be it the same again, half of one, or nothing.
func TestAnotherSecretIsShownSoon(t *testing.T) {
	eachProof(t, func(t *testing.T, p proof) {
		file := filepath.Join(t.TempDir(), "secret")
		replace(t, file, p.first)
		hub := newFakeHub(t, time.Hour)
		stop := run(t, p.session(t, hub, file))
		for what, text := range p.none {
			replace(t, file, text)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n := hub.requests(); n != 1 {
				t.Fatalf("%s: %d requests; want the first alone", what, n)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		replace(t, file, p.next)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := hub.requests(); n != 2 || p.of(hub.shown()) != p.next {
			t.Errorf("%d requests; want two, the last with the new secret", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := hub.requests(); n != 2 {
			t.Errorf("%d requests a minute later", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSecretBeforeTheHubKnowsIt replaces a file first, and tells the hub of the new secret later.
// The credentials of the old one last meanwhile.
func TestSecretBeforeTheHubKnowsIt(t *testing.T) {
	eachProof(t, func(t *testing.T, p proof) {
		file := filepath.Join(t.TempDir(), "secret")
		replace(t, file, p.first)
		hub := newFakeHub(t, time.Hour)
		s := p.session(t, hub, file)
		first := s.Grant()
		stop := run(t, s)
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 401, api.ErrorInvalidGrant } })
		replace(t, file, p.next)
		time.Sleep(10 * time.Minute)
		if n := hub.requests(); n < 10 || n > 50 || s.Grant() != first {
			t.Errorf("%d requests in ten minutes", n)
		}
		hub.set(func(h *fakeHub) { h.fail = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		if s.Grant() == first || p.of(hub.shown()) != p.next {
			t.Error("no new credentials by the new secret")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestMountedSecretRevokedFirst revokes a secret before another is there. Where a machine provides
// the file, the party waits for it without haste; where a person does, it ends and says why.
func TestMountedSecretRevokedFirst(t *testing.T) {
	eachProof(t, func(t *testing.T, p proof) {
		file, swap := mount(t, p.first)
		hub := newFakeHub(t, time.Hour)
		s := p.session(t, hub, file)
		first := s.Grant()
		stop := run(t, s)
		hub.set(func(h *fakeHub) {
			h.fail = func() (int, string) { return 401, api.ErrorInvalidGrant }
		})
		for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(time.Second) {
			s.Refused()
		}
		if n := hub.requests(); n < 100 || n > 250 { // every 15 to 30 s
			t.Errorf("%d attempts in an hour", n)
		}
		hub.set(func(h *fakeHub) { h.fail = nil })
		swap(p.next)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if s.Grant() == first || p.of(hub.shown()) != p.next {
			t.Error("no new credentials by the new secret")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	eachProof(t, func(t *testing.T, p proof) {
		file := filepath.Join(t.TempDir(), "secret")
		replace(t, file, p.first)
		hub := newFakeHub(t, time.Hour)
		s := p.session(t, hub, file)
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 401, api.ErrorInvalidGrant } })
		s.Refused()
		begin := time.Now()
		if err := s.Run(t.Context()); !enroll.Permanent(err) || wire.AsFailure(err, wire.LegUnknown).Code != wire.CodeUnauthenticated {
			t.Errorf("error %v", err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("gave up after %s", d)
		}
	})
}
