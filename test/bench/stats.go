package main

import (
	"math"
	"slices"
)

// samples are the values of one metric of one contender, one per round; NaN
// stands for a round that failed.
type samples []float64

// good returns the samples that did not fail, sorted.
func (s samples) good() []float64 {
	var g []float64
	for _, v := range s {
		if !math.IsNaN(v) {
			g = append(g, v)
		}
	}
	slices.Sort(g)
	return g
}

// median returns the middle of the samples that did not fail, the mean of the
// two middle ones when their number is even, and NaN when there is none.
func (s samples) median() float64 {
	g := s.good()
	n := len(g)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return g[n/2]
	default:
		return (g[n/2-1] + g[n/2]) / 2
	}
}

// over returns s divided by t round by round. Rounds are taken one right after
// the other, so what disturbs the machine for a while disturbs both.
func (s samples) over(t samples) samples {
	ratios := make(samples, min(len(s), len(t)))
	for i := range ratios {
		ratios[i] = s[i] / t[i]
		if t[i] == 0 {
			ratios[i] = math.NaN()
		}
	}
	return ratios
}

// less returns s minus t, round by round.
func (s samples) less(t samples) samples {
	d := make(samples, min(len(s), len(t)))
	for i := range d {
		d[i] = s[i] - t[i]
	}
	return d
}

// percentile returns the value that a share p (0 to 1) of the sorted values does
// not exceed, by nearest rank; NaN for no values.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
