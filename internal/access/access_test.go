package access

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

func TestParseSelector(t *testing.T) {
	t.Parallel()
	office := Agent{ID: "office", Labels: map[string]string{"env": "prod", "team": "shop"}}
	for text, chosen := range map[string]bool{
		"*": true, "office": true, "plant": false, "env=prod": true, "env=test": false, "env=prod,team=shop": true,
		"env=prod,team=other": false, "none=x": false,
	} {
		s, err := ParseSelector(text)
		if err != nil || s.String() != text || s.Chooses(office) != chosen {
			t.Errorf("%q: reads as %q, chooses %v; %v", text, s, s.Chooses(office), err)
		}
	}
	for _, text := range []string{"", "**", "office*", "Office", "env=", "=prod", "env=prod,", "env=prod,env=test", "env=a b", "a=b=c", strings.Repeat("k", 64) + "=v"} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%q reads as %q", text, s)
		}
	}
	if (Selector{}).Chooses(office) {
		t.Error("the empty selector chooses something")
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := Grant{ID: "a", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Agent: Selector{All: true}, Targets: Everything()}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Grant){
		"no ID":        func(g *Grant) { g.ID = "" },
		"bad ID":       func(g *Grant) { g.ID = "A.b" },
		"nobody":       func(g *Grant) { g.To = policy.Whom{} },
		"no target":    func(g *Grant) { g.Targets = nil },
		"empty target": func(g *Grant) { g.Targets = []policy.Rule{{}} },
		"many targets": func(g *Grant) { g.Targets = slices.Repeat(Everything(), MaxTargets) },
		"long note":    func(g *Grant) { g.Note = strings.Repeat("x", MaxNote+1) },
		"far future":   func(g *Grant) { g.Expires = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		g := good
		change(&g)
		if g.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for _, g := range Defaults(time.Now()) {
		if err := g.Validate(); err != nil || g.To.Kind == identity.KindUser {
			t.Errorf("default %+v: %v", g, err)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, g := range append(Defaults(at), Grant{
		ID: "dba", To: policy.Whom{Kind: identity.KindGroup, Name: "Betrieb & Netz"}, Agent: Selector{Labels: map[string]string{"env": "prod"}},
		Targets: []policy.Rule{policy.MustRule("tcp:[2001:db8::]:1-9")}, Expires: at.Add(time.Hour), Created: at,
		By: identity.Principal{Kind: identity.KindAdmin, Name: "break-glass"}, Note: "x",
	}) {
		b, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		var back Grant
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if diff := cmp.Diff(fmt.Sprintf("%+v", g), fmt.Sprintf("%+v", back)); diff != "" {
			t.Errorf("%s: %s", b, diff)
		}
	}
}

// TestRefusalNamesTheCommand: the hint is a command that would allow what was asked
// for, whole and quoted, and tells nothing of other grants.
func TestRefusalNamesTheCommand(t *testing.T) {
	t.Parallel()
	now := time.Now()
	secret := Grant{ID: "secret", To: policy.Whom{Kind: identity.KindUser, Name: "bob"}, Agent: Selector{All: true}, Targets: Everything()}
	target, err := wire.ParseTarget("tcp:db:5432")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, hint string }{
		{"ann@example.org", "--to user:ann@example.org --agent office --target tcp:db:5432"},
		{"it's; rm -rf /", `--to 'user:it'\''s; rm -rf /' --agent office`},
	} {
		who := policy.Asker{Principal: identity.Principal{Kind: identity.KindUser, Name: c.name}, Proxy: "laptop"}
		d := New([]Grant{secret}).For(who, Agent{ID: "office"}, now).Check(target)
		if d.Allowed || !strings.Contains(d.Hint, c.hint) || strings.Contains(d.Reason+d.Hint, "bob") || strings.Contains(d.Reason+d.Hint, "secret") ||
			d.Reason != "the hub's access grants do not let user:"+c.name+" reach office on tcp:db:5432" {
			t.Errorf("%+v", d)
		}
	}
	if d := (*Set)(nil).For(policy.Asker{Proxy: "p"}, Agent{ID: "office"}, now).Check(target); d.Allowed || strings.Contains(d.Hint, "proxy:p") != true {
		t.Errorf("nobody in particular: %+v", d)
	}
}

// world draws what grants, askers, agents and targets are made of, from few words, so
// that they often meet.
var (
	kinds   = []identity.PrincipalKind{identity.KindUser, identity.KindRobot, identity.KindGroup, identity.KindProxy}
	names   = []string{"a", "b", policy.Everyone}
	ruleSet = []string{"kubernetes", "gateway", "tcp:*:*", "tcp:db:5432", "tcp:*.x:1-99", "tcp:10.0.0.0/8:5432", "tcp:10.1.1.1:80"}
	targets = []string{"kubernetes", "gateway", "tcp:db:5432", "tcp:a.x:80", "tcp:10.1.1.1:80", "tcp:other:5432", "tcp:kubernetes:443"}
	addrs   = []string{"10.1.1.1", "11.1.1.1", "127.0.0.1"}
)

func anyGrant(now time.Time) *rapid.Generator[Grant] {
	return rapid.Custom(func(t *rapid.T) Grant {
		g := Grant{To: policy.Whom{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Name: rapid.SampledFrom(names).Draw(t, "name")}}
		for _, text := range rapid.SliceOfN(rapid.SampledFrom(ruleSet), 1, 3).Draw(t, "targets") {
			g.Targets = append(g.Targets, policy.MustRule(text))
		}
		sel, err := ParseSelector(rapid.SampledFrom([]string{"*", "office", "plant", "env=prod", "env=prod,team=a"}).Draw(t, "agent"))
		if err != nil {
			t.Fatal(err)
		}
		g.Agent = sel
		if rapid.Bool().Draw(t, "expires") {
			g.Expires = now.Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "in")) * time.Second)
		}
		return g
	})
}

// TestCheckAgainstOracle compares Set with what the words of a grant mean, read one by
// one, at the hub as at an agent that was told what concerns it only.
func TestCheckAgainstOracle(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		grants := rapid.SliceOfN(anyGrant(now), 0, 8).Draw(t, "grants")
		for i := range grants {
			grants[i].ID = fmt.Sprintf("g%d", i)
		}
		who := policy.Asker{
			Proxy:     rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "proxy"),
			Principal: identity.Principal{Kind: rapid.SampledFrom([]identity.PrincipalKind{identity.KindUser, identity.KindRobot}).Draw(t, "is"), Name: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "who")},
			Groups:    rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "groups"),
		}
		agent := Agent{ID: rapid.SampledFrom([]string{"office", "plant"}).Draw(t, "at"), Labels: map[string]string{}}
		for _, label := range []string{"env=prod", "team=a"} {
			if k, v, _ := strings.Cut(label, "="); rapid.Bool().Draw(t, label) {
				agent.Labels[k] = v
			}
		}
		target, err := wire.ParseTarget(rapid.SampledFrom(targets).Draw(t, "target"))
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom(addrs).Draw(t, "addr")), target.Port)
		if target.Kind == wire.KindKubernetes {
			addr = netip.AddrPortFrom(addr.Addr(), 6443)
		}

		var byName, byAddr, perhaps bool
		for _, g := range grants {
			if !g.Agent.Chooses(agent) || !g.Expires.IsZero() && !g.Expires.After(now) || !who.Is(g.To) ||
				g.To.Kind == identity.KindProxy && who.Principal.Kind == identity.KindUser {
				continue
			}
			for _, r := range g.Targets {
				yes, maybe := r.Covers(target)
				byName, perhaps, byAddr = byName || yes, perhaps || maybe, byAddr || r.CoversAddr(target, addr)
			}
		}
		set := New(grants)
		for name, s := range map[string]*Set{"hub": set, "agent": New(set.Concerning(agent, now))} {
			view := s.For(who, agent, now)
			d := view.Check(target)
			if d.Allowed != (byName || perhaps) || d.NeedsAddress != (perhaps && !byName) {
				t.Fatalf("%s: %s: %+v; want by name %v, perhaps %v", name, target, d, byName, perhaps)
			}
			if got := view.CheckAddr(target, addr); got.Allowed != byAddr {
				t.Fatalf("%s: %s at %s: %+v; want %v", name, target, addr, got, byAddr)
			}
			if d.Allowed == (d.Grant == "") || d.Allowed == (d.Reason != "") {
				t.Fatalf("%+v", d)
			}
			if d.Allowed && !d.Until.IsZero() && !d.Until.After(now) {
				t.Fatalf("%+v has expired", d)
			}
		}
		if next := set.NextExpiry(now); !next.IsZero() {
			// Between now and then nothing changes by itself.
			for _, at := range []time.Time{now, next.Add(-1)} {
				if !cmp.Equal(set.For(who, agent, at).Check(target).Allowed, set.For(who, agent, now).Check(target).Allowed) {
					t.Fatal("it changes before the next expiry")
				}
			}
		}
	})
}

// BenchmarkFor is what an agent does for each stream, with as many grants as there
// can be.
func BenchmarkFor(b *testing.B) {
	grants := make([]Grant, MaxGrants)
	for i := range grants {
		grants[i] = Grant{ID: fmt.Sprint("g", i), To: policy.Whom{Kind: identity.KindUser, Name: fmt.Sprint("user", i)}, Agent: Selector{All: true}, Targets: Everything()}
	}
	set, now := New(grants), time.Now()
	who := policy.Asker{Proxy: "laptop", Principal: identity.Principal{Kind: identity.KindUser, Name: "user4000"}, Groups: []string{"a", "b", "c"}}
	target := wire.Target{Kind: wire.KindTCP, Host: "db", Port: 5432}
	b.ReportAllocs()
	for b.Loop() {
		if !set.For(who, Agent{ID: "office"}, now).Check(target).Allowed {
			b.Fatal("refused")
		}
	}
}

// TestConcerningIsShared: agents that the same grants concern get the same slice, and no
// agent gets another's; whatever was remembered before.
func TestConcerningIsShared(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var grants []Grant
	add := func(id string, s Selector, expires time.Time) {
		grants = append(grants, Grant{ID: id, To: policy.Whom{Kind: identity.KindRobot, Name: "ci"}, Agent: s, Targets: Everything(), Expires: expires, Note: "secret"})
	}
	add("all", Selector{All: true}, time.Time{})
	add("prod", Selector{Labels: map[string]string{"env": "prod"}}, time.Time{})
	add("hour", Selector{All: true}, now.Add(time.Hour))
	for i := range 2 * maxShared {
		add(fmt.Sprintf("one%d", i), Selector{ID: fmt.Sprintf("edge%d", i)}, time.Time{})
	}
	set := New(grants)
	ids := func(a Agent, now time.Time) (ids string) {
		t.Helper()
		for _, g := range set.Concerning(a, now) {
			if g.Note != "" || !g.Agent.IsZero() {
				t.Errorf("an agent is told %+v", g)
			}
			ids += g.ID + " "
		}
		return ids
	}
	prod := map[string]string{"env": "prod"}
	for range 2 {
		for i := range 2 * maxShared {
			if got, want := ids(Agent{ID: fmt.Sprintf("edge%d", i)}, now), fmt.Sprintf("all hour one%d ", i); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
		if got := ids(Agent{ID: "office", Labels: prod}, now); got != "all prod hour " {
			t.Errorf("got %s", got)
		}
		if got := ids(Agent{ID: "office", Labels: prod}, now.Add(time.Hour)); got != "all prod " {
			t.Errorf("after an hour: %s", got)
		}
	}
	a, b := set.Concerning(Agent{ID: "office", Labels: prod}, now), set.Concerning(Agent{ID: "plant", Labels: prod}, now)
	if &a[0] != &b[0] {
		t.Error("two agents with the same grants have two lists")
	}
	if len(set.shared) > maxShared {
		t.Errorf("%d lists are remembered", len(set.shared))
	}
}
