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
		replace(t, filepath.Join(folder, "token"), text)
		if err := os.Symlink(filepath.Base(folder), filepath.Join(dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap(text)
	file = filepath.Join(dir, "token")
	if err := os.Symlink(filepath.Join("..data", "token"), file); err != nil {
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

// withFile is a party whose token is in a file.
func withFile(t *testing.T, hub *fakeHub, file string) *enroll.Session {
	t.Helper()
	r := request()
	r.Secret = &enroll.RobotToken{File: file}
	s := enroll.New(hub, r, nil)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAnotherTokenIsShownSoon replaces the file long before a renewal. What is no other token is
// not shown, be it the same again, half of one, or nothing.
func TestAnotherTokenIsShownSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		replace(t, file, token)
		hub := newFakeHub(t, time.Hour)
		s := withFile(t, hub, file)
		stop := run(t, s)
		for what, text := range map[string]string{"same": token + "\n", "JSON": `{"token":"` + token + `"}`, "half": "aaaa.bbbb.", "empty": ""} {
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
		replace(t, file, nextToken)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := hub.requests(); n != 2 || hub.shown() != nextToken {
			t.Errorf("%d requests, the last with %q; want two, and the new token", n, hub.shown())
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

// TestMountedTokenRevokedFirst revokes a token before another is there. Where a machine provides the
// file, the party waits for it without haste; where a person does, it ends and says why.
func TestMountedTokenRevokedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, swap := mount(t, token)
		hub := newFakeHub(t, time.Hour)
		s := withFile(t, hub, file)
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
		swap(nextToken)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if s.Grant() == first || hub.shown() != nextToken {
			t.Error("no new credentials by the new token")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		replace(t, file, token)
		hub := newFakeHub(t, time.Hour)
		s := withFile(t, hub, file)
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
