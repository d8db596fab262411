package embedded

import (
	"context"
	"math"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// TestListWhileKeysChange: a key that is there all the time is in every list, also when its
// value is replaced while the list is made. Roles, access grants and revocations are listed.
func TestListWhileKeysChange(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	defer s.Shutdown()
	kv, ctx := openKV(t, s), t.Context()
	want := []string{"key.a", "key.b", "key.c"}
	for _, key := range append([]string{"key.gone", "other.a"}, want...) {
		if _, err := kv.Create(ctx, key, []byte("0")); err != nil {
			t.Fatal(err)
		}
	}
	if err := kv.Delete(ctx, "key.gone"); err != nil {
		t.Fatal(err)
	}
	changing, end := context.WithCancel(ctx)
	var changes sync.WaitGroup
	changes.Go(func() {
		for changing.Err() == nil {
			_, rev, err := kv.Get(ctx, "key.b")
			if err == nil {
				_, err = kv.Update(ctx, "key.b", []byte("1"), rev)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	ways := map[string]func() (found []string, all bool, err error){
		"List": func() (found []string, all bool, err error) {
			found, err = kv.List(ctx, "key.")
			return found, true, err
		},
		"watch": func() (found []string, all bool, err error) { return kv.watch(ctx, "key.>") },
		"walk":  func() (found []string, all bool, err error) { return kv.walk(ctx, "key.>", math.MaxInt) },
	}
	for way, list := range ways {
		for range 50 {
			got, all, err := list()
			slices.Sort(got)
			if err != nil || all && !slices.Equal(got, want) || !all && way != "watch" {
				t.Errorf("%s: %q, %t, %v; want %q", way, got, all, err, want)
				break
			}
		}
	}
	end()
	changes.Wait()

	for i := range 2 * fewKeys { // more than are walked
		want = append(want, "key.n"+strconv.Itoa(i))
		if _, err := kv.Create(ctx, want[len(want)-1], nil); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	for way, list := range ways {
		got, all, err := list()
		if slices.Sort(got); err != nil || !all || !slices.Equal(got, want) {
			t.Errorf("%s, many: %q, %t, %v; want %q", way, got, all, err, want)
		}
	}
}
