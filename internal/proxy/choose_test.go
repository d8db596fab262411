package proxy

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBest draws among candidates many times and looks who is chosen how often.
func TestBest(t *testing.T) {
	const draws = 3000
	for _, tt := range []struct {
		name string
		all  []candidate
		want []float64 // the part of the draws that each wins
	}{
		{"one", []candidate{{load: 9, ill: true}}, []float64{1}},
		{"least load of two", []candidate{{load: 1}, {load: 2}, {load: 3}}, []float64{2. / 3, 1. / 3, 0}},
		{"of two, never the more loaded", []candidate{{load: 8}, {load: 7}}, []float64{0, 1}},
		{"equal", []candidate{{}, {}, {}}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{"round-trip time among equals", []candidate{{rtt: 30 * time.Millisecond}, {rtt: time.Millisecond}}, []float64{0, 1}},
		{"load before round-trip time", []candidate{{load: 1, rtt: 30 * time.Millisecond}, {load: 2, rtt: time.Millisecond}}, []float64{1, 0}},
		{"own zone before load", []candidate{{load: 90}, {far: true}}, []float64{1, 0}},
		{"no own zone", []candidate{{far: true, load: 2}, {far: true, load: 1}}, []float64{0, 1}},
		{"an ill one of our zone", []candidate{{ill: true}, {far: true, load: 90}}, []float64{0, 1}},
		{"a lost one of our zone", []candidate{{lost: true}, {far: true, load: 90}}, []float64{0, 1}},
		{"lost is better than ill", []candidate{{ill: true}, {lost: true}}, []float64{0, 1}},
		{"all are ill: those of our zone first", []candidate{{ill: true, far: true}, {ill: true, load: 5}}, []float64{0, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			won := make(map[*replica]int)
			for i := range tt.all {
				tt.all[i].replica = new(replica)
			}
			for range draws {
				won[best(append([]candidate(nil), tt.all...), r.IntN).replica]++
			}
			for i, want := range tt.want {
				if got := float64(won[tt.all[i].replica]) / draws; got < want-.05 || got > want+.05 {
					t.Errorf("candidate %d was chosen in %.2f of the draws; want %.2f", i, got, want)
				}
			}
		})
	}
}

// TestBestIsOfTheLowestRank: whatever the candidates, none is chosen while there is one
// of a lower rank, and the most loaded of a rank only when it is alone or not alone
// with its load.
func TestBestIsOfTheLowestRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) candidate {
			return candidate{
				replica: new(replica), load: rapid.IntRange(0, 3).Draw(t, "load"), rtt: time.Duration(rapid.IntRange(0, 2).Draw(t, "rtt")),
				ill: rapid.Bool().Draw(t, "ill"), lost: rapid.Bool().Draw(t, "lost"), far: rapid.Bool().Draw(t, "far"),
			}
		}), 1, 8).Draw(t, "all")
		before := append([]candidate(nil), all...)
		got := best(all, func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "drawn") })
		peers, heavier := 0, 0
		for _, c := range before {
			if c.rank() < got.rank() {
				t.Fatalf("rank %d was chosen, though there is one of rank %d", got.rank(), c.rank())
			}
			if c.rank() == got.rank() {
				peers++
				if c.load > got.load || c.load == got.load && c.rtt >= got.rtt {
					heavier++ // itself included
				}
			}
		}
		if peers > 1 && heavier < 2 {
			t.Fatalf("the worst of %d was chosen", peers)
		}
	})
}
