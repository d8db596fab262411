package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// entries reads "allow RULE", "deny RULE" and "allow RULE from proxy:A, proxy:B".
func entries(t interface{ Fatalf(string, ...any) }, texts ...string) []Entry {
	var out []Entry
	for i, s := range texts {
		verb, rest, _ := strings.Cut(s, " ")
		rule, from, limited := strings.Cut(rest, " from ")
		e := Entry{Rule: rules(t, rule)[0], Deny: verb == "deny", Origin: string(rune('a' + i))}
		if limited {
			for text := range strings.SplitSeq(from, ", ") {
				who, err := ParseWhom(text)
				if err != nil {
					t.Fatalf("ParseWhom(%q): %v", text, err)
				}
				e.From = append(e.From, who)
			}
		}
		if e.String() != s {
			t.Fatalf("%q reads as %q", s, e)
		}
		out = append(out, e)
	}
	return out
}

func TestDenyWins(t *testing.T) {
	t.Parallel()
	pod := &KubernetesAPI{Host: "10.96.0.1", Port: 6443}
	named := &KubernetesAPI{Host: "api.example", Port: 6443}
	for _, c := range []struct {
		deny, target, addr string
		kube               *KubernetesAPI
		denied             bool
	}{
		{"tcp:db:5432", "tcp:db:5432", "", nil, true},
		{"tcp:db:5432", "tcp:db:5433", "10.0.0.1", nil, false},
		{"tcp:db:5000-5999", "tcp:db:5432", "", nil, true},
		{"tcp:*.b:*", "tcp:x.y.b:1", "", nil, true},
		{"tcp:*.b:*", "tcp:b:1", "10.0.0.1", nil, false},
		{"tcp:*:25", "tcp:mail:25", "", nil, true},
		{"tcp:*:25", "tcp:10.0.0.1:25", "", nil, true},
		{"tcp:*:25", "tcp:mail:26", "10.0.0.1", nil, false},
		{"tcp:10.0.0.0/8:*", "tcp:db:5432", "10.9.9.9", nil, true},
		{"tcp:10.0.0.0/8:*", "tcp:db:5432", "11.9.9.9", nil, false},
		{"tcp:10.0.0.0/8:*", "tcp:10.1.1.1:80", "", nil, true},
		{"tcp:10.0.0.0/8:80", "tcp:10.1.1.1:81", "10.1.1.1", nil, false},
		{"tcp:10.1.1.1:*", "tcp:db:80", "10.1.1.1", nil, true},
		// The gateway leads to the API server.
		{"gateway", "gateway", "", pod, true},
		{"gateway", "kubernetes", "10.96.0.1", pod, false},
		{"kubernetes", "gateway", "", pod, true},
		{"tcp:10.96.0.0/16:*", "gateway", "", pod, true},
		{"tcp:*:443", "gateway", "", pod, false},
		// An IPv6 address that leads to a denied IPv4 address is denied too.
		{"tcp:10.0.0.0/8:*", "tcp:db:80", "64:ff9b::10.1.1.1", nil, true},
		{"tcp:10.0.0.0/8:*", "tcp:db:80", "2002:a01:101::1", nil, true},
		{"tcp:10.0.0.0/8:*", "tcp:db:80", "::ffff:10.1.1.1", nil, true},
		{"tcp:[2001:db8::/32]:*", "tcp:db:80", "2001:db8::1", nil, true},
		// A rule for a name says nothing about the addresses behind it.
		{"tcp:db:*", "tcp:10.1.1.1:80", "10.1.1.1", nil, false},
		// The API server, by each of its names and by its address.
		{"kubernetes", "kubernetes", "", pod, true},
		{"kubernetes", "kubernetes", "", nil, true},
		{"kubernetes", "tcp:kubernetes.default.svc:443", "", pod, true},
		{"kubernetes", "tcp:10.96.0.1:6443", "", pod, true},
		{"kubernetes", "tcp:other:6443", "10.96.0.1", pod, true},
		{"kubernetes", "tcp:10.96.0.1:80", "10.96.0.1", pod, false},
		{"kubernetes", "tcp:api.example:6443", "", named, true},
		{"tcp:10.96.0.0/16:*", "kubernetes", "", pod, true},
		{"tcp:*:6443", "kubernetes", "", pod, true},
		{"tcp:*:6443", "tcp:kubernetes:443", "", pod, true},
		{"tcp:api.example:*", "kubernetes", "", named, true},
		{"tcp:10.0.0.0/8:*", "kubernetes", "10.1.1.1", named, true},
		{"tcp:other:*", "kubernetes", "10.96.0.1", pod, false},
	} {
		allow := []string{"allow gateway", "allow tcp:*:*", "allow tcp:0.0.0.0/0:*", "allow tcp:[::/0]:*", "allow kubernetes"}
		for _, list := range [][]string{append(slices.Clone(allow), "deny "+c.deny), append([]string{"deny " + c.deny}, allow...)} {
			p := NewOf(entries(t, list...), c.kube)
			tgt := target(t, c.target)
			got := p.Check(tgt)
			if c.addr != "" && got.Allowed {
				port := tgt.Port
				if got.Kubernetes || port == 0 {
					port = c.kube.Port
				}
				got = p.CheckAddr(tgt, netip.AddrPortFrom(netip.MustParseAddr(c.addr), port))
			}
			if got.Denied != c.denied || got.Allowed == c.denied {
				t.Errorf("deny %s, %s at %q: %+v", c.deny, c.target, c.addr, got)
			}
			if c.denied && (got.Rule != c.deny || got.Origin == "" || got.Missing != "" || !strings.Contains(got.Reason, "deny rule "+c.deny)) {
				t.Errorf("deny %s, %s: %+v", c.deny, c.target, got)
			}
		}
	}
}

func TestFor(t *testing.T) {
	t.Parallel()
	p := NewOf(entries(t,
		"allow tcp:all:1",
		"allow tcp:some:1 from proxy:a, proxy:b",
		"allow tcp:every:1 from proxy:*",
		"deny tcp:every:1 from proxy:b",
		"deny tcp:all:1 from proxy:c",
	), nil)
	for who, want := range map[string]string{"a": "all some every", "b": "all some", "c": "every", "": "all every"} {
		var got []string
		for _, host := range []string{"all", "some", "every"} {
			if p.For(Asker{Proxy: who}).Check(wire.Target{Kind: wire.KindTCP, Host: host, Port: 1}).Allowed {
				got = append(got, host)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q may reach %v; want %s", who, got, want)
		}
	}
	if d := p.For(Asker{Proxy: "b"}).Check(target(t, "tcp:some:1")); d.Origin != "b" {
		t.Errorf("origin %q; want b", d.Origin)
	}
	if (*Policy)(nil).For(Asker{}) != nil {
		t.Error("nil is not nil for somebody")
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	a := NewOf(entries(t, "allow tcp:a:1", "deny tcp:b:1"), nil)
	b := NewOf(entries(t, "deny tcp:b:1", "allow tcp:a:1"), nil)
	c := NewOf(entries(t, "allow tcp:a:1", "allow tcp:b:1"), nil)
	d := NewOf(entries(t, "allow tcp:a:1", "deny tcp:b:1 from proxy:x"), nil)
	if a.Version() != b.Version() || a.Version() == c.Version() || a.Version() == d.Version() || len(a.Version()) != 12 {
		t.Errorf("versions %s %s %s %s", a.Version(), b.Version(), c.Version(), d.Version())
	}
}

func TestAssemble(t *testing.T) {
	t.Parallel()
	pod := &KubernetesAPI{Host: "10.96.0.1", Port: 443}
	file := entries(t, "allow tcp:f:1")
	for _, c := range []struct {
		s    Settings
		file []Entry
		kube *KubernetesAPI
		want string
	}{
		{Settings{}, nil, nil, ""},
		{Settings{}, nil, pod, "allow kubernetes"},
		{Settings{Deny: []string{"tcp:a:1"}}, nil, pod, "allow kubernetes; deny tcp:a:1"},
		{Settings{Allow: []string{"tcp:a:1"}}, nil, pod, "allow tcp:a:1"},
		{Settings{File: true}, nil, pod, ""},
		{Settings{Gateway: true}, nil, pod, "allow kubernetes; allow gateway"},
		{Settings{Gateway: true, File: true, Deny: []string{"gateway"}}, nil, nil, "allow gateway; deny gateway"},
		{Settings{File: true}, file, pod, "allow tcp:f:1"},
		{Settings{Allow: []string{"tcp:a:1"}, Deny: []string{"tcp:f:1"}, File: true}, file, nil, "allow tcp:a:1; allow tcp:f:1; deny tcp:f:1"},
	} {
		p, err := Assemble(c.s, c.file, c.kube)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range p.Entries() {
			got = append(got, e.String())
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%+v: %v; want %s", c.s, got, c.want)
		}
	}
	for _, s := range []Settings{{Allow: []string{"x"}}, {Allow: []string{"gateway"}}, {Deny: []string{"x"}}} {
		if _, err := Assemble(s, nil, nil); err == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}

// anyEntry makes entries for some of three proxies.
func anyEntry() *rapid.Generator[Entry] {
	return rapid.Custom(func(t *rapid.T) Entry {
		r, err := ParseRule(anyRule().Draw(t, "rule"))
		if err != nil {
			t.Fatal(err)
		}
		e := Entry{Rule: r, Deny: rapid.Bool().Draw(t, "deny")}
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "*"}), 0, 2, rapid.ID).Draw(t, "from") {
			e.From = append(e.From, Whom{identity.KindProxy, name})
		}
		return e
	})
}

// permits is the whole question: by name, and then by address.
func permits(p *Policy, who Asker, tgt wire.Target, a netip.AddrPort) bool {
	p = p.For(who)
	return p.Check(tgt).Allowed && p.CheckAddr(tgt, a).Allowed
}

// TestDenyProperties: an order never matters; one more deny rule never widens, and
// one more allow rule never brings back what is denied; what a deny rule would allow
// if it allowed is refused.
func TestDenyProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(anyEntry(), 0, 6).Draw(t, "entries")
		who := Asker{Proxy: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "who")}
		addr := anyAddr().Draw(t, "addr").Unmap()
		port := rapid.SampledFrom([]uint16{22, 80, 443, 5432}).Draw(t, "port")
		host := rapid.SampledFrom([]string{addr.String(), "a.b", "db", "x.example.com", "localhost"}).Draw(t, "host")
		tgt, err := wire.TCP(host, port)
		if err != nil {
			t.Skip(err)
		}
		kube := rapid.SampledFrom([]*KubernetesAPI{nil, {Host: addr.String(), Port: port}, {Host: "db", Port: port}}).Draw(t, "kube")
		ap := netip.AddrPortFrom(addr, port)
		before := permits(NewOf(list, kube), who, tgt, ap)
		if shuffled := rapid.Permutation(list).Draw(t, "order"); permits(NewOf(shuffled, kube), who, tgt, ap) != before {
			t.Fatal("the order matters")
		}
		extra := anyEntry().Draw(t, "extra")
		alone := extra
		alone.Deny = false
		after := permits(NewOf(append(slices.Clone(list), extra), kube), who, tgt, ap)
		switch {
		case extra.Deny && after && !before:
			t.Fatalf("%s widens", extra)
		case extra.Deny && after && permits(NewOf([]Entry{alone}, kube), who, tgt, ap):
			t.Fatalf("%s does not forbid what it covers", extra)
		case !extra.Deny && before && !after:
			t.Fatalf("%s narrows", extra)
		}
		// What the deny rules forbid by themselves is refused beside any others.
		deniers := NewOf(slices.DeleteFunc(slices.Clone(list), func(e Entry) bool { return !e.Deny }), kube).For(who)
		if (deniers.Check(tgt).Denied || deniers.CheckAddr(tgt, ap).Denied) && (before || after) {
			t.Fatal("what is denied is allowed")
		}
	})
}
