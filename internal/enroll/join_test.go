package enroll_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// joinHub is as much of a hub as joining needs, on the real registry.
type joinHub struct {
	*httptest.Server
	registry *registry.Registry
	asked    atomic.Int32
	lose     atomic.Bool // the connection is cut after the work was done
}

func (h *joinHub) BaseURL() string          { return h.URL }
func (h *joinHub) HTTPClient() *http.Client { return h.Client() }

func newJoinHub(t *testing.T) *joinHub {
	t.Helper()
	h := &joinHub{registry: registry.New(registry.NewMemory(), nil)}
	if _, err := h.registry.EnsureOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(h.Close)
	return h
}

func (h *joinHub) serve(w http.ResponseWriter, r *http.Request) {
	h.asked.Add(1)
	var req api.UseJoin
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Path != api.PathJoin {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	key, err := identity.ParsePublicKey([]byte(req.PublicKey))
	var j registry.Join
	if err == nil {
		j, err = h.registry.UseJoin(r.Context(), req.Organization, req.ID, req.Secret, key)
	}
	if h.lose.Load() {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", api.TypeProblem)
	if err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(api.Problem{Status: http.StatusUnauthorized, Detail: err.Error()})
		return
	}
	_ = json.NewEncoder(w).Encode(api.Joined{Organization: j.Organization, Agent: j.Agent, KeyID: j.KeyID})
}

// joinString makes a join string for agent edge.
func (h *joinHub) joinString(t *testing.T, further bool) string {
	t.Helper()
	j, secret, err := h.registry.CreateJoin(t.Context(), registry.Join{Organization: "acme", Agent: "edge", Further: further, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := joinstring.String{
		ConnectURL: "tls://hub.test", Pins: []string{"sha256:" + strings.Repeat("00", 32)}, Organization: "acme", Agent: "edge",
		ID: j.ID, Secret: secret, Expires: j.Expires,
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// keys returns the keys that the agent has at the hub.
func (h *joinHub) keys(t *testing.T) []string {
	t.Helper()
	all, err := h.registry.AgentKeys(t.Context(), "acme", "edge")
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		t.Fatal(err)
	}
	var ids []string
	for _, k := range all {
		ids = append(ids, k.ID)
	}
	return ids
}

func joining(dir, text string) *enroll.Joining {
	return &enroll.Joining{Dir: dir, String: text, Log: slog.New(slog.DiscardHandler)}
}

// wantKey wants the state to hold the hub's nth key of the agent, and nothing else
// of interest.
func (h *joinHub) wantKey(t *testing.T, dir string, n int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, joinstring.KeyFile))
	if err != nil {
		t.Error(err)
		return
	}
	key, err := identity.ParseAgentKey(b)
	if err != nil {
		t.Fatal(err)
	}
	if keys := h.keys(t); len(keys) != n+1 || keys[n] != key.Public().ID() {
		t.Errorf("the hub has the keys %v, the agent %s", keys, key.Public().ID())
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the state holds %v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestJoining(t *testing.T) {
	hub, dir := newJoinHub(t), filepath.Join(t.TempDir(), "a", "b")
	text := hub.joinString(t, false)
	if err := joining(dir, text).Run(t.Context(), hub); err != nil {
		t.Fatal(err)
	}
	hub.wantKey(t, dir, 0)
	for _, again := range []string{text, ""} {
		if err := joining(dir, again).Run(t.Context(), hub); err != nil {
			t.Error(err)
		}
	}
	if n := hub.asked.Load(); n != 1 {
		t.Errorf("the hub was asked %d times", n)
	}
	err := joining(t.TempDir(), text).Run(t.Context(), hub)
	if !enroll.Permanent(err) || strings.Contains(err.Error(), text) {
		t.Errorf("with another state: %v", err)
	}

	// A further string, for instance since the key was removed: a new key.
	if err := joining(dir, hub.joinString(t, true)).Run(t.Context(), hub); err != nil {
		t.Error(err)
	}
	hub.wantKey(t, dir, 1)

	// One that is refused does no harm to an agent that works.
	dead, other := hub.joinString(t, true), t.TempDir()
	if err := joining(other, dead).Run(t.Context(), hub); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, joinstring.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := joining(dir, dead).Run(t.Context(), hub); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, joinstring.KeyFile)); err != nil || string(after) != string(before) {
		t.Errorf("the key changed: %v", err)
	}
}

// TestJoiningGoesOn stops a joining agent everywhere on the way, and starts it again.
func TestJoiningGoesOn(t *testing.T) {
	t.Run("the hub cannot be reached", func(t *testing.T) {
		hub, dir := newJoinHub(t), t.TempDir()
		text := hub.joinString(t, false)
		gone := httptest.NewServer(nil)
		gone.Close()
		if err := joining(dir, text).Run(t.Context(), &joinHub{Server: gone}); err == nil || enroll.Permanent(err) {
			t.Errorf("without a hub: %v", err)
		}
		if err := joining(dir, text).Run(t.Context(), hub); err != nil {
			t.Error(err)
		}
		hub.wantKey(t, dir, 0)
	})
	t.Run("the answer is lost", func(t *testing.T) {
		hub, dir := newJoinHub(t), t.TempDir()
		text := hub.joinString(t, false)
		hub.lose.Store(true)
		if err := joining(dir, text).Run(t.Context(), hub); err == nil || enroll.Permanent(err) {
			t.Errorf("without an answer: %v", err)
		}
		if len(hub.keys(t)) != 1 {
			t.Fatal("the key is not registered")
		}
		hub.lose.Store(false)
		if err := joining(dir, text).Run(t.Context(), hub); err != nil {
			t.Error(err)
		}
		hub.wantKey(t, dir, 0)
	})
	t.Run("the key is not in its place", func(t *testing.T) {
		hub, dir := newJoinHub(t), t.TempDir()
		text := hub.joinString(t, false)
		if err := joining(dir, text).Run(t.Context(), hub); err != nil {
			t.Fatal(err)
		}
		s, err := joinstring.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		key := filepath.Join(dir, joinstring.KeyFile)
		if err := os.Rename(key, key+"."+s.ID); err != nil {
			t.Fatal(err)
		}
		hub.Close()
		if err := joining(dir, "").Run(t.Context(), hub); err != nil {
			t.Error(err)
		}
		hub.wantKey(t, dir, 0)
	})
	t.Run("who asked went away", func(t *testing.T) {
		hub, dir := newJoinHub(t), t.TempDir()
		text := hub.joinString(t, false)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := joining(dir, text).Run(ctx, hub); err == nil {
			t.Error("it joined")
		}
		if err := joining(dir, text).Run(t.Context(), hub); err != nil {
			t.Error(err)
		}
		hub.wantKey(t, dir, 0)
	})
}

// TestReplicasJoin has replicas that share a directory start at once, and others
// that have none of it: all of the former share one key, none of the latter gets in.
func TestReplicasJoin(t *testing.T) {
	hub, shared := newJoinHub(t), t.TempDir()
	text := hub.joinString(t, false)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if err := joining(shared, text).Run(t.Context(), hub); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := joining(shared, "").Run(t.Context(), hub); err != nil { // it tidies up what came too late
		t.Error(err)
	}
	hub.wantKey(t, shared, 0)
	for range 4 {
		wg.Go(func() {
			if err := joining(t.TempDir(), text).Run(t.Context(), hub); !enroll.Permanent(err) {
				t.Errorf("a stranger: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestJoiningRefuses(t *testing.T) {
	hub := newJoinHub(t)
	text := hub.joinString(t, false)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, joinstring.MembershipFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ dir, text, want string }{
		"nothing":       {t.TempDir(), "", "has not joined"},
		"damaged":       {t.TempDir(), text[:80], "damaged"},
		"no directory":  {filepath.Join(file, "x"), text, "not a directory"},
		"broken state":  {broken, text, "agent.json"},
		"another's key": {t.TempDir(), hub.joinString(t, false) + "A", "damaged"},
	} {
		err := joining(tc.dir, tc.text).Run(t.Context(), hub)
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != wire.CodeBadRequest || !strings.Contains(f.Text, tc.want) || f.Hint == "" || !enroll.Permanent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := hub.asked.Load(); n != 0 {
		t.Errorf("the hub was asked %d times", n)
	}
}

// TestLearn keeps the authorities of a hub that is known by a pin.
func TestLearn(t *testing.T) {
	hub, dir := newJoinHub(t), t.TempDir()
	j := joining(dir, hub.joinString(t, false))
	j.Learn([]byte("too early"))
	name := filepath.Join(dir, joinstring.AuthorityFile)
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it joined: %v", err)
	}
	if err := j.Run(t.Context(), hub); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two", "two"} {
		j.Learn([]byte(want))
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
}

func TestWorkloadToken(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		name := filepath.Join(dir, "token")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	w := &enroll.WorkloadToken{File: write("aa.bb.cc\n")}
	for _, want := range []string{"aa.bb.cc", "dd.ee.ff"} {
		write(want)
		if got, kind, err := w.SubjectToken(t.Context()); err != nil || got != want || kind != api.TokenTypeJWT {
			t.Errorf("%q %q, %v", got, kind, err)
		}
	}
	for _, bad := range []string{"", " \n", "secretsecret", "a.secret.c d", strings.Repeat("x", 20<<10)} {
		write(bad)
		if _, _, err := w.SubjectToken(t.Context()); !enroll.Permanent(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	w.File += "-missing"
	if _, _, err := w.SubjectToken(t.Context()); !enroll.Permanent(err) {
		t.Errorf("no file: %v", err)
	}
}
