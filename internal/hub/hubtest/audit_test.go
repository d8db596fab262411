package hubtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/wire"
)

// records returns an organization's audit log; "" is the hub's own.
func (w *world) records(org string, filter url.Values) (all []audit.Entry) {
	w.t.Helper()
	err := w.admin.Audit(w.t.Context(), org, filter, func(line []byte) error {
		e, err := audit.ParseEntry(line)
		all = append(all, e)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// whole verifies an organization's audit log as a person would.
func (w *world) whole(org string) audit.Report {
	w.t.Helper()
	head, err := w.admin.AuditHead(w.t.Context(), org)
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := audit.ParsePublicKey([]byte(head.PublicKey))
	if err != nil {
		w.t.Fatal(err)
	}
	v := &audit.Verifier{Key: key, Known: []audit.Head{{Sequence: head.Sequence, Hash: head.Hash}}}
	if err := w.admin.Audit(w.t.Context(), org, nil, v.Add); err != nil {
		w.t.Fatal(err)
	}
	report, err := v.Finish()
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// await waits for a record that is as wanted.
func (w *world) await(org, what string, want func(e audit.Entry) bool) (found audit.Entry) {
	w.t.Helper()
	eventually(w.t, patience, func() error {
		for _, e := range w.records(org, nil) {
			if want(e) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("no record of %s", what)
	})
	return found
}

// TestAuditTellsAll has a session of all sorts, and looks for each of it in the log:
// and that no secret is there.
func TestAuditTellsAll(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	w := newWorld(t, func(c *config.Hub) { c.HTTP, c.RequireToken, c.AuditFile = "127.0.0.1:0", true, file })
	a := w.agent("a", nil)
	p := w.proxy(nil)
	text, _, err := (&enroll.RobotToken{File: w.token}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	target := serve(t, echo)
	own := w.info.Clients[0].String()
	eventually(t, patience, func() error { return onceBy(own, agentID+":"+text, target) })
	eventually(t, patience, func() error { return onceBy(p.http, agentID, target) })
	var no *answer
	if err := onceBy(p.http, agentID, "192.0.2.1:9"); !errors.As(err, &no) {
		t.Fatalf("a forbidden target: %v", err)
	}
	if err := onceBy(own, agentID+":wrong-"+text[:20], target); !errors.As(err, &no) {
		t.Fatalf("a wrong token: %v", err)
	}
	for range 50 {
		stranger := *w.admin
		stranger.Token = "postern-admin-nonsense-nonsense-nonsense"
		if _, err := stranger.Robots(t.Context(), "default"); err == nil {
			t.Fatal("a stranger reads")
		}
	}
	if _, err := w.admin.CreateRobot(t.Context(), "default", api.CreateRobot{Name: "machines"}); err == nil {
		t.Fatal("a robot twice")
	}

	org := config.DefaultOrganization
	through := w.await(org, "a stream through the proxy", func(e audit.Entry) bool {
		return e.Action == audit.Whole && e.Reporter == audit.ByAgent && strings.Contains(e.Through, "/proxy/near/")
	})
	if through.Actor.String() != "robot:machines" || through.Agent != agentID || through.Replica != "a" || through.Target != "tcp:"+target ||
		through.BytesIn == 0 || through.BytesIn != through.BytesOut || through.Duration <= 0 || !through.OK {
		t.Errorf("%+v", through)
	}
	mine := w.await(org, "a stream through the hub's own proxy", func(e audit.Entry) bool {
		return e.Action == audit.Whole && e.Reporter == audit.ByHub && e.OK
	})
	if mine.Source != "127.0.0.1" || mine.Actor.String() != "robot:machines" || mine.Stream == "" {
		t.Errorf("%+v", mine)
	}
	same := w.await(org, "the same stream at the agent", func(e audit.Entry) bool {
		return e.Action == audit.Whole && e.Reporter == audit.ByAgent && e.Stream == mine.Stream
	})
	if same.Actor != mine.Actor || same.Address != target || same.Reason == "" || len(mine.Trace) != 32 || same.Trace != mine.Trace {
		t.Errorf("%+v", same)
	}
	refused := w.await(org, "a refusal", func(e audit.Entry) bool {
		return e.Action == audit.Open && e.Reporter == audit.ByAgent && e.Code == wire.CodeDenied.String()
	})
	if refused.Target != "tcp:192.0.2.1:9" || refused.Reason == "" {
		t.Errorf("%+v", refused)
	}
	// With the robot goes its agent, which tells nothing any more.
	if err := w.admin.DeleteRobot(t.Context(), "default", "machines"); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]func(e audit.Entry) bool{
		"an exchange": func(e audit.Entry) bool {
			return e.Action == audit.Exchange && e.OK && e.Object == "agent:"+agentID && e.Actor.String() == "robot:machines" && e.Source == "127.0.0.1"
		},
		"a robot that was made": func(e audit.Entry) bool {
			return e.Action == audit.Change && e.What == "create" && e.Object == "robot:machines" && e.OK && e.Actor.Kind == "admin"
		},
		"one that was not": func(e audit.Entry) bool {
			return e.Action == audit.Change && e.What == "create" && !e.OK && e.Reason != ""
		},
		"one that was deleted": func(e audit.Entry) bool { return e.What == "delete" && e.Object == "robot:machines" },
		"a token": func(e audit.Entry) bool {
			return e.What == "create" && strings.HasPrefix(e.Object, "robot:machines/token:")
		},
		"connections cut":      func(e audit.Entry) bool { return e.Action == audit.Revoke && e.Count > 0 },
		"that the log is read": func(e audit.Entry) bool { return e.Action == audit.Read },
	} {
		w.await(org, what, want)
	}
	w.await("", "a start", func(e audit.Entry) bool { return e.Action == audit.Start })
	w.await("", "the administrator's sign-in", func(e audit.Entry) bool {
		return e.Action == audit.SignIn && e.OK && e.Actor.Kind == "admin" && e.Source == "127.0.0.1"
	})
	strangers := 0
	for _, e := range w.records("", url.Values{"action": {"sign-in"}, "failed": {"true"}}) {
		if e.Source == "127.0.0.1" {
			strangers++
		}
	}
	if strangers == 0 || strangers > 5 {
		t.Errorf("%d records of strangers, who came 50 times", strangers)
	}

	w.whole("")
	report := w.whole(org)
	for _, party := range []*process{a, p.process} {
		party.cancel()
		_ = party.forget() // their credentials were revoked
	}
	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	exported, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	reports, err := audit.VerifyAll(bytes.NewReader(exported), nil)
	if err != nil || len(reports) != 2 || reports[1].Last < report.Last {
		t.Errorf("the export: %+v, %v; the log had %+v", reports, err, report)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the export has mode %v, %v", info.Mode(), err)
	}
	robot := strings.Split(text, ".")
	for name, secret := range map[string]string{
		"the robot's token": text, "its signature": robot[2], "its claims": robot[1], "the administrator's token": w.admin.Token,
		"a stranger's": "postern-admin-nonsense", "PEM": "BEGIN", "payload": "ping ",
	} {
		if bytes.Contains(exported, []byte(secret)) {
			t.Errorf("the audit log holds %s", name)
		}
	}
	w.startHub()
	if again := w.whole(org); again.Last < report.Last || again.First != 1 {
		t.Errorf("after a restart: %+v; before: %+v", again, report)
	}
}

// TestAuditWaitsForTheHub: what happens while the hub is away is told when it is back.
func TestAuditWaitsForTheHub(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.agent("a", func(c *config.Agent) { c.AuditOpenAfter = 100 * time.Millisecond })
	p := w.proxy(nil)
	target := serve(t, echo)
	eventually(t, patience, func() error { return onceBy(p.http, agentID, target) })
	held, err := connect(p.http, agentID, target)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	opened := w.await(config.DefaultOrganization, "the stream", func(e audit.Entry) bool { return e.Action == audit.Open && e.OK && e.Reporter == audit.ByAgent })
	if err := w.hub.stop(); err != nil {
		t.Fatal(err)
	}
	_ = held.Close() // it was cut with the relay, or ends now
	w.startHub()
	closed := func(id string) func(e audit.Entry) bool {
		return func(e audit.Entry) bool { return e.Action == audit.Close && e.Stream == id }
	}
	w.await(config.DefaultOrganization, "its end", closed(opened.Stream))
	seen := map[string]int{}
	for _, e := range w.records(config.DefaultOrganization, nil) {
		if e.Reporter == audit.ByAgent {
			seen[e.ID]++
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("record %s is there %d times", id, n)
		}
	}
	w.whole(config.DefaultOrganization)
}

// TestAuditIsFollowed reads records as they come, and only those of one organization.
func TestAuditIsFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan audit.Entry, 100)
	done := make(chan error, 1)
	go func() {
		done <- w.admin.Audit(ctx, "acme", url.Values{"follow": {"true"}, "action": {"change"}}, func(line []byte) error {
			e, err := audit.ParseEntry(line)
			lines <- e
			return err
		})
	}()
	for i := range 3 {
		name := fmt.Sprintf("robot-%d", i)
		for _, org := range []string{"default", "acme"} {
			if _, err := w.admin.CreateRobot(t.Context(), org, api.CreateRobot{Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		if e := <-lines; e.Organization != "acme" || e.Object != "robot:"+name {
			t.Errorf("%+v", e)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A robot is no auditor, of its own organization or another.
	text, _, err := (&enroll.RobotToken{File: w.token}).SubjectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	robot := *w.admin
	robot.Token = text
	for _, org := range []string{"default", "acme", ""} {
		err := robot.Audit(t.Context(), org, nil, func([]byte) error { return nil })
		if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeDenied {
			t.Errorf("a robot reads the log of %q: %v", org, err)
		}
		if _, err := robot.AuditHead(t.Context(), org); err == nil {
			t.Errorf("a robot reads the head of %q", org)
		}
	}
	w.await("default", "the robot's attempt, at home", func(e audit.Entry) bool {
		return e.Action == audit.Read && e.Code == wire.CodeDenied.String() && e.Actor.Kind == "robot"
	})
	if all := w.records("acme", url.Values{"actor": {"robot:"}}); len(all) != 0 {
		t.Errorf("a robot of another organization writes into a log: %+v", all)
	}
}
