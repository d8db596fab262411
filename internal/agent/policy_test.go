package agent_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// enforcedWithin is what is promised about a change of the policy, and what a busy machine
// may add to it.
const enforcedWithin = 2*time.Second + 5*time.Second

// talk is a stream with traffic: it sends, and checks what comes back.
type talk struct {
	stream proxy.Stream
	rounds atomic.Int64
	done   chan struct{}
	err    error     // after done
	ended  time.Time // after done
}

func (w *world) talk(d *proxy.Dialer, target string) *talk {
	w.t.Helper()
	s, err := w.open(d, target)
	if err != nil {
		w.t.Fatal(err)
	}
	k := &talk{stream: s, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.err = k.converse()
		k.ended = time.Now()
	}()
	w.t.Cleanup(func() { s.Close(); <-k.done })
	return k
}

func (k *talk) converse() error {
	sent, got := bytes.Repeat([]byte("0123456789abcdef"), 256), make([]byte, 4096)
	for {
		if _, err := k.stream.Write(sent); err != nil {
			// The reason stands in the other direction.
			if _, rerr := io.Copy(io.Discard, k.stream); rerr != nil {
				return rerr
			}
			return err
		}
		if _, err := io.ReadFull(k.stream, got); err != nil {
			return err
		}
		if !bytes.Equal(sent, got) {
			return errors.New("the target answered something else")
		}
		k.rounds.Add(1)
		time.Sleep(time.Millisecond) // a pace, so that many streams share two processors
	}
}

// goesOn waits for more traffic.
func (k *talk) goesOn(t *testing.T) {
	t.Helper()
	limit := time.After(patience)
	for end := k.rounds.Load() + 3; k.rounds.Load() < end; {
		select {
		case <-k.done:
			t.Fatalf("a stream that is still allowed ended: %v", k.err)
		case <-limit:
			t.Fatal("a stream that is still allowed stands still")
		case <-time.After(time.Millisecond):
		}
	}
}

func denied(err error) bool {
	var f *wire.Failure
	return errors.As(err, &f) && f.Leg == wire.LegPolicy && f.Code == wire.CodeDenied
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestPolicyChangeCutsStreams changes the policy file under traffic: exactly the
// streams that are no longer allowed are reset within two seconds, with the reason,
// and the others do not notice. A file that cannot be used changes nothing.
func TestPolicyChangeCutsStreams(t *testing.T) {
	const each = 5
	w := newWorld(t)
	one, two := echo(t), echo(t)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write(t, file, "allow:\n- "+one+"\n- {rule: '"+two+"', from: [proxy:ci]}\n")
	registry := observe.NewRegistry("agent", "test")
	w.agent(registry, func(a *config.Agent) { a.PolicyFile = file })
	ci, desk := w.proxy("ci"), w.proxy("desk")

	if _, err := w.open(desk, two); !denied(err) {
		t.Fatalf("desk reaches what only ci may: %v", err)
	}
	var stay, go1, go2 []*talk
	for range each {
		stay = append(stay, w.talk(ci, one))
		go1 = append(go1, w.talk(desk, one))
		go2 = append(go2, w.talk(ci, two))
	}
	all := append(append(append([]*talk(nil), stay...), go1...), go2...)
	for _, k := range all {
		k.goesOn(t)
	}
	first := w.await(ci, func(s bus.PolicyStatus) bool { return s.Rules == 2 && s.Error == "" })

	// A file that does not parse: everything goes on, and the status says why.
	write(t, file, "allow:\n- "+one+"\nalow: []\n")
	bad := w.await(ci, func(s bus.PolicyStatus) bool { return s.Error != "" })
	if !strings.Contains(bad.Error, `policy.yaml:3: unknown key "alow"`) || bad.Version != first.Version || !bad.Since.Equal(first.Since) || bad.ErrorAt.IsZero() {
		t.Errorf("status after a bad file: %+v, before it %+v", bad, first)
	}
	for _, k := range all {
		k.goesOn(t)
	}

	// desk is denied the one target, and nobody may reach the other any more.
	changed := time.Now()
	write(t, file, "allow:\n- "+one+"\ndeny:\n- {rule: '"+one+"', from: [proxy:desk]}\n")
	for _, k := range append(go1, go2...) {
		select {
		case <-k.done:
		case <-time.After(patience):
			t.Fatal("a stream that is no longer allowed goes on")
		}
		if !denied(k.err) || !strings.Contains(k.err.Error(), "policy has changed") {
			t.Errorf("a stream was cut with %v", k.err)
		}
		if took := k.ended.Sub(changed); took > enforcedWithin {
			t.Errorf("a stream was cut after %v", took)
		}
	}
	for _, k := range stay {
		k.goesOn(t)
	}
	if _, err := w.open(desk, one); !denied(err) || !strings.Contains(err.Error(), "deny rule "+one) {
		t.Errorf("desk opens what is denied to it: %v", err)
	}
	if _, err := w.open(ci, two); !denied(err) {
		t.Errorf("ci opens what is no longer allowed: %v", err)
	}
	now := w.await(ci, func(s bus.PolicyStatus) bool { return s.Version != first.Version })
	if now.Error != "" || now.Rules != 2 || !now.Since.After(first.Since) {
		t.Errorf("status after the change: %+v", now)
	}
	// The agent's own streams end a moment after their peers know.
	want := regexp.MustCompile(`(?m)^postern_stream_closes_total\{code="denied",organization="default"\} 10$`)
	for limit := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		rec := httptest.NewRecorder()
		registry.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
		if want.MatchString(rec.Body.String()) {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("not ten streams were cut:\n%s", regexp.MustCompile(`(?m)^postern_stream_closes.*$`).FindAllString(rec.Body.String(), -1))
		}
	}
}

// TestPolicyChangeDuringOpens changes the policy back and forth while streams are
// opened: after a change that denies, none stays that the change missed.
func TestPolicyChangeDuringOpens(t *testing.T) {
	w := newWorld(t)
	one := echo(t)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	open, shut := "allow:\n- "+one+"\n", "allow:\n- "+one+"\ndeny:\n- "+one+"\n"
	write(t, file, open)
	w.agent(nil, func(a *config.Agent) { a.PolicyFile = file })
	ci := w.proxy("ci")
	version := w.await(ci, func(bus.PolicyStatus) bool { return true }).Version

	for range 2 {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		cut := make(chan error, 10_000)
		for range 4 {
			wg.Go(func() {
				for {
					s, err := w.open(ci, one)
					if err != nil {
						if !denied(err) {
							t.Errorf("open: %v", err)
						}
					} else {
						wg.Go(func() {
							_, err := s.Read(make([]byte, 1))
							cut <- err
							s.Close()
						})
					}
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
			})
		}
		write(t, file, shut)
		w.await(ci, func(s bus.PolicyStatus) bool { return s.Version != version })
		close(stop)
		wg.Wait() // or a stream lives on that should not
		close(cut)
		for err := range cut {
			if !denied(err) {
				t.Errorf("a stream was cut with %v", err)
			}
		}
		write(t, file, open)
		w.await(ci, func(s bus.PolicyStatus) bool { return s.Version == version })
	}
}

func TestNewRefusesBadPolicies(t *testing.T) {
	w := &world{party: config.Party{Organization: "o", AgentID: "a", Name: "r"}}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	write(t, bad, "allow:\n- x\n")
	for _, file := range []string{bad, bad + ".missing"} {
		settings := config.Agent{Party: w.party, PolicyFile: file}
		_, err := agent.New(settings, agent.Options{Getenv: noEnv, Log: slog.New(slog.DiscardHandler)})
		if _, ok := errors.AsType[*policy.FileError](err); !ok {
			t.Errorf("%s: %v", file, err)
		}
	}
}
