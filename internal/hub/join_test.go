package hub_test

import (
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/wire"
)

// invite makes a join string, and returns what it says.
func (f *fixture) invite(agent string) (api.NewJoin, joinstring.String) {
	f.t.Helper()
	made, err := f.admin.CreateJoin(f.t.Context(), "default", api.CreateJoin{Agent: agent, ExpiresIn: 3600, ConnectURL: "tls://hub.example.org"})
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := joinstring.Parse(made.JoinString)
	if err != nil {
		f.t.Fatal(err)
	}
	return made, s
}

func useJoin(t *testing.T, s joinstring.String) api.UseJoin {
	t.Helper()
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		t.Fatal(err)
	}
	return api.UseJoin{Organization: s.Organization, ID: s.ID, Secret: s.Secret, PublicKey: string(key.Public().PEM())}
}

func TestJoinStrings(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	made, s := f.invite("edge")
	if s.ConnectURL != "tls://hub.example.org" || s.CAPin() != f.state.Authority().Pin() || made.CAPin != s.CAPin() ||
		s.Organization != "default" || s.Agent != "edge" || s.ID != made.ID || !s.Expires.Equal(made.Expires) {
		t.Errorf("%+v\n%+v", made, s)
	}
	all, err := f.admin.Joins(ctx, "default")
	if err != nil || len(all) != 1 || all[0].State != api.JoinOpen || all[0].ID != s.ID {
		t.Errorf("%+v, %v", all, err)
	}
	request := useJoin(t, s)
	for range 2 { // the second time as an agent whose answer was lost
		got, err := f.client("").Join(ctx, request)
		if err != nil || got.Agent != "edge" || got.Organization != "default" {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	f.wantRecord("the joining", func(r audit.Record) bool {
		return r.Action == audit.Change && r.OK && r.Actor.String() == "agent:edge" && r.Organization == "default" && r.What == "joined by "+s.ID
	})
	keys, err := f.admin.Registration(ctx, "default", "edge")
	if err != nil || len(keys.Keys) != 1 || keys.Keys[0].PublicKey != request.PublicKey {
		t.Errorf("%+v, %v", keys, err)
	}
	all, err = f.admin.Joins(ctx, "default")
	if err != nil || len(all) != 1 || all[0].State != api.JoinUsed || all[0].KeyID != keys.Keys[0].ID || all[0].Used.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
	if log := f.log.String(); strings.Contains(log, s.Secret) || strings.Contains(log, made.JoinString) {
		t.Error("the log holds the secret")
	}
}

func TestJoinStringRefusals(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	_, used := f.invite("used")
	if _, err := f.client("").Join(ctx, useJoin(t, used)); err != nil {
		t.Fatal(err)
	}
	_, expired := f.invite("expired")
	_, revoked := f.invite("revoked")
	if err := f.admin.RevokeJoin(ctx, "default", revoked.ID); err != nil {
		t.Fatal(err)
	}
	_, taken := f.invite("taken")
	if _, err := f.admin.RegisterAgent(ctx, "default", api.RegisterAgent{ID: "taken", PublicKeys: []string{useJoin(t, used).PublicKey}}); err != nil {
		t.Fatal(err)
	}
	f.advance(2 * time.Hour)
	_, open := f.invite("open")
	forged := open
	forged.Secret = strings.Repeat("0", len(open.Secret))
	other := open
	other.Organization = "other"
	for name, tc := range map[string]struct {
		s    joinstring.String
		text string
	}{
		"used": {used, "was used already, by another key"}, "expired": {expired, "has expired; by the hub's clock it is"},
		"revoked": {revoked, "knows no join string"}, "forged": {forged, "knows no join string"}, "other organization": {other, "knows no join string"},
		"registered": {taken, "has expired"},
	} {
		_, err := f.client("").Join(ctx, useJoin(t, tc.s))
		wantFailure(t, name, err, wire.CodeUnauthenticated, tc.text)
		if strings.Contains(fmt.Sprint(err), tc.s.Secret) {
			t.Errorf("%s: the answer holds the secret", name)
		}
		f.advance(time.Minute)
	}
	for name, key := range map[string]string{"no key": "", "private": "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----"} {
		request := useJoin(t, open)
		request.PublicKey = key
		_, err := f.client("").Join(ctx, request)
		wantFailure(t, name, err, wire.CodeBadRequest, "public key")
	}
	for name, req := range map[string]api.CreateJoin{
		"short": {Agent: "a", ExpiresIn: 59, ConnectURL: "tls://hub"}, "long": {Agent: "a", ExpiresIn: 1 << 40, ConnectURL: "tls://hub"},
		"URL": {Agent: "a", ExpiresIn: 60, ConnectURL: "http://hub"}, "name": {Agent: "A", ExpiresIn: 60, ConnectURL: "tls://hub"},
	} {
		_, err := f.admin.CreateJoin(ctx, "default", req)
		wantFailure(t, name, err, wire.CodeBadRequest, "")
	}
	if _, err := f.client(f.robot("default", "bot").Token).CreateJoin(ctx, "default", api.CreateJoin{Agent: "a", ExpiresIn: 60, ConnectURL: "tls://hub"}); err == nil {
		t.Error("a robot made a join string")
	}
	if _, err := f.client("").Joins(ctx, "default"); err == nil {
		t.Error("a stranger lists join strings")
	}
}

// TestJoinRace has two dozen agents race for one join string: one wins.
func TestJoinRace(t *testing.T) {
	f := newFixture(t)
	_, s := f.invite("edge")
	var wins sync.Map
	var wg sync.WaitGroup
	for range 24 {
		request := useJoin(t, s)
		wg.Go(func() {
			if got, err := f.client("").Join(t.Context(), request); err == nil {
				wins.Store(got.KeyID, true)
			}
		})
	}
	wg.Wait()
	n := 0
	wins.Range(func(any, any) bool { n++; return true })
	if keys, err := f.admin.Registration(t.Context(), "default", "edge"); n != 1 || err != nil || len(keys.Keys) != 1 {
		t.Errorf("%d agents won; the agent has the keys %+v, %v", n, keys.Keys, err)
	}
}

// TestJoinGuesses limits who tries secrets.
func TestJoinGuesses(t *testing.T) {
	f := newFixture(t)
	_, s := f.invite("edge")
	limited := 0
	for range 30 {
		s.Secret = rand.Text()
		_, err := f.client("").Join(t.Context(), useJoin(t, s))
		var p *api.Problem
		if !asProblem(err, &p) {
			t.Fatal(err)
		}
		if p.Status == 429 {
			limited++
		}
	}
	if limited < 15 {
		t.Errorf("%d of 30 guesses were limited", limited)
	}
}
