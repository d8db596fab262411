package bus

import (
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestTableLostAfterSilence(t *testing.T) {
	tab, p, start := table{}, samplePresence(), time.Now()
	k := replicaKey{p.Agent, p.Replica}
	if !tab.apply(p, start) {
		t.Error("a new replica is no change")
	}
	p.Streams = 99
	if tab.apply(p, start.Add(3*time.Second)) {
		t.Error("a counter is a change")
	}
	if tab.expire(start.Add(12 * time.Second)) {
		t.Error("lost after 9 s")
	}
	if !tab.expire(start.Add(12*time.Second+1)) || tab[k].State != StateLost || !tab[k].Since.Equal(start.Add(3*time.Second)) {
		t.Errorf("after more than 9 s: %+v", tab[k])
	}
	if tab.expire(start.Add(20 * time.Second)) {
		t.Error("lost twice")
	}
	if !tab.apply(p, start.Add(21*time.Second)) || tab[k].State != StateReady {
		t.Error("it came back and is not seen")
	}
	tab.excuse(start.Add(30 * time.Second))
	if tab.expire(start.Add(39 * time.Second)) {
		t.Error("lost though excused")
	}
	p.State = StateStopped
	if !tab.apply(p, start.Add(40*time.Second)) {
		t.Error("the end is no change")
	}
	if tab.expire(start.Add(60*time.Second)) || tab[k].State != StateStopped {
		t.Error("a stopped one gets lost")
	}
	if !tab.expire(start.Add(2*time.Hour)) || len(tab) != 0 {
		t.Error("a stopped one is kept for ever")
	}
}

func TestTableEpochs(t *testing.T) {
	now := time.Now()
	old, successor := samplePresence(), samplePresence()
	successor.Epoch, successor.Started = "e2", old.Started.Add(time.Minute)
	k := replicaKey{old.Agent, old.Replica}
	tab := table{}
	tab.apply(old, now)
	if !tab.apply(successor, now) || tab[k].Epoch != "e2" {
		t.Error("the successor does not replace the ghost")
	}
	old.State = StateStopped
	if tab.apply(old, now) || tab[k].Epoch != "e2" || tab[k].State != StateReady {
		t.Error("the ghost's last words count")
	}
	// A successor whose clock is behind waits until its predecessor is lost.
	behind := successor
	behind.Epoch, behind.Started = "e3", successor.Started.Add(-time.Hour)
	if tab.apply(behind, now) {
		t.Error("an older process replaces a living one")
	}
	tab.expire(now.Add(time.Minute))
	if !tab.apply(behind, now.Add(time.Minute)) || tab[k].Epoch != "e3" {
		t.Error("a clock behind locks the successor out")
	}
}

func TestTableIsBounded(t *testing.T) {
	tab := table{}
	for i := range maxReplicas {
		tab[replicaKey{"a", strconv.Itoa(i)}] = entry{}
	}
	if tab.apply(samplePresence(), time.Now()) || len(tab) > maxReplicas {
		t.Error("the table grows without end")
	}
}

// TestReplicasOfOneAgent: an agent's replicas are those that are in the table, whatever
// came and went.
func TestReplicasOfOneAgent(t *testing.T) {
	now := time.Now()
	d := &Directory{table: table{}, changed: make(chan struct{})}
	come := func(agent, replica string, state State) {
		p := samplePresence()
		p.Agent, p.Replica, p.State = agent, replica, state
		d.update(func(t table, _ time.Time) bool { return t.apply(p, now) })
	}
	check := func(what, agent string, want ...string) {
		t.Helper()
		var got []string
		for _, p := range d.Replicas(agent) {
			got = append(got, p.Agent+"/"+p.Replica)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q; want %q", what, got, want)
		}
	}
	check("nobody", "a")
	come("a", "2", StateReady)
	come("a", "1", StateStopped)
	come("b", "1", StateReady)
	check("two", "a", "a/1", "a/2")
	come("a", "3", StateReady)
	check("three", "a", "a/1", "a/2", "a/3")
	check("another", "b", "b/1")
	come("a", "2", StateDraining)
	if got := d.Replicas("a")[1].State; got != StateDraining {
		t.Errorf("it is %s", got)
	}
	d.update(func(t table, _ time.Time) bool { return t.expire(now.Add(2 * forgetAfter)) }) // the others are lost first
	check("one was forgotten", "a", "a/2", "a/3")
	d.update(func(t table, _ time.Time) bool { return t.expire(now.Add(2 * forgetAfter)) })
	check("all were", "a")
	check("all were", "b")
}

// BenchmarkReplicas looks for one agent among ten thousand, as each stream does.
func BenchmarkReplicas(b *testing.B) {
	d := &Directory{table: table{}}
	for i := range 10_000 {
		p := samplePresence()
		p.Agent = strconv.Itoa(i)
		d.table.apply(p, time.Now())
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(d.Replicas("1")) != 1 {
			b.Fatal("it is not there")
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures, most := range []time.Duration{firstBackoff, 2 * firstBackoff, 4 * firstBackoff, 8 * firstBackoff} {
		for range 100 {
			if d := backoff(failures); d < most/2 || d >= most {
				t.Fatalf("backoff(%d) = %s", failures, d)
			}
		}
	}
	if d := backoff(1 << 40); d < lastBackoff/2 || d >= lastBackoff {
		t.Errorf("late backoff = %s", d)
	}
}
