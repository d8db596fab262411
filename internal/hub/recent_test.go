package hub

import (
	"fmt"
	"testing"
	"time"

	"postern.dev/postern/internal/identity"
)

// TestRecentCallers: a caller is remembered for a while, for no longer than its session
// lasts, under its own token, and there are never too many.
func TestRecentCallers(t *testing.T) {
	t.Parallel()
	r, now := newRecentCallers(), time.Unix(1_800_000_000, 0)
	robot := Caller{Principal: identity.Principal{Kind: identity.KindRobot, Name: "one"}, Item: "1"}
	person := Caller{Principal: identity.Principal{Kind: identity.KindUser, Name: "ann"}, Item: "2", Expires: now.Add(time.Second)}
	r.put(r.digest("robot's"), robot, now)
	r.put(r.digest("ann's"), person, now)
	for _, tt := range []struct {
		token string
		at    time.Duration
		want  string
	}{
		{"robot's", 0, "1"},
		{"robot's", recentFor - 1, "1"},
		{"robot's", recentFor, ""},
		{"ann's", time.Second - 1, "2"},
		{"ann's", time.Second, ""},
		{"robots", 0, ""},
		{"", 0, ""},
	} {
		c, ok := r.get(r.digest(tt.token), now.Add(tt.at))
		if ok != (tt.want != "") || ok && c.Item != tt.want {
			t.Errorf("%q after %s: %q, %t; want %q", tt.token, tt.at, c.Item, ok, tt.want)
		}
	}
	for i := range maxRecent + 10 {
		r.put(r.digest(fmt.Sprint(i)), robot, now)
	}
	if n := len(r.all); n > maxRecent {
		t.Errorf("%d callers are remembered", n)
	}
	later := now.Add(recentFor)
	r.put(r.digest("late"), robot, later)
	if _, ok := r.get(r.digest("late"), later); !ok || len(r.all) != 1 {
		t.Errorf("after all have expired: %t, %d are remembered", ok, len(r.all))
	}
}
