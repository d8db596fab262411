package hub

import (
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

func TestFailureLimiterIsBounded(t *testing.T) {
	l, now := newFailureLimiter(), time.Unix(1e9, 0)
	noisy := netip.MustParseAddr("192.0.2.1")
	for range failureBurst {
		if !l.failed(noisy, now) {
			t.Fatal("limited within the burst")
		}
	}
	for i := range 3 * failureSources {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if !l.failed(addr, now) {
			t.Fatalf("%s is limited at its first failure", addr)
		}
		if i%1000 == 0 && l.failed(noisy, now) {
			t.Fatal("the noisy one is forgotten")
		}
	}
	if len(l.sources) != failureSources || l.order.Len() != failureSources {
		t.Errorf("%d and %d sources are kept", len(l.sources), l.order.Len())
	}
	if l.failed(noisy, now.Add(failureEvery-time.Second)) || !l.failed(noisy, now.Add(failureEvery)) {
		t.Error("the rate is another")
	}
}

func TestSources(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:1234":          "192.0.2.1/32",
		"[::ffff:192.0.2.1]:1234": "192.0.2.1/32",
		"[2001:db8::1]:1":         "2001:db8::/64",
		"[2001:db8::ffff:1]:1":    "2001:db8::/64",
		"[fe80::1%eth0]:1":        "fe80::/64",
		"@":                       "invalid Prefix",
		"":                        "invalid Prefix",
	} {
		if got := sourcePrefix(sourceOf(&http.Request{RemoteAddr: in})).String(); got != want {
			t.Errorf("%q is %s, want %s", in, got, want)
		}
	}
}

// TestUsedAssertionsAreShared lets the keys of one organization use up what it
// has. Those of another are taken as ever, and all is forgotten in time.
func TestUsedAssertionsAreShared(t *testing.T) {
	u, now := newUsedAssertions(), time.Unix(1e9, 0)
	until := now.Add(5 * time.Minute)
	taken := 0
	for key := range 2 * maxUsedPerOrg / maxUsedPerKey {
		for id := range maxUsedPerKey + 1 {
			if u.use("evil", strconv.Itoa(key), strconv.Itoa(id), until, now) == nil {
				taken++
			}
		}
	}
	if taken != maxUsedPerOrg {
		t.Errorf("%d assertions of one organization are remembered, want %d", taken, maxUsedPerOrg)
	}
	if err := u.use("acme", "k", "1", until, now); err != nil {
		t.Errorf("another organization: %v", err)
	}
	if err := u.use("acme", "k", "1", until, now); !errors.Is(err, errUsed) {
		t.Errorf("used again: %v", err)
	}
	later := until.Add(time.Second)
	if err := u.use("evil", "0", "1", later.Add(time.Minute), later); err != nil {
		t.Errorf("in time: %v", err)
	}
	if len(u.until) != 1 || len(u.byKey) != 1 || len(u.byOrg) != 1 {
		t.Errorf("%d assertions, %d keys, %d organizations are remembered", len(u.until), len(u.byKey), len(u.byOrg))
	}
}
