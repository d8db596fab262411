package bus

import (
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
