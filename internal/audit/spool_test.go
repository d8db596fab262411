package audit

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// receiver is a hub that may be away.
type receiver struct {
	mu      sync.Mutex
	err     error
	lose    bool // the acknowledgement
	batches int
	got     map[string]int
	records []Record
}

func (r *receiver) send(_ context.Context, batch []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	all, err := ParseBatch(batch, "acme", "edge", "one", time.Now())
	if err != nil {
		return err
	}
	r.batches++
	for _, one := range all {
		r.got[one.ID]++
	}
	r.records = append(r.records, all...)
	if r.lose {
		return errors.New("the answer was lost")
	}
	return nil
}

func (r *receiver) set(err error, lose bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.lose = err, lose
}

func start(t *testing.T, s *Spool, r *receiver) (stop func()) {
	ctx, end := context.WithCancel(t.Context())
	final, give := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx, final, r.send, slog.New(slog.DiscardHandler))
	}()
	stop = sync.OnceFunc(func() {
		end()
		defer time.AfterFunc(3*time.Second, give).Stop()
		<-done
		give()
	})
	t.Cleanup(stop)
	return stop
}

func TestSpoolOutlastsTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, err: errors.New("away")}
		s := NewSpool()
		stop := start(t, s, r)
		for range 1000 {
			s.Record(Record{Action: Open, Target: "tcp:db:5432"})
		}
		time.Sleep(time.Hour)
		if n, lost := s.Waiting(); n != 1000 || lost != 0 {
			t.Errorf("%d wait, %d lost", n, lost)
		}
		r.set(nil, true) // it comes back, and its answers are lost
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		stop = start(t, s, r) // as after credentials were refused and mended
		r.set(nil, false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n, lost := s.Waiting(); n != 0 || lost != 0 || len(r.got) != 1000 {
			t.Errorf("%d wait, %d lost, %d arrived", n, lost, len(r.got))
		}
		s.Record(Record{Action: Close})
		stop() // at once: what is left goes out
		if len(r.got) != 1001 {
			t.Errorf("%d arrived", len(r.got))
		}
	})
}

func TestSpoolIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, err: errors.New("away")}
		s := NewSpool()
		stop := start(t, s, r)
		for range 100_000 {
			s.Record(Record{Action: Open})
		}
		if n, lost := s.Waiting(); n != maxSpooled || lost != 100_000-maxSpooled {
			t.Errorf("%d wait, %d lost", n, lost)
		}
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it takes %s to stop", took)
		}
		r.set(nil, false)
		start(t, s, r)
		time.Sleep(time.Minute)
		synctest.Wait()
		var told uint64
		for _, one := range r.records {
			if one.Action == Lost {
				told += one.Count
			}
		}
		if len(r.got) != maxSpooled+1 || told != 100_000-maxSpooled {
			t.Errorf("%d arrived, which say that %d did not", len(r.got), told)
		}
	})
}

func TestSpoolGivesUpWhatTheHubCannotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, err: wire.Fail(wire.LegHub, wire.CodeBadRequest, "no")}
		s := NewSpool()
		start(t, s, r)
		s.Record(Record{Action: Open})
		time.Sleep(time.Second)
		synctest.Wait()
		if n, lost := s.Waiting(); n != 0 || lost != 1 {
			t.Errorf("%d wait, %d lost", n, lost)
		}
	})
}

func TestParseBatchBelievesTheBus(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	encode := func(r Record) []byte { return append(appendRecord(nil, &r, nil), '\n') }
	good := Record{ID: "1", Time: now.Add(-time.Second), Action: Open, Actor: identity.Principal{Kind: identity.KindRobot, Name: "ci"}}
	lie := good
	lie.Organization, lie.Agent, lie.Replica, lie.Reporter, lie.Received = "other", "other", "other", ByHub, now
	for _, r := range []Record{good, lie} {
		all, err := ParseBatch(encode(r), "acme", "edge", "one", now)
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		got := all[0]
		if got.Organization != "acme" || got.Agent != "edge" || got.Replica != "one" || got.Reporter != ByAgent || !got.Received.IsZero() {
			t.Errorf("%+v", got)
		}
	}
	late, early := good, good
	late.Time, early.Time = now.Add(-time.Hour), now.Add(time.Hour)
	if all, err := ParseBatch(encode(late), "a", "b", "c", now); err != nil || !all[0].Received.Equal(now) || !all[0].Time.Equal(late.Time) {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := ParseBatch(encode(early), "a", "b", "c", now); err != nil || all[0].Time.After(now) {
		t.Errorf("%+v, %v", all, err)
	}
	forbidden, anonymous := good, good
	forbidden.Action, anonymous.ID = SignIn, ""
	for name, batch := range map[string][]byte{
		"a hub's action": encode(forbidden), "no ID": encode(anonymous), "no JSON": []byte("x"),
		"too many": []byte(strings.Repeat(string(encode(good)), maxBlock+1)),
	} {
		if _, err := ParseBatch(batch, "a", "b", "c", now); !errors.Is(err, ErrBatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseBatch(f *testing.F) {
	r := full().Record
	f.Add(append(appendRecord(nil, &r, nil), '\n'))
	f.Add([]byte(`{"action":"open","actor":"robot:ci","duration_ns":12,"id":"a","ok":true,"time":"2026-01-01T00:00:00.5+01:00","count":0}`))
	f.Fuzz(func(t *testing.T, batch []byte) {
		for line := range strings.Lines(string(batch)) {
			// What the decoder takes it for is what it says.
			var quick, slow Record
			d := decoder{rest: line}
			if !d.object(&quick) || d.rest != "" {
				continue
			}
			if err := json.Unmarshal([]byte(line), &slow); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if diff := cmp.Diff(slow, quick); diff != "" {
				t.Fatalf("%s: %s", line, diff)
			}
		}
		all, err := ParseBatch(batch, "acme", "edge", "one", time.Unix(1e9, 0))
		if err != nil {
			return
		}
		var head Head
		for i := range all {
			all[i].clean()
			var line []byte
			line, head = head.Seal(nil, &all[i])
			if _, err := ParseEntry(line); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	})
}
