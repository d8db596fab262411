package main

import "testing"

func TestParseStat(t *testing.T) {
	got, err := parseStat("42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1 2 3\n")
	if err != nil || got != 3 {
		t.Errorf("got %v, %v; want 3 seconds", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1 2", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b"} {
		if v, err := parseStat(bad); err == nil {
			t.Errorf("%q gave %v", bad, v)
		}
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("Name:\tx\nVmHWM:\t   9 kB\nVmRSS:\t    1234 kB\nThreads:\t3\n")
	if err != nil || got != 1234 {
		t.Errorf("got %v, %v; want 1234", got, err)
	}
	if v, err := parseResident("Name:\tx\n"); err == nil {
		t.Errorf("no VmRSS gave %v", v)
	}
}
