package issuer

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/podcluster/podtest"
	"postern.dev/postern/internal/wire"
)

// openSecret opens an issuer whose keys are in a Secret. It asks the API server each time, and not
// only every few seconds.
func openSecret(t testing.TB, api *podtest.API, change ...func(*Config)) (*Issuer, *Secret, error) {
	t.Helper()
	keys, err := NewSecret(api.Cluster, "issuer-keys")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{URL: testURL, Keys: keys, Schedule: testSchedule(), Type: ECDSAP256}
	for _, f := range change {
		f(&c)
	}
	i, err := Open(c)
	return i, keys, err
}

// follow has an issuer look for what others changed.
func follow(t testing.TB, i *Issuer, keys *Secret) {
	t.Helper()
	keys.mu.Lock()
	keys.asked = time.Time{}
	keys.mu.Unlock()
	if err := i.step(); err != nil {
		t.Error(err)
	}
}

// TestSecretKeys: several issuers share the keys in a Secret, make and rotate them by turns, and one
// that starts anew goes on with them.
func TestSecretKeys(t *testing.T) {
	api := podtest.New(t)
	api.Put("issuer-keys", map[string][]byte{"theirs": []byte("x")}) // there before, such as from a chart
	now := time.Now().Truncate(time.Second)
	at := func(c *Config) { c.Now = func() time.Time { return now } }
	one, oneKeys, err := openSecret(t, api, at)
	if err != nil {
		t.Fatal(err)
	}
	two, twoKeys, err := openSecret(t, api, at)
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string) {
		t.Helper()
		if diff := cmp.Diff(bodyOf(t, get(t, one, "GET", keysPath)), bodyOf(t, get(t, two, "GET", keysPath))); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	same("at the start")
	token := mint(t, one).Value
	if err := two.Rotate(false); err != nil {
		t.Fatal(err)
	}
	follow(t, one, oneKeys)
	same("the next one is published")
	now = now.Add(24 * time.Hour)
	follow(t, one, oneKeys)
	follow(t, two, twoKeys)
	same("the next one signs")
	if keys := one.Keys(); len(keys) != 2 || keys[1].Phase != Retiring {
		t.Errorf("%+v", keys)
	}
	if err := verify(t, two, token, now.Add(-24*time.Hour)); err != nil {
		t.Error(err)
	}
	// The commands, in another process.
	gone, err := Withdraw(twoKeys, now, one.Keys()[0].ID[:8])
	if err != nil || gone.ID != one.Keys()[0].ID {
		t.Fatal(gone.ID, err)
	}
	follow(t, one, oneKeys)
	follow(t, two, twoKeys)
	same("one was withdrawn")
	if one.Keys()[0].ID == gone.ID {
		t.Error("it signs still")
	}
	later, _, err := openSecret(t, api, at)
	if err != nil || later.Keys()[0].ID != one.Keys()[0].ID || string(api.Data("issuer-keys")["theirs"]) != "x" {
		t.Errorf("%v, %q", err, api.Data("issuer-keys")["theirs"])
	}
}

// TestSecretFirstKey: of issuers that start at once one makes the key, and the others take it.
func TestSecretFirstKey(t *testing.T) {
	api := podtest.New(t)
	ids := make([]string, 5)
	var wg sync.WaitGroup
	for n := range ids {
		wg.Go(func() {
			i, _, err := openSecret(t, api)
			if err != nil {
				t.Error(err)
				return
			}
			ids[n] = i.Keys()[0].ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("keys %q", ids)
		}
	}
}

// TestSecretTrouble: an API server that refuses, or a Secret that somebody spoiled, takes nothing from an
// issuer that runs, and no key is replaced.
func TestSecretTrouble(t *testing.T) {
	api := podtest.New(t)
	i, keys, err := openSecret(t, api)
	if err != nil {
		t.Fatal(err)
	}
	asked := api.Asked(http.MethodGet)
	for range 10 {
		if err := i.step(); err != nil {
			t.Error(err)
		}
	}
	if n := api.Asked(http.MethodGet) - asked; n > 1 {
		t.Errorf("asked %d times in no time", n)
	}
	good := api.Data("issuer-keys")
	trouble := func(what string, want error) {
		t.Helper()
		keys.asked = time.Time{}
		if err := i.step(); !errors.Is(err, want) || strings.Contains(err.Error(), "BEGIN") || len(i.Keys()) != 1 {
			t.Errorf("%s: %v", what, err)
		}
		if _, _, err := openSecret(t, api); !errors.Is(err, want) {
			t.Errorf("%s, at the start: %v", what, err)
		}
		var f *wire.Failure
		if err := i.Rotate(true); !errors.As(err, &f) || !errors.Is(err, want) {
			t.Errorf("%s, rotate: %v", what, err)
		}
	}
	api.Refuse(http.StatusForbidden)
	trouble("RBAC", podcluster.ErrForbidden)
	api.Refuse(0)
	spoiled := map[string][]byte{keysFile: []byte(`{"format":1,"keys":[]}`)}
	api.Put("issuer-keys", spoiled)
	trouble("spoiled", ErrCorrupt)
	if string(api.Data("issuer-keys")[keysFile]) != string(spoiled[keysFile]) {
		t.Error("it was replaced")
	}
	api.Put("issuer-keys", good)
	follow(t, i, keys)
	api.BeforeChange(func(a *podtest.API) { a.Put("issuer-keys", good) })
	if err := i.Rotate(false); err != nil || len(i.Keys()) != 2 {
		t.Errorf("somebody was quicker: %v, %+v", err, i.Keys())
	}
	if _, err := NewSecret(podcluster.New(nil, ""), "x"); !errors.Is(err, podcluster.ErrNoPod) {
		t.Error(err)
	}
	elsewhere, err := NewSecret(api.Cluster, "other/keys")
	if err != nil || elsewhere.namespace != "other" || elsewhere.name != "keys" {
		t.Errorf("%+v, %v", elsewhere, err)
	}
}

// TestRestoredFolder: a folder that is copied, as backups do, is the same issuer.
func TestRestoredFolder(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	if err := first.Rotate(true); err != nil {
		t.Fatal(err)
	}
	token := mint(t, first).Value
	restored := filepath.Join(t.TempDir(), "restored")
	if err := errors.Join(os.CopyFS(restored, os.DirFS(dir)), os.Chmod(filepath.Join(restored, keysFile), 0o600)); err != nil {
		t.Fatal(err)
	}
	second := open(t, restored)
	for _, path := range []string{keysPath, discoveryPath} {
		if diff := cmp.Diff(bodyOf(t, get(t, first, "GET", path)), bodyOf(t, get(t, second, "GET", path))); diff != "" {
			t.Error(diff)
		}
	}
	if err := verify(t, second, token, time.Now()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(first.Describe(), second.Describe()); diff != "" {
		t.Error(diff)
	}
}
