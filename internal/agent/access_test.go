package agent

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

func principal(kind identity.PrincipalKind, name string) identity.Principal {
	return identity.Principal{Kind: kind, Name: name}
}

// TestAskerOf: a proxy asks for who enrolled it; only the hub's own are believed.
func TestAskerOf(t *testing.T) {
	t.Parallel()
	ann := identity.Holder{Principal: principal(identity.KindUser, "ann"), Groups: []string{"sre"}}
	own := identity.Holder{Principal: principal(identity.KindHub, "node")}
	for name, c := range map[string]struct {
		holder identity.Holder
		open   wire.Open
		want   string
		groups int
	}{
		"a user":                         {ann, wire.Open{}, "user:ann", 1},
		"a user who says another":        {ann, wire.Open{For: "robot:ci", Groups: []string{"a", "b"}}, "user:ann", 1},
		"a robot that says it is hub":    {identity.Holder{Principal: principal(identity.KindRobot, "ci")}, wire.Open{For: "hub:node"}, "robot:ci", 0},
		"an old certificate":             {identity.Holder{}, wire.Open{For: "robot:ci", Groups: []string{"a"}}, "proxy:p", 0},
		"the hub for a user":             {own, wire.Open{For: "user:bob", Groups: []string{"a", "b"}}, "user:bob", 2},
		"the hub for nobody":             {own, wire.Open{}, "hub:node", 0},
		"the hub for what is not a name": {own, wire.Open{For: "user:", Groups: []string{"a"}}, "proxy:p", 1},
		"the hub for an unknown kind":    {own, wire.Open{For: "planet:mars"}, "proxy:p", 0},
	} {
		if who := askerOf(identity.ID{Name: "p"}, c.holder, c.open); who.String() != c.want || len(who.Groups) != c.groups || who.Proxy != "p" {
			t.Errorf("%s: %+v; want %s in %d groups", name, who, c.want, c.groups)
		}
	}
}

func newTestGuard(t *testing.T, allow ...string) *guard {
	t.Helper()
	cfg := config.DefaultAgent()
	cfg.AgentID, cfg.Allow = "office", allow
	g, err := newGuard(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func targetOf(t *testing.T, s string) wire.Target {
	t.Helper()
	target, err := wire.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// TestBothSides: a stream needs the owner and the hub, by name and by address; with a
// hub that gives no orders the owner decides alone.
func TestBothSides(t *testing.T) {
	t.Parallel()
	g := newTestGuard(t, "tcp:*.example.org:443", "tcp:10.0.0.0/8:*")
	who := policy.Asker{Principal: principal(identity.KindUser, "ann"), Proxy: "laptop"}
	db := targetOf(t, "tcp:db.example.org:443")
	inside, outside := netip.MustParseAddrPort("10.1.1.1:443"), netip.MustParseAddrPort("192.0.2.1:443")
	if d := g.sides(who).Check(db); !d.Allowed {
		t.Errorf("an older hub: %+v", d)
	}
	g.governed.Store(true)
	if d := g.sides(who).Check(db); d.Allowed || !strings.Contains(d.Reason, "user:ann") || !strings.Contains(d.Hint, "postern access grant") {
		t.Errorf("before the first orders: %+v", d)
	}
	ordered := func(version uint64, rules ...string) bool {
		doc := orders.Document{Version: version}
		for _, r := range rules {
			doc.Access = append(doc.Access, access.Grant{ID: "a", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Targets: []policy.Rule{policy.MustRule(r)}})
		}
		_, news := g.obey(doc)
		return news
	}
	if !ordered(5, "tcp:10.1.0.0/16:443") || g.orders() != 5 {
		t.Error("the first orders are not taken")
	}
	s := g.sides(who)
	if d := s.Check(db); !d.Allowed || !d.NeedsAddress {
		t.Errorf("by address: %+v", d)
	}
	if in, out := s.CheckAddr(db, inside), s.CheckAddr(db, outside); !in.Allowed || out.Allowed || !strings.Contains(out.Reason, "192.0.2.1") {
		t.Errorf("inside %+v, outside %+v", in, out)
	}
	if v := s.verdict(db, inside); !v.allowed() || v.access.Grant != "a" || v.owner.Origin != "--allow" {
		t.Errorf("verdict %+v", v)
	}
	if d := s.Check(targetOf(t, "tcp:10.1.2.3:443")); !d.Allowed {
		t.Errorf("%+v", d)
	}
	if d := s.Check(targetOf(t, "tcp:10.1.2.3:80")); d.Allowed || !strings.Contains(d.Reason, "access grants") {
		t.Errorf("what the owner allows and the hub does not: %+v", d)
	}
	if ordered(5) || ordered(4) || g.orders() != 5 || !g.sides(who).Check(db).Allowed {
		t.Error("older orders are taken")
	}
	if !ordered(6) || g.sides(who).Check(db).Allowed {
		t.Error("newer orders are not taken")
	}
}

// TestFirstOrders: a stream waits a while for the first orders, and is refused without.
func TestFirstOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGuard(t)
		if err := g.await(t.Context()); err != nil {
			t.Errorf("an older hub: %v", err)
		}
		g.governed.Store(true)
		begin := time.Now()
		var f *wire.Failure
		if err := g.await(t.Context()); !errors.As(err, &f) || f.Leg != wire.LegAgent || f.Code != wire.CodeTimeout || f.Hint == "" || time.Since(begin) != ordersPatience {
			t.Errorf("without orders, after %s: %v", time.Since(begin), err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if err := g.await(short); err == nil || time.Since(begin) != time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		go func() {
			time.Sleep(time.Second)
			g.obey(orders.Document{Version: 1})
		}()
		begin = time.Now()
		if err := g.await(t.Context()); err != nil || time.Since(begin) != time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}

// TestWhatChangesMeanwhileIsJudgedAgain: what stood when a stream was dialled counts no
// more when it is admitted after a change.
func TestWhatChangesMeanwhileIsJudgedAgain(t *testing.T) {
	t.Parallel()
	g := newTestGuard(t, "tcp:*:443")
	who := policy.Asker{Principal: principal(identity.KindUser, "ann")}
	still := func(s *standing) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.valid(s)
	}
	everything := []access.Grant{{ID: "a", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Targets: access.Everything()}}
	before := g.standing(who)
	for what, change := range map[string]func(){
		"the policy":       func() { _, _ = g.use(nil) },
		"orders":           func() { g.obey(orders.Document{Version: g.orders() + 1, Access: everything}) },
		"a hub's upgrade":  func() { g.governed.Store(!g.governed.Load()) },
		"a grant that ran": func() { g.mu.Lock(); g.review(); g.mu.Unlock() },
	} {
		s := g.standing(who)
		if !still(s) {
			t.Errorf("it counts no more before %s changes", what)
		}
		if change(); still(s) {
			t.Errorf("it still counts after %s changed", what)
		}
	}
	g.governed.Store(true)
	g.obey(orders.Document{Version: 10, Access: everything})
	a := &admission{who: who, target: targetOf(t, "tcp:db.example.org:443"), addr: netip.MustParseAddrPort("10.1.1.1:443")}
	if f := g.enter(a, before); f != nil || a.verdict.access.Grant != "a" {
		t.Errorf("it was let in by %+v", a.verdict)
	}
	if g.leave(a); len(g.live) != 0 {
		t.Error("it lives on")
	}
}
