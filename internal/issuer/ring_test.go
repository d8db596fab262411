package issuer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fakeKeys makes keys that are names only.
func fakeKeys() maker {
	n := 0
	return func(t KeyType, now time.Time) (Key, error) {
		n++
		return Key{ID: fmt.Sprintf("key-%04d", n), Type: t, Created: now}, nil
	}
}

// TestTokensVerifyAllTheirLife plays an issuer through years of rotations by schedule and
// by hand, with a process that sleeps at times. A token, whenever it was made, is
// verified at any moment of its life with the keys as a relying party last fetched them,
// which keeps them for CacheAge and fetches them anew then.
func TestTokensVerifyAllTheirLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Schedule{Ahead: time.Duration(rapid.IntRange(15, 300).Draw(t, "ahead")) * time.Minute}
		if rapid.Bool().Draw(t, "by schedule") {
			s.Age = s.Ahead + linger + time.Duration(rapid.IntRange(0, 600).Draw(t, "age"))*time.Minute
		}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1_700_000_000, 0)
		begin := now
		newKey := fakeKeys()
		var ring Ring
		type shown struct {
			from time.Time
			ids  []string
		}
		type token struct {
			at  time.Time
			key string
		}
		var history []shown
		var tokens []token
		show := func() {
			one := shown{from: now}
			for _, k := range ring.Keys() {
				one.ids = append(one.ids, k.ID)
			}
			history = append(history, one)
		}
		// step has the process look after its keys, and mint.
		step := func() {
			for {
				changed, err := ring.Step(now, s, RSA2048, newKey)
				if err != nil || ring.check() != nil {
					t.Fatal(err, ring.check())
				}
				if !changed {
					break
				}
				show()
			}
			k, ok := ring.Signing()
			if !ok {
				t.Fatal("no key signs")
			}
			tokens = append(tokens, token{now, k.ID})
		}
		step()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				if err := ring.Rotate(now, false, RSA2048, newKey); err == nil {
					show()
				} else if !errors.Is(err, ErrRotating) {
					t.Fatal(err)
				}
			default:
				now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
			}
			step()
		}
		at := func(when time.Time) []string {
			ids := history[0].ids
			for _, h := range history {
				if !h.from.After(when) {
					ids = h.ids
				}
			}
			return ids
		}
		for _, one := range tokens {
			for life := time.Duration(0); life <= TokenLife; life += 5 * time.Minute {
				for age := time.Duration(0); age <= CacheAge; age += 5 * time.Minute {
					if fetched := one.at.Add(life - age); fetched.After(now) || fetched.Before(begin) {
						continue // before there was an issuer, nobody had its keys
					} else if !slices.Contains(at(fetched), one.key) {
						t.Fatalf("a token of %s, signed with %s, does not verify %s later with keys that are %s old", one.at, one.key, life, age)
					}
				}
			}
		}
	})
}

// TestWithdrawnKeyIsGone withdraws any key at any time.
func TestWithdrawnKeyIsGone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Schedule{Ahead: time.Hour, Age: 6 * time.Hour}
		now, newKey := time.Unix(1_700_000_000, 0), fakeKeys()
		var ring Ring
		gone := map[string]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if _, err := ring.Step(now, s, RSA2048, newKey); err != nil {
				t.Fatal(err)
			}
			keys := ring.Keys()
			for _, k := range keys {
				if gone[k.ID] {
					t.Fatalf("%s is there again", k.ID)
				}
			}
			if keys[0].Phase != Signing {
				t.Fatalf("the first of %v does not sign", keys)
			}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				k := rapid.SampledFrom(keys).Draw(t, "key")
				if out, err := ring.Withdraw(k.ID); err != nil || out.ID != k.ID {
					t.Fatal(out, err)
				}
				gone[k.ID] = true
			case 1:
				if err := ring.Rotate(now, true, RSA2048, newKey); err != nil {
					t.Fatal(err)
				}
			default:
				now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
			}
		}
	})
}

// TestRotationStepByStep follows one key from its making to its end.
func TestRotationStepByStep(t *testing.T) {
	s := Schedule{Age: 30 * 24 * time.Hour, Ahead: 24 * time.Hour}
	now, newKey := time.Unix(1_700_000_000, 0), fakeKeys()
	var ring Ring
	want := func(what ...string) {
		t.Helper()
		if _, err := ring.Step(now, s, RSA2048, newKey); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range ring.Keys() {
			got = append(got, k.ID+" "+string(k.Phase))
		}
		if !slices.Equal(got, what) {
			t.Fatalf("%v after %s; want %v", got, now.Sub(time.Unix(1_700_000_000, 0)), what)
		}
	}
	want("key-0001 signing")
	now = now.Add(29*24*time.Hour - time.Second)
	want("key-0001 signing")
	now = now.Add(time.Second)
	want("key-0001 signing", "key-0002 published")
	if first, _ := ring.Signing(); !ring.Ends(first, s).Equal(now.Add(s.Ahead)) {
		t.Errorf("the first signs until %s", ring.Ends(first, s))
	}
	if err := ring.Rotate(now, false, RSA2048, newKey); !errors.Is(err, ErrRotating) {
		t.Errorf("a third one: %v", err)
	}
	now = now.Add(24 * time.Hour)
	want("key-0002 signing", "key-0001 retiring")
	now = now.Add(linger - time.Second)
	want("key-0002 signing", "key-0001 retiring")
	now = now.Add(time.Second)
	want("key-0002 signing")

	// Another kind of keys is wanted: the next one is of that.
	if changed, err := ring.Step(now, s, ECDSAP256, newKey); err != nil || !changed {
		t.Fatal(changed, err)
	}
	want("key-0002 signing", "key-0003 published")
	// A failure to make one changes nothing.
	now = now.Add(40 * 24 * time.Hour)
	broken := errors.New("no random numbers")
	keys := ring.Keys()
	ring.keys = keys[:1]
	if _, err := ring.Step(now, s, RSA2048, func(KeyType, time.Time) (Key, error) { return Key{}, broken }); !errors.Is(err, broken) || len(ring.keys) != 1 {
		t.Errorf("%v, %v", err, ring.keys)
	}
}

func TestWithdrawByPrefix(t *testing.T) {
	ring := Ring{keys: []Key{{ID: "abcdefgh", Phase: Signing}, {ID: "abcdefxy", Phase: Retiring}}}
	for _, id := range []string{"", "abc", "abcdef", "nothing", "abcdefghi"} {
		if k, err := ring.Withdraw(id); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%q withdraws %s, %v", id, k.ID, err)
		}
	}
	if k, err := ring.Withdraw("abcdefg"); err != nil || k.ID != "abcdefgh" || len(ring.keys) != 1 {
		t.Errorf("%v, %v, %v", k, err, ring.keys)
	}
}

func TestSchedule(t *testing.T) {
	for s, ok := range map[Schedule]bool{
		{Ahead: CacheAge}: true, {Ahead: CacheAge - 1}: false, {}: false, {Age: time.Hour, Ahead: time.Hour}: false,
		{Age: 720 * time.Hour, Ahead: 24 * time.Hour}: true, {Age: -1, Ahead: time.Hour}: false,
	} {
		if err := s.Validate(); (err == nil) != ok {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
