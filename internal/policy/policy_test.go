package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postern.dev/postern/internal/wire"
)

func target(t interface{ Fatalf(string, ...any) }, s string) wire.Target {
	out, err := wire.ParseTarget(s)
	if err != nil {
		t.Fatalf("ParseTarget(%q): %v", s, err)
	}
	return out
}

func rules(t interface{ Fatalf(string, ...any) }, texts ...string) []Rule {
	var out []Rule
	for _, s := range texts {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatalf("ParseRule(%q): %v", s, err)
		}
		out = append(out, r)
	}
	return out
}

func TestCheck(t *testing.T) {
	t.Parallel()
	api := &KubernetesAPI{Host: "10.96.0.1", Port: 6443}
	for _, c := range []struct {
		rules  string
		target string
		kube   *KubernetesAPI
		want   Decision
		reason string
	}{
		{"", "tcp:db:5432", nil, Decision{Missing: "tcp:db:5432"}, "no rule allows tcp:db:5432"},
		{"tcp:db:5432", "tcp:db:5432", nil, Decision{Allowed: true, Rule: "tcp:db:5432"}, ""},
		{"tcp:db:5432", "tcp:db:5433", nil, Decision{Missing: "tcp:db:5433"}, "no rule"},
		{"tcp:db:5000-5999", "tcp:db:5999", nil, Decision{Allowed: true, Rule: "tcp:db:5000-5999"}, ""},
		{"tcp:*.b:80", "tcp:a.b:80", nil, Decision{Allowed: true, Rule: "tcp:*.b:80"}, ""},
		{"tcp:*.b:80", "tcp:x.a.b:80", nil, Decision{Allowed: true, Rule: "tcp:*.b:80"}, ""},
		{"tcp:*.b:80", "tcp:b:80", nil, Decision{Missing: "tcp:b:80"}, "no rule"},
		{"tcp:*.b:80", "tcp:ab:80", nil, Decision{Missing: "tcp:ab:80"}, "no rule"},
		{"tcp:*:80", "tcp:x:80", nil, Decision{Allowed: true, Rule: "tcp:*:80"}, ""},
		{"tcp:*:80", "tcp:8.8.8.8:80", nil, Decision{Allowed: true, Rule: "tcp:*:80"}, ""},
		{"tcp:*:*", "tcp:127.0.0.1:80", nil, Decision{Missing: "tcp:127.0.0.1:80"}, "a loopback address"},
		{"tcp:10.0.0.0/8:80", "tcp:10.2.3.4:80", nil, Decision{Allowed: true, Rule: "tcp:10.0.0.0/8:80"}, ""},
		{"tcp:10.0.0.0/8:80", "tcp:11.2.3.4:80", nil, Decision{Missing: "tcp:11.2.3.4:80"}, "no rule"},
		{"tcp:10.0.0.0/8:80", "tcp:db:80", nil, Decision{Allowed: true, Rule: "tcp:10.0.0.0/8:80", NeedsAddress: true}, ""},
		{"tcp:10.0.0.0/8:80", "tcp:db:81", nil, Decision{Missing: "tcp:db:81"}, "no rule"},
		{"tcp:10.0.0.0/8:80,tcp:db:80", "tcp:db:80", nil, Decision{Allowed: true, Rule: "tcp:db:80"}, ""},
		{"", "kubernetes", api, Decision{Missing: "kubernetes"}, "no rule allows kubernetes"},
		{"tcp:*:*", "kubernetes", api, Decision{Missing: "kubernetes"}, "no rule allows kubernetes"},
		{"tcp:*:*,kubernetes", "gateway", api, Decision{Hint: "start the agent with --gateway"}, "has not switched the gateway on"},
		{"kubernetes", "kubernetes", nil, Decision{}, "does not run in a Kubernetes pod"},
		{"kubernetes", "kubernetes", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:kubernetes.default.svc.cluster.local:443", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:kubernetes.default.svc:6443", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:kubernetes.default:443", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:kubernetes:443", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:kubernetes:80", api, Decision{Missing: "tcp:kubernetes:80"}, "no rule"},
		{"kubernetes", "tcp:kubernetes:443", nil, Decision{Missing: "tcp:kubernetes:443"}, "no rule"},
		{"tcp:x:1", "tcp:kubernetes:443", api, Decision{Missing: "kubernetes"}, "no rule"},
		{"kubernetes", "tcp:10.96.0.1:6443", api, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:10.96.0.1:443", api, Decision{Missing: "tcp:10.96.0.1:443"}, "no rule"},
		{"kubernetes", "tcp:10.96.0.2:6443", api, Decision{Missing: "tcp:10.96.0.2:6443"}, "no rule"},
		{"kubernetes", "tcp:api.example:6443", &KubernetesAPI{"api.example", 6443}, Decision{Allowed: true, Rule: "kubernetes", Kubernetes: true}, ""},
		{"kubernetes", "tcp:api.example:443", &KubernetesAPI{"api.example", 6443}, Decision{Missing: "tcp:api.example:443"}, "no rule"},
	} {
		var list []string
		if c.rules != "" {
			list = strings.Split(c.rules, ",")
		}
		got := New(rules(t, list...), c.kube).Check(target(t, c.target))
		if !strings.Contains(got.Reason, c.reason) || (got.Reason == "") != got.Allowed {
			t.Errorf("%s on [%s]: reason %q, want %q in it", c.target, c.rules, got.Reason, c.reason)
		}
		got.Reason = ""
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s on [%s]: %s", c.target, c.rules, diff)
		}
	}
}

func TestCheckAddr(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rules, target, addr string
		allowed             bool
		reason              string
	}{
		{"tcp:db:80", "tcp:db:80", "10.0.0.1", true, ""},
		{"tcp:db:80", "tcp:db:80", "2001:db8::1", true, ""},
		{"tcp:db:80", "tcp:other:80", "10.0.0.1", false, "no rule allows tcp:other:80 nor its address"},
		{"tcp:10.0.0.0/8:80", "tcp:db:80", "10.0.0.1", true, ""},
		{"tcp:10.0.0.0/8:80", "tcp:db:80", "::ffff:10.0.0.1", true, ""},
		{"tcp:10.0.0.0/8:80", "tcp:db:80", "192.168.0.1", false, "no rule"},
		{"tcp:10.0.0.0/8:80", "tcp:db:80", "64:ff9b::10.0.0.1", false, "no rule"},
		{"tcp:db:80", "tcp:db:80", "64:ff9b::10.0.0.1", true, ""},
		// What a name may not lead to.
		{"tcp:db:80", "tcp:db:80", "127.0.0.1", false, "loopback address, which rule tcp:db:80 does not allow"},
		{"tcp:*:*", "tcp:db:80", "127.8.9.10", false, "loopback"},
		{"tcp:*.b:*", "tcp:a.b:80", "::1", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "::ffff:127.0.0.1", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "64:ff9b::127.0.0.1", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "64:ff9b:1::1", false, "locally translated"},
		{"tcp:db:80", "tcp:db:80", "::127.0.0.1", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "::ffff:0:127.0.0.1", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "2002:7f00:1::", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "2001:0:0:0:0:0:80ff:fffe", false, "loopback"},
		{"tcp:db:80", "tcp:db:80", "0.0.0.0", false, "unspecified"},
		{"tcp:db:80", "tcp:db:80", "0.1.2.3", false, "unspecified"},
		{"tcp:db:80", "tcp:db:80", "::", false, "unspecified"},
		{"tcp:db:80", "tcp:db:80", "169.254.169.254", false, "metadata"},
		{"tcp:db:80", "tcp:db:80", "64:ff9b::a9fe:a9fe", false, "metadata"},
		{"tcp:db:80", "tcp:db:80", "2002:a9fe:a9fe::", false, "metadata"},
		{"tcp:db:80", "tcp:db:80", "fd00:ec2::254", false, "metadata"},
		{"tcp:db:80", "tcp:db:80", "100.100.100.200", false, "metadata"},
		{"tcp:db:80", "tcp:db:80", "169.254.1.1", false, "link-local"},
		{"tcp:db:80", "tcp:db:80", "fe80::1", false, "link-local"},
		{"tcp:db:80", "tcp:db:80", "fe80::1%eth0", false, "not an address to connect to"},
		{"tcp:db:80", "tcp:db:80", "224.0.0.1", false, "multicast"},
		{"tcp:db:80", "tcp:db:80", "ff02::1", false, "multicast"},
		{"tcp:db:80", "tcp:db:80", "255.255.255.255", false, "broadcast"},
		// A network that is wider than the kind of address does not name it.
		{"tcp:0.0.0.0/0:*", "tcp:db:80", "127.0.0.1", false, "loopback"},
		{"tcp:0.0.0.0/0:*", "tcp:db:80", "100.100.100.200", false, "metadata"},
		{"tcp:100.64.0.0/10:*", "tcp:db:80", "100.100.100.200", false, "metadata"},
		{"tcp:[::/0]:*", "tcp:db:80", "::1", false, "loopback"},
		{"tcp:[fd00::/8]:*", "tcp:db:80", "fd00:ec2::254", false, "metadata"},
		{"tcp:[64:ff9b::/96]:*", "tcp:db:80", "64:ff9b::127.0.0.1", false, "loopback"},
		{"tcp:0.0.0.0/0:*", "tcp:db:80", "10.0.0.1", true, ""},
		{"tcp:[fd00::/8]:*", "tcp:db:80", "fd00::1", true, ""},
		// One that does name it.
		{"tcp:127.0.0.0/8:*", "tcp:db:80", "127.0.0.1", true, ""},
		{"tcp:127.0.0.1:80", "tcp:db:80", "127.0.0.1", true, ""},
		{"tcp:127.0.0.1:80", "tcp:127.0.0.1:80", "127.0.0.1", true, ""},
		{"tcp:127.0.0.1:80", "tcp:db:81", "127.0.0.1", false, "loopback"},
		{"tcp:127.0.0.1:80", "tcp:db:80", "127.0.0.2", false, "loopback"},
		{"tcp:127.0.0.1:80", "tcp:db:80", "64:ff9b::127.0.0.1", false, "loopback"},
		{"tcp:[64:ff9b::7f00:1]:80", "tcp:db:80", "64:ff9b::127.0.0.1", true, ""},
		{"tcp:169.254.0.0/16:80", "tcp:db:80", "169.254.169.254", true, ""},
		{"tcp:169.254.169.254:80", "tcp:169.254.169.254:80", "169.254.169.254", true, ""},
		{"tcp:[fd00:ec2::254]:80", "tcp:db:80", "fd00:ec2::254", true, ""},
		{"tcp:[::1]:80", "tcp:localhost:80", "::1", true, ""},
		// localhost by its literal name.
		{"tcp:localhost:80", "tcp:localhost:80", "127.0.0.1", true, ""},
		{"tcp:localhost:80", "tcp:localhost:80", "::1", true, ""},
		{"tcp:localhost:80", "tcp:localhost:80", "169.254.169.254", false, "metadata"},
		{"tcp:localhost:80", "tcp:localhost:80", "64:ff9b::127.0.0.1", false, "loopback"},
		{"tcp:localhost:80", "tcp:db:80", "127.0.0.1", false, "loopback"},
		{"tcp:*:80", "tcp:localhost:80", "127.0.0.1", false, "loopback"},
		{"tcp:*.localhost:80", "tcp:x.localhost:80", "127.0.0.1", false, "loopback"},
	} {
		p := New(rules(t, c.rules), nil)
		tgt := target(t, c.target)
		d := p.CheckAddr(tgt, netip.AddrPortFrom(netip.MustParseAddr(c.addr), tgt.Port))
		if d.Allowed != c.allowed || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s at %s on [%s]: %+v, want %v, %q", c.target, c.addr, c.rules, d, c.allowed, c.reason)
		}
	}
}

func TestCheckAddrKubernetes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		api     KubernetesAPI
		target  string
		addr    string
		allowed bool
	}{
		{KubernetesAPI{"10.96.0.1", 443}, "kubernetes", "10.96.0.1:443", true},
		{KubernetesAPI{"::ffff:10.96.0.1", 443}, "kubernetes", "10.96.0.1:443", true},
		{KubernetesAPI{"127.0.0.1", 6443}, "kubernetes", "127.0.0.1:6443", true},
		{KubernetesAPI{"10.96.0.1", 443}, "kubernetes", "10.96.0.2:443", false},
		{KubernetesAPI{"10.96.0.1", 443}, "kubernetes", "10.96.0.1:80", false},
		{KubernetesAPI{"10.96.0.1", 443}, "tcp:kubernetes.default:443", "10.96.0.1:443", true},
		{KubernetesAPI{"10.96.0.1", 443}, "tcp:kubernetes.default:443", "10.96.0.9:443", false},
		{KubernetesAPI{"api.example", 443}, "kubernetes", "203.0.113.1:443", true},
		{KubernetesAPI{"api.example", 443}, "kubernetes", "127.0.0.1:443", false},
		{KubernetesAPI{"localhost", 443}, "kubernetes", "127.0.0.1:443", true},
		{KubernetesAPI{"api.example", 443}, "tcp:db:443", "203.0.113.1:443", false},
	} {
		p := New(rules(t, "kubernetes"), &c.api)
		d := p.CheckAddr(target(t, c.target), netip.MustParseAddrPort(c.addr))
		if d.Allowed != c.allowed || d.Kubernetes != c.allowed || (d.Reason == "") != c.allowed {
			t.Errorf("%s at %s with %v: %+v, want %v", c.target, c.addr, c.api, d, c.allowed)
		}
	}
}

func TestNilPolicyDenies(t *testing.T) {
	t.Parallel()
	var p *Policy
	if d := p.Check(target(t, "tcp:x:1")); d.Allowed || d.Reason == "" {
		t.Errorf("Check: %+v", d)
	}
	if d := p.CheckAddr(target(t, "tcp:x:1"), netip.MustParseAddrPort("10.0.0.1:1")); d.Allowed || d.Reason == "" {
		t.Errorf("CheckAddr: %+v", d)
	}
	if p.Rules() != nil || p.Kubernetes() != nil {
		t.Error("a nil policy has rules")
	}
	if d := New(rules(t, "tcp:*:*"), nil).Check(wire.Target{}); d.Allowed {
		t.Errorf("the zero target: %+v", d)
	}
}

func TestKubernetesFromEnv(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host, port string
		want       *KubernetesAPI
		fails      bool
	}{
		{"", "", nil, false},
		{"10.96.0.1", "", &KubernetesAPI{"10.96.0.1", 443}, false},
		{"FD00::1", "6443", &KubernetesAPI{"fd00::1", 6443}, false},
		{"10.96.0.1", "x", nil, true},
		{"a b", "443", nil, true},
	} {
		got, err := KubernetesFromEnv(func(k string) string {
			return map[string]string{"KUBERNETES_SERVICE_HOST": c.host, "KUBERNETES_SERVICE_PORT": c.port}[k]
		})
		if diff := cmp.Diff(c.want, got); diff != "" || (err != nil) != c.fails {
			t.Errorf("%q %q: %s, %v", c.host, c.port, diff, err)
		}
	}
}

// TestProperties checks what has to hold for any rules, target and address.
func TestProperties(t *testing.T) {
	t.Parallel()
	classify := newClassifier()
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(anyRule(), 0, 5).Draw(t, "rules")
		host := rapid.OneOf(rapid.SampledFrom([]string{"a.b", "x.a.b", "localhost", "kubernetes", "other"}),
			rapid.Map(anyAddr(), netip.Addr.String)).Draw(t, "host")
		tgt, err := wire.TCP(host, rapid.SampledFrom([]uint16{80, 88, 443, 9}).Draw(t, "port"))
		if err != nil {
			t.Skip()
		}
		addr := netip.AddrPortFrom(anyAddr().Draw(t, "addr"), tgt.Port)
		api := &KubernetesAPI{"10.96.0.1", 443}
		p := New(rules(t, texts...), api)
		byName, byAddr := p.Check(tgt), p.CheckAddr(tgt, addr)

		for _, d := range []Decision{byName, byAddr} {
			if d.Allowed != (d.Rule != "") || d.Allowed == (d.Reason != "") {
				t.Fatalf("a decision gives the rule or the reason: %+v", d)
			}
		}
		// Rules only ever add.
		more := New(rules(t, append(texts, anyRule().Draw(t, "more"))...), api)
		if byName.Allowed && !more.Check(tgt).Allowed || byAddr.Allowed && !more.CheckAddr(tgt, addr).Allowed {
			t.Fatal("one more rule takes something away")
		}
		// The order of rules does not matter.
		var turned []string
		for _, s := range texts {
			turned = append([]string{s}, turned...)
		}
		q := New(rules(t, turned...), api)
		if q.Check(tgt).Allowed != byName.Allowed || q.CheckAddr(tgt, addr).Allowed != byAddr.Allowed {
			t.Fatal("the order of the rules matters")
		}
		// An IPv4-mapped address is the IPv4 address.
		if addr.Addr().Is4() {
			mapped := netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port())
			if diff := cmp.Diff(byAddr, p.CheckAddr(tgt, mapped)); diff != "" {
				t.Fatalf("an IPv4-mapped address is treated differently: %s", diff)
			}
		}
		// The rule that a refusal suggests does help.
		if d := byAddr; !d.Allowed && d.Missing != "" {
			if fixed := New(rules(t, append(texts, d.Missing)...), api).CheckAddr(tgt, addr); !fixed.Allowed && !fixed.NeedsAddress && d.Missing != "kubernetes" {
				t.Fatalf("rule %s does not help: %+v", d.Missing, fixed)
			}
		}
		// A special address takes a rule for addresses, or localhost by its name.
		if byAddr.Allowed && classify.special(addr.Addr().Unmap()) != nil {
			r := rules(t, byAddr.Rule)[0]
			if r.kind != ruleAddress && (r.host != "localhost" || tgt.Host != "localhost") {
				t.Fatalf("%s allows %s", byAddr.Rule, addr)
			}
		}
	})
}
