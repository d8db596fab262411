package hubtest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/wire"
)

// joinString makes a join string for the world's agent.
func (w *world) joinString() string {
	w.t.Helper()
	made, err := w.admin.CreateJoin(w.t.Context(), config.DefaultOrganization, api.CreateJoin{Agent: agentID, ExpiresIn: 600, ConnectURL: w.url()})
	if err != nil {
		w.t.Fatal(err)
	}
	return made.JoinString
}

// joins makes settings those of an agent with a join string and a state directory.
func joins(t *testing.T, text, state string) func(*config.Agent) {
	t.Helper()
	s, err := joinstring.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *config.Agent) {
		c.TokenFile, c.CAFile, c.CAPin, c.ConnectURL = "", "", s.CAPin(), s.ConnectURL
		c.JoinString, c.State = config.Secret(text), state
		c.DrainTimeout = 100 * time.Millisecond
	}
}

// TestJoin has an agent join with two replicas that share a directory, serve, start
// again without the join string after the hub's authority has changed, and be cut
// off when it is unregistered.
func TestJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	state, text := filepath.Join(t.TempDir(), "state"), w.joinString()
	a := w.agent("a", joins(t, text, state))
	b := w.agent("b", joins(t, text, state))
	target := serve(t, echo)
	p := w.proxy(nil, target)
	w.awaitPipes("a", "b")
	if err := once(p.forwards[0]); err != nil {
		t.Error(err)
	}
	r, err := w.admin.Registration(t.Context(), config.DefaultOrganization, agentID)
	if err != nil || len(r.Keys) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, one := range []*process{a, b} {
		one.cancel()
		if err := one.stop(); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(w.book.String(), text[:60]) {
		t.Error("the log holds the join string")
	}

	again := w.agent("c", func(c *config.Agent) {
		joins(t, text, state)(c)
		c.JoinString, c.CAPin, c.CAFile = "", "", filepath.Join(state, joinstring.AuthorityFile)
	})
	eventually(t, patience, func() error { return once(p.forwards[0]) })
	if err := w.admin.UnregisterAgent(t.Context(), config.DefaultOrganization, agentID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again.done:
	case <-time.After(patience):
		t.Fatal("the agent runs on")
	}
	var f *wire.Failure
	if err := again.forget(); !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated {
		t.Errorf("unregistered, the agent ended with %v", err)
	}
}

// TestJoinAtTheWrongHub leads an agent to a hub that did not make its join string:
// it does not show the secret there.
func TestJoinAtTheWrongHub(t *testing.T) {
	t.Parallel()
	var one, two *world
	var wg sync.WaitGroup
	wg.Go(func() { one = newWorld(t, nil) })
	wg.Go(func() { two = newWorld(t, nil) })
	wg.Wait()
	text, state := one.joinString(), t.TempDir()
	settings := config.DefaultAgent()
	settings.Party = one.party("x")
	joins(t, text, state)(&settings)
	settings.ConnectURL = two.url()
	x, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: one.log})
	if err != nil {
		t.Fatal(err)
	}
	var f *wire.Failure
	if err := x.Run(t.Context()); !errors.As(err, &f) || f.Leg != wire.LegTLS || f.Hint == "" {
		t.Errorf("%v; want a failure of TLS with a hint", err)
	}
	if log := two.book.String(); strings.Contains(log, "/v1/join") {
		t.Error("the other hub was asked")
	}
	// At the right one the same string and state are as good as new.
	one.agent("x", joins(t, text, state))
	eventually(t, patience, func() error {
		_, err := os.Stat(filepath.Join(state, joinstring.MembershipFile))
		return err
	})
}
