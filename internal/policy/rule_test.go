package policy

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/wire"
)

func TestParseRule(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"kubernetes":                        "kubernetes",
		"tcp:db.internal:5432":              "tcp:db.internal:5432",
		"tcp:DB.Internal.:5432":             "tcp:db.internal:5432",
		"tcp:*:*":                           "tcp:*:*",
		"tcp:*:443":                         "tcp:*:443",
		"tcp:*.svc.cluster.local:443":       "tcp:*.svc.cluster.local:443",
		"tcp:*.SVC.cluster.local.:1-65535":  "tcp:*.svc.cluster.local:*",
		"tcp:10.1.2.3:80-80":                "tcp:10.1.2.3:80",
		"tcp:10.0.0.0/8:5000-5999":          "tcp:10.0.0.0/8:5000-5999",
		"tcp:10.1.2.3/32:80":                "tcp:10.1.2.3/32:80",
		"tcp:[2001:db8::/32]:*":             "tcp:[2001:db8::/32]:*",
		"tcp:[2001:DB8::0:1]:22":            "tcp:[2001:db8::1]:22",
		"tcp:[::ffff:10.0.0.1]:22":          "tcp:10.0.0.1:22",
		"tcp:[::ffff:10.0.0.0/104]:22":      "tcp:10.0.0.0/8:22",
		"tcp:under_score.x-y:1":             "tcp:under_score.x-y:1",
		"tcp:localhost:65535":               "tcp:localhost:65535",
		"tcp:0.0.0.0/0:*":                   "tcp:0.0.0.0/0:*",
		"tcp:kubernetes.default.svc:443":    "tcp:kubernetes.default.svc:443",
		"tcp:xn--bcher-kva.example:1024-25": "",
	} {
		r, err := ParseRule(in)
		if want == "" {
			if err == nil {
				t.Errorf("ParseRule(%q) = %s, want an error", in, r)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("ParseRule(%q) = %s, %v; want %s", in, r, err, want)
		}
	}
}

func TestParseRuleErrors(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "want kubernetes or tcp:HOST:PORT",
		"Kubernetes":              "want kubernetes or tcp:HOST:PORT",
		"udp:x:1":                 "want kubernetes or tcp:HOST:PORT",
		"db.internal:5432":        "want kubernetes or tcp:HOST:PORT",
		"tcp:db.internal":         "port is missing",
		"tcp::80":                 "host is missing",
		"tcp:x:":                  `port ""`,
		"tcp:x:0":                 `port "0"`,
		"tcp:x:+80":               `port "+80"`,
		"tcp:x:65536":             `port "65536"`,
		"tcp:x:9-8":               "ends before it begins",
		"tcp:x:9-":                `port ""`,
		"tcp:x:http":              `port "http"`,
		"tcp:x y:80":              "is not allowed in a name",
		"tcp:a..b:80":             "each label",
		"tcp:db*.x:80":            "wildcard",
		"tcp:*.*.x:80":            "is not allowed in a name",
		"tcp:x.*:80":              "wildcard",
		"tcp:*.10.0.0.1:80":       "write a network",
		"tcp:2001:db8::1:80":      "brackets",
		"tcp:[2001:db8::1:80":     "closing bracket",
		"tcp:[db.internal]:80":    "brackets are for IPv6",
		"tcp:[fe80::1%eth0]:80":   "zones",
		"tcp:[fe80::%eth0/10]:80": "not a network",
		"tcp:10.0.0.1/8:80":       "did you mean 10.0.0.0/8 or 10.0.0.1?",
		"tcp:10.0.0.0/33:80":      "not a network",
		"tcp:10.0.0/8:80":         "not a network",
		"tcp:[::ffff:0:0/90]:80":  "write the IPv4 network",
		"tcp:127.1:80":            "neither a name nor an IP address",
		"tcp:x:80\x00":            "port",
		"tcp:x\x00:80":            "is not allowed in a name",
		"tcp:" + strings.Repeat("a.", 200) + "b:1": "at most 300",
	} {
		r, err := ParseRule(in)
		switch {
		case err == nil:
			t.Errorf("ParseRule(%q) = %s, want an error", in, r)
		case !strings.Contains(err.Error(), want):
			t.Errorf("ParseRule(%q): %v, want %q in it", in, err, want)
		case len(in) <= maxRuleLen && !strings.Contains(err.Error(), "example"):
			t.Errorf("ParseRule(%q): %v gives no example", in, err)
		}
	}
}

func TestZeroRuleAllowsNothing(t *testing.T) {
	t.Parallel()
	if d := New([]Rule{{}}, nil).Check(target(t, "tcp:x:80")); d.Allowed {
		t.Errorf("the zero rule allows: %+v", d)
	}
}

// FuzzParseRule checks that a rule that parses has one canonical text.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"kubernetes", "tcp:*:*", "tcp:*.a.b:1-2", "tcp:10.0.0.0/8:5000-5999", "tcp:[2001:db8::/32]:*", "tcp:[::ffff:1.2.3.4]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("%q reads as %s, and that as %s, %v", s, r, again, err)
		}
	})
}

// anyRule generates the texts of rules, from few enough parts that targets meet them.
func anyRule() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.Just("kubernetes"),
		rapid.Custom(func(t *rapid.T) string {
			host := rapid.SampledFrom([]string{"*", "a.b", "*.b", "*.a.b", "localhost", "10.0.0.0/8", "10.1.0.1", "127.0.0.0/8",
				"0.0.0.0/0", "[::/0]", "[::1]", "[2001:db8::/32]", "169.254.169.254", "[fe80::/10]"}).Draw(t, "host")
			port := rapid.SampledFrom([]string{"*", "80", "80-90", "443", "85-95"}).Draw(t, "port")
			return "tcp:" + host + ":" + port
		}),
	)
}

func anyAddr() *rapid.Generator[netip.Addr] {
	return rapid.OneOf(
		rapid.Map(rapid.SampledFrom([]string{"10.1.0.1", "10.2.3.4", "127.0.0.1", "::1", "2001:db8::5", "169.254.169.254", "fe80::1",
			"64:ff9b::7f00:1", "::ffff:127.0.0.1", "0.0.0.0", "::", "8.8.8.8"}), netip.MustParseAddr),
		rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
		}),
		rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6")))
		}),
	)
}

// TestGatewayByNameOnly: no rule but its own covers the gateway.
func TestGatewayByNameOnly(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"kubernetes", "tcp:*:*", "tcp:0.0.0.0/0:*", "tcp:[::/0]:*", "tcp:gateway:443"} {
		if yes, byAddress := MustRule(s).Covers(wire.Gateway()); yes || byAddress {
			t.Errorf("%s covers the gateway", s)
		}
	}
	r := MustRule("gateway")
	for _, s := range []string{"kubernetes", "tcp:gateway:443"} {
		target, err := wire.ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		if yes, byAddress := r.Covers(target); yes || byAddress {
			t.Errorf("gateway covers %s", s)
		}
	}
	if yes, _ := r.Covers(wire.Gateway()); !yes || r.String() != "gateway" {
		t.Errorf("%s does not cover itself", r)
	}
}
