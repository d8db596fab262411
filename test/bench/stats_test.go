package main

import (
	"math"
	"testing"
)

var nan = math.NaN()

func same(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   samples
		want float64
	}{
		{nil, nan},
		{samples{nan}, nan},
		{samples{3}, 3},
		{samples{9, 1, 5}, 5},
		{samples{4, 1, 3, 2}, 2.5},
		{samples{nan, 7, nan, 5, 6}, 6},
	} {
		if got := tt.in.median(); !same(got, tt.want) {
			t.Errorf("median of %v is %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestOverPairsRounds(t *testing.T) {
	// The machine was half as fast in the second round; the ratio is the same.
	ours, theirs := samples{30, 15, nan, 30, 9}, samples{20, 10, 20, 20, 0}
	got := ours.over(theirs)
	for i, want := range []float64{1.5, 1.5, nan, 1.5, nan} {
		if !same(got[i], want) {
			t.Errorf("round %d: %v, want %v", i, got[i], want)
		}
	}
	if m := got.median(); m != 1.5 {
		t.Errorf("median ratio %v, want 1.5", m)
	}
	if n := len(samples{1, 2}.over(samples{1})); n != 1 {
		t.Errorf("%d ratios of unequal lists, want 1", n)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tt := range []struct {
		sorted []float64
		p      float64
		want   float64
	}{
		{nil, 0.5, nan},
		{[]float64{7}, 0.99, 7},
		{[]float64{1, 2}, 0.5, 1},
		{[]float64{1, 2, 3}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0, 1},
		{hundred, 1, 100},
	} {
		if got := percentile(tt.sorted, tt.p); !same(got, tt.want) {
			t.Errorf("percentile %v of %d values is %v, want %v", tt.p, len(tt.sorted), got, tt.want)
		}
	}
}
