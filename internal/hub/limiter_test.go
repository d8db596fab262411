package hub

import (
	"net/http"
	"net/netip"
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
