package limit_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/wire"
)

// alive is somebody who waits for as long as the flag is not set.
type alive struct{ gone atomic.Bool }

func (a *alive) Alive() bool { return !a.gone.Load() }

func book(org, agent, proxy limit.Limits) *limit.Book {
	return limit.NewBook(limit.Options{Defaults: limit.Table{limit.Organization: org, limit.Agent: agent, limit.Proxy: proxy}})
}

func enter(t *testing.T, b *limit.Book) *limit.Use {
	t.Helper()
	u, refusal := b.Enter(limit.OneStream, "acme", "edge", "near")
	if refusal != nil {
		t.Fatal(refusal)
	}
	return u
}

func TestRefusalNamesTheLimit(t *testing.T) {
	b := limit.NewBook(limit.Options{
		Defaults: limit.Table{limit.Proxy: {Streams: 1}},
		Hint:     func(r *limit.Refusal) string { return "raise " + r.Kind.String() },
	})
	u := enter(t, b)
	_, refusal := b.Enter(limit.OneStream, "acme", "edge", "near")
	if refusal == nil {
		t.Fatal("a second stream was admitted")
	}
	f := refusal.Failure(wire.LegAgent)
	if f.Code != wire.CodeOverloaded || f.Text != "proxy near of organization acme has reached its limit of 1 streams at once" || f.Hint != "raise streams" {
		t.Errorf("got %+v", f)
	}
	var back *limit.Refusal
	if !errors.As(error(f), &back) || back.Kind != limit.Streams {
		t.Error("the failure does not lead to the refusal")
	}
	u.Leave()
	u.Leave() // once counts
	enter(t, b).Leave()
}

// TestRatesAreExact spends everything that may be spent, and counts it.
func TestRatesAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book(limit.Limits{Opens: 10}, limit.Limits{}, limit.Limits{})
		admitted := func() (n int) {
			for {
				u, refusal := b.Enter(limit.OneStream, "acme", "edge", "near")
				if refusal != nil {
					if refusal.RetryAfter <= 0 || refusal.RetryAfter > 100*time.Millisecond+1 {
						t.Errorf("try again after %s, at ten a second", refusal.RetryAfter)
					}
					return n
				}
				u.Leave()
				n++
			}
		}
		if n := admitted(); n != 20 {
			t.Errorf("%d at first, want two seconds' worth", n)
		}
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if n := admitted(); n != 1 {
				t.Fatalf("%d in a tenth of a second", n)
			}
		}
		time.Sleep(time.Hour)
		if n := admitted(); n != 20 {
			t.Errorf("%d after an hour", n)
		}
	})
}

// TestBytesWait moves bytes by many at once and looks at how long it takes in all
// and for each of them.
func TestBytesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, streams, chunks, chunk = 100_000, 10, 20, 10_000
		b := book(limit.Limits{Bytes: rate}, limit.Limits{}, limit.Limits{})
		first := enter(t, b)
		first.Take(rate, &alive{}) // one second's worth is there at once
		first.Leave()
		begin := time.Now()
		var all sync.WaitGroup
		for range streams {
			all.Go(func() {
				u := enter(t, b)
				defer u.Leave()
				for range chunks {
					if !u.Take(chunk, &alive{}) {
						t.Error("gave up")
					}
				}
				// Each had its turns as the others had: the last is less than one round late.
				if took := time.Since(begin); took < 19*time.Second {
					t.Errorf("one was done after %s, before its turn", took)
				}
			})
		}
		all.Wait()
		if took, want := time.Since(begin), streams*chunks*chunk*time.Second/rate; took < want || took > want+time.Millisecond {
			t.Errorf("took %s, want %s", took, want)
		}
		if u := b.Usage("acme")[0]; u.Streams != 0 || u.Throttled < 100*time.Second {
			t.Errorf("usage %+v", u)
		}
	})
}

// TestLimitChangesUnderWaiters raises, and then lifts, a limit that some wait for.
func TestLimitChangesUnderWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := limit.Key{Level: limit.Organization, Organization: "acme"}
		b := book(limit.Limits{Bytes: 20_000}, limit.Limits{}, limit.Limits{})
		u := enter(t, b)
		defer u.Leave()
		took := func(n int) time.Duration {
			begin := time.Now()
			if !u.Take(n, &alive{}) {
				t.Error("gave up")
			}
			return time.Since(begin).Round(time.Millisecond)
		}
		if d := took(20_000); d != 0 {
			t.Errorf("the first second's worth took %s", d)
		}
		time.AfterFunc(10*time.Second, func() { b.Set(key, limit.Limits{Bytes: 200_000}) })
		if d := took(400_000); d != 11*time.Second { // half of it in ten seconds
			t.Errorf("took %s", d)
		}
		b.Set(key, limit.Limits{Bytes: 20_000})
		time.AfterFunc(3*time.Second, func() { b.Set(key, limit.Limits{Bytes: limit.Unlimited}) })
		if d := took(1 << 30); d != 3*time.Second {
			t.Errorf("took %s", d)
		}
		synctest.Wait() // until the change is through: it lets waiters go in the middle
		if u.Throttled() {
			t.Error("still throttled")
		}
		b.Set(key, limit.Limits{}) // as by default
		if !u.Throttled() {
			t.Error("a limit does not hold for what is open")
		}
	})
}

// TestWhoGivesUpTakesNothing has many wait, and most of them leave.
func TestWhoGivesUpTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100_000
		b := book(limit.Limits{Bytes: rate}, limit.Limits{}, limit.Limits{Bytes: 10 * rate})
		u := enter(t, b)
		defer u.Leave()
		u.Take(rate, &alive{})
		var all sync.WaitGroup
		begin := time.Now()
		leavers := &alive{}
		for i := range 30 {
			who := leavers
			if i%3 == 2 {
				who = &alive{}
			}
			all.Go(func() {
				if !u.Take(rate, who) && who != leavers {
					t.Errorf("waiter %d did not get its turn", i)
				}
			})
			synctest.Wait()
		}
		leavers.gone.Store(true)
		all.Wait()
		// The first has its turn when it is asked whether it still waits.
		if took := time.Since(begin).Round(time.Millisecond); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("ten chunks of a second took %s", took)
		}
		begin = time.Now()
		u.Take(rate, &alive{})
		if took := time.Since(begin).Round(time.Millisecond); took != time.Second {
			t.Errorf("the next took %s", took)
		}
	})
}

// TestNeverAboveTheLimits plays random opens, ends, bytes, waits and changes at
// three levels, and checks after each that nobody is above a limit and nothing is lost.
func TestNeverAboveTheLimits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		value := func(name string, most int64) limit.Value {
			if v := rapid.Int64Range(0, most).Draw(rt, name); v > 0 {
				return limit.Value(v)
			}
			return limit.Unlimited
		}
		b := book(
			limit.Limits{Streams: value("org streams", 8)},
			limit.Limits{Streams: value("agent streams", 6)},
			limit.Limits{Streams: value("proxy streams", 4)})
		names := rapid.SampledFrom([]string{"a", "b", ""})
		type one struct {
			use *limit.Use
			of  [3]limit.Key
		}
		var open []one
		count := func(key limit.Key) (n int64) {
			for _, o := range open {
				for _, k := range o.of {
					if k == key {
						n++
					}
				}
			}
			return n
		}
		check := func() {
			for _, org := range []string{"x", "y"} {
				for _, u := range b.Usage(org) {
					if u.Streams != count(u.Key) {
						rt.Fatalf("%s: counts %d, want %d", u.Key, u.Streams, count(u.Key))
					}
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"enter": func(rt *rapid.T) {
				org, agent, proxy := rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "org"), names.Draw(rt, "agent"), names.Draw(rt, "proxy")
				keys := [3]limit.Key{{Level: limit.Organization, Organization: org}, {Level: limit.Agent, Organization: org, Name: agent},
					{Level: limit.Proxy, Organization: org, Name: proxy}}
				full := false
				for i, k := range keys {
					if i > 0 && k.Name == "" {
						keys[i] = limit.Key{Level: 99}
						continue
					}
					if v := b.Limits(k).Streams; v > 0 && count(k) >= int64(v) {
						full = true
					}
				}
				u, refusal := b.Enter(limit.OneStream, org, agent, proxy)
				if full != (refusal != nil) {
					rt.Fatalf("full: %v, and the answer is %v", full, refusal)
				}
				if refusal == nil {
					open = append(open, one{u, keys})
				}
			},
			"leave": func(rt *rapid.T) {
				if len(open) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
				open[i].use.Leave()
				open = append(open[:i], open[i+1:]...)
			},
			"change": func(rt *rapid.T) {
				key := limit.Key{Level: limit.Proxy, Organization: "x", Name: "a"}
				if rapid.Bool().Draw(rt, "organization") {
					key = limit.Key{Level: limit.Organization, Organization: "x"}
				}
				b.Set(key, limit.Limits{Streams: limit.Value(rapid.Int64Range(0, 8).Draw(rt, "streams"))})
			},
		})
		for _, o := range open {
			o.use.Leave()
		}
		open = nil
		check()
	})
}

// TestBytesAreNeverAboveTheRate plays takers of random sizes who come, wait and
// leave at random, under a rate that changes, and compares what passed with what may
// have.
func TestBytesAreNeverAboveTheRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const rate = 50_000
		sizes := rapid.SliceOfN(rapid.IntRange(1, 60_000), 1, 30).Draw(rt, "sizes")
		delays := rapid.SliceOfN(rapid.IntRange(0, 3000), len(sizes), len(sizes)).Draw(rt, "delays in ms")
		leaves := rapid.SliceOfN(rapid.IntRange(0, 20_000), len(sizes), len(sizes)).Draw(rt, "patience in ms")
		synctest.Test(t, func(*testing.T) {
			b := book(limit.Limits{Bytes: rate}, limit.Limits{}, limit.Limits{})
			u, _ := b.Enter(limit.OneStream, "acme", "edge", "near")
			defer u.Leave()
			begin := time.Now()
			var mu sync.Mutex
			passed := 0
			var all sync.WaitGroup
			for i, size := range sizes {
				time.Sleep(time.Duration(delays[i]) * time.Millisecond)
				all.Go(func() {
					who := &alive{}
					leave := time.AfterFunc(time.Duration(leaves[i])*time.Millisecond, func() { who.gone.Store(true) })
					defer leave.Stop()
					if !u.Take(size, who) {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					passed += size
					if most := rate + int(rate*time.Since(begin).Seconds()) + 1; passed > most {
						rt.Errorf("%d bytes passed in %s, at most %d may", passed, time.Since(begin), most)
					}
				})
			}
			all.Wait()
			// Nothing is lost: after a second of rest a second's worth is there, and the
			// bytes after it come at the rate.
			time.Sleep(time.Minute)
			begin = time.Now()
			u.Take(rate, &alive{})
			if d := time.Since(begin); d != 0 {
				rt.Errorf("a rested bucket kept one waiting for %s", d)
			}
			u.Take(rate, &alive{})
			if d := time.Since(begin).Round(time.Millisecond); d != time.Second {
				rt.Errorf("the second's worth after it took %s", d)
			}
		})
	})
}

// TestChainGivesBackOnRefusal reaches the limit of the organization, and looks that
// the proxy has lost none of its opens.
func TestChainGivesBackOnRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book(limit.Limits{Streams: 1}, limit.Limits{}, limit.Limits{Opens: 5})
		u := enter(t, b)
		for range 100 {
			if _, refusal := b.Enter(limit.OneStream, "acme", "edge", "near"); refusal == nil || refusal.Key.Level != limit.Organization {
				t.Fatalf("got %v", refusal)
			}
		}
		u.Leave()
		for i := range 9 {
			u, refusal := b.Enter(limit.OneStream, "acme", "edge", "near")
			if refusal != nil {
				t.Fatalf("open %d: %v", i, refusal)
			}
			u.Leave()
		}
		for _, u := range b.Usage("acme") {
			if u.Streams != 0 || u.Pipes != 0 {
				t.Errorf("%s: %d streams, %d pipes", u.Key, u.Streams, u.Pipes)
			}
		}
	})
}

// TestPipesHaveRoomToIdle: a pipe may carry a stream or not.
func TestPipesHaveRoomToIdle(t *testing.T) {
	b := book(limit.Limits{Streams: 2}, limit.Limits{}, limit.Limits{})
	var uses []*limit.Use
	for {
		u, refusal := b.Enter(limit.OnePipe, "acme", "edge", "near")
		if refusal != nil {
			break
		}
		uses = append(uses, u)
	}
	if len(uses) != 66 {
		t.Errorf("%d pipes for two streams", len(uses))
	}
	enter(t, b).Leave() // streams that are known count for themselves
	for _, u := range uses {
		u.Leave()
	}
}

// TestNamesThatComeAndGo: proxies under ever new names do not fill the memory, and
// what they were refused is still told.
func TestNamesThatComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book(limit.Limits{}, limit.Limits{}, limit.Limits{Streams: 1})
		held := enter(t, b)
		for i := range 1000 {
			name := "p" + strings.Repeat("x", i%50)
			u, _ := b.Enter(limit.OneStream, "acme", "edge", name)
			_, refusal := b.Enter(limit.OneStream, "acme", "edge", name)
			if refusal == nil {
				t.Fatal("not refused")
			}
			u.Leave()
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute)
		u, _ := b.Enter(limit.OneStream, "acme", "edge", "last")
		u.Leave()
		if all := b.Usage("acme"); len(all) != 4 || all[3].Name != "near" || all[3].Streams != 1 {
			t.Errorf("still known: %+v", all)
		}
		for _, sum := range b.Sum(limit.Organization) {
			if sum.Level == limit.Proxy && sum.Refused[limit.Streams] != 1000 {
				t.Errorf("%d refusals told", sum.Refused[limit.Streams])
			}
		}
		held.Leave()
		b.Forget("acme")
		if all := b.Sum(limit.Organization); len(all) != 0 {
			t.Errorf("not forgotten: %+v", all)
		}
	})
}

// TestManyAtOnce leaves every count at zero.
func TestManyAtOnce(t *testing.T) {
	told := atomic.Int64{}
	b := limit.NewBook(limit.Options{
		Defaults: limit.Table{limit.Organization: {Streams: 40, Bytes: 1 << 30}, limit.Proxy: {Streams: 5}},
		Refused:  func(*limit.Refusal) { told.Add(1) },
	})
	var all sync.WaitGroup
	var refused atomic.Int64
	for i := range 64 {
		all.Go(func() {
			for j := range 200 {
				unit := limit.Unit(j % 2)
				u, refusal := b.Enter(unit, "acme", "edge", string(rune('a'+i%8)))
				if refusal != nil {
					refused.Add(1)
					continue
				}
				u.Take(100, &alive{})
				u.Leave()
			}
		})
	}
	all.Wait()
	for _, u := range b.Usage("acme") {
		if u.Streams != 0 || u.Pipes != 0 {
			t.Errorf("%s: %d streams and %d pipes are left", u.Key, u.Streams, u.Pipes)
		}
	}
	if refused.Load() > 0 && (told.Load() == 0 || told.Load() > 20) {
		t.Errorf("%d refusals were told %d times", refused.Load(), told.Load())
	}
}

func TestTakeDoesNotAllocate(t *testing.T) {
	for name, b := range map[string]*limit.Book{
		"unlimited": book(limit.Limits{}, limit.Limits{}, limit.Limits{}),
		"limited":   book(limit.Limits{Bytes: 1 << 40}, limit.Limits{Bytes: 1 << 40}, limit.Limits{Bytes: 1 << 40}),
	} {
		u := enter(t, b)
		who := &alive{}
		if n := testing.AllocsPerRun(1000, func() {
			if u.Throttled() {
				u.Take(u.Chunk(1<<16), who)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		u.Leave()
	}
}

func BenchmarkTake(b *testing.B) {
	for name, l := range map[string]limit.Limits{"unlimited": {}, "limited": {Bytes: 1 << 49}} {
		b.Run(name, func(b *testing.B) {
			u, _ := book(l, l, l).Enter(limit.OneStream, "acme", "edge", "near")
			who := &alive{}
			for b.Loop() {
				if u.Throttled() {
					u.Take(u.Chunk(1<<16), who)
				}
			}
		})
	}
}
