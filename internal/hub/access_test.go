package hub_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// accessPatience bounds what a test of access waits for. What is promised is two
// seconds; the tests log what they see.
const accessPatience = 20 * time.Second

// opener opens streams: a proxy in a process of its own, or the hub's own.
type opener interface {
	Open(ctx context.Context, r proxy.Request) (proxy.Stream, error)
}

// enrolled starts a proxy that somebody enrolled. It meets over the bus as a robot's,
// which the agent does not see, and shows the agent a certificate of its holder.
func (s *site) enrolled(token, name string, holder identity.Holder) *proxy.Dialer {
	s.t.Helper()
	settings := s.party(func(p *config.Party) { p.TokenFile, p.Name = token, name })
	member, err := party.Start(s.t.Context(), party.Config{
		Settings: settings, Role: identity.RoleProxy, Name: name, Replica: name, Version: "test",
		Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(member.Close)
	key, err := identity.NewKey()
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := s.hub.Authority().IssueParty(member.Credentials().ID, key.Public(), holder, time.Hour, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	creds, err := identity.NewCredentials(chain, key, s.hub.Authority().CertificatePEM())
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := proxy.NewDialer(s.t.Context(), proxy.DialerConfig{
		Organization: "default", Bus: member.Bus, Credentials: func() *identity.Credentials { return creds }, Join: member.JoinPipe,
		Log: slog.New(slog.DiscardHandler),
	}, "office")
	if err != nil {
		s.t.Fatal(err)
	}
	s.run("proxy "+name, d.Run)
	s.run("member "+name, member.Run)
	return d
}

func holderOf(kind identity.PrincipalKind, name string, groups ...string) identity.Holder {
	return identity.Holder{Principal: identity.Principal{Kind: kind, Name: name}, Groups: groups}
}

// request asks for the echo service, or another target, on behalf of somebody.
func (s *site) request(target string, on identity.Holder) proxy.Request {
	s.t.Helper()
	t, err := wire.ParseTarget("tcp:" + target)
	if err != nil {
		s.t.Fatal(err)
	}
	return proxy.Request{
		Agent: proxy.AgentRef{Organization: "default", Agent: "office"}, Target: t,
		For: proxy.Identity{Organization: "default", Principal: on.Principal, Groups: on.Groups},
	}
}

// try opens a stream once the agent is there, and closes it; the error is what the
// agent, or the hub, said.
func (s *site) try(via opener, r proxy.Request) error {
	s.t.Helper()
	for limit := time.Now().Add(accessPatience); ; time.Sleep(10 * time.Millisecond) {
		stream, err := via.Open(s.t.Context(), r)
		if err == nil {
			return stream.Close()
		}
		if f := wire.AsFailure(err, wire.LegUnknown); f.Code == wire.CodeDenied || time.Now().After(limit) {
			return err
		}
	}
}

// becomes waits until try allows or refuses, and returns how long that took.
func (s *site) becomes(allowed bool, via opener, r proxy.Request) time.Duration {
	s.t.Helper()
	begin := time.Now()
	for {
		err := s.try(via, r)
		took := time.Since(begin)
		if (err == nil) == allowed {
			return took
		}
		if took > accessPatience {
			s.t.Fatalf("after %s: %v", took, err)
		}
	}
}

// refused wants a refusal by policy whose text holds all words.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	f := wire.AsFailure(err, wire.LegUnknown)
	if err == nil || f.Leg != wire.LegPolicy || f.Code != wire.CodeDenied {
		t.Errorf("%v; want a refusal", err)
		return
	}
	for _, word := range words {
		if !strings.Contains(f.Error(), word) {
			t.Errorf("%q does not say %q", f.Error(), word)
		}
	}
}

// live is an open stream to an echo.
type live struct {
	proxy.Stream
	done chan struct{}
	err  error     // once done
	at   time.Time // once done
}

func (s *site) live(via opener, r proxy.Request) *live {
	s.t.Helper()
	s.becomes(true, via, r)
	stream, err := via.Open(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	l := &live{Stream: stream, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		_, l.err = io.Copy(io.Discard, stream)
		l.at = time.Now()
	}()
	s.t.Cleanup(func() { _ = stream.Close(); <-l.done })
	return l
}

// cut waits until the stream has been reset, with the reason, and returns how long
// after a time that was.
func (l *live) cut(t *testing.T, since time.Time, words ...string) time.Duration {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(accessPatience):
		t.Fatal("the stream lives on")
	}
	refused(t, l.err, words...)
	return l.at.Sub(since)
}

func (l *live) lives(t *testing.T) {
	t.Helper()
	select {
	case <-l.done:
		t.Errorf("a stream that is still allowed ended: %v", l.err)
	default:
	}
}

func (s *site) grant(g api.CreateAccessGrant) {
	s.t.Helper()
	if _, err := s.admin.GrantAccess(s.t.Context(), "default", g); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) revoke(id string) {
	s.t.Helper()
	if err := s.admin.RevokeAccess(s.t.Context(), "default", id); err != nil {
		s.t.Fatal(err)
	}
}

// TestAccessOfPeopleAndMachines: machines have access in a new organization, people do
// not until they are granted it, and a change holds at once, for open streams too.
func TestAccessOfPeopleAndMachines(t *testing.T) {
	s := newSite(t, time.Hour)
	token := s.token("machines")
	s.agent(func(p *config.Party) { p.TokenFile = token })
	robot := s.enrolled(token, "ci", holderOf(identity.KindRobot, "machines"))
	ann := s.enrolled(token, "laptop", holderOf(identity.KindUser, "ann@example.org", "sre", "dev"))
	bob := s.enrolled(token, "desk", holderOf(identity.KindUser, "bob"))
	nobody := s.enrolled(token, "old", identity.Holder{})
	plain := s.request(s.echo, identity.Holder{})

	machine := s.live(robot, plain)
	refused(t, s.try(ann, plain), "the hub's access grants do not let user:ann@example.org reach office on tcp:"+s.echo,
		"postern access grant --to user:ann@example.org --agent office --target tcp:"+s.echo)
	refused(t, s.try(nobody, plain), "proxy:old") // whose certificate does not tell who enrolled it
	// A proxy's own word about for whom it asks counts for nothing.
	refused(t, s.try(ann, s.request(s.echo, holderOf(identity.KindRobot, "machines"))), "user:ann@example.org")
	refused(t, s.try(bob, s.request(s.echo, holderOf(identity.KindUser, "ann@example.org", "sre"))), "user:bob")

	begin := time.Now()
	s.grant(api.CreateAccessGrant{ID: "sre", To: "group:sre", Agent: "office", Targets: []string{"tcp:127.0.0.0/8:*"}})
	s.becomes(true, ann, plain)
	t.Logf("granted within %s, the call included", time.Since(begin))
	refused(t, s.try(bob, plain), "user:bob")
	// People choose the names of their proxies.
	s.grant(api.CreateAccessGrant{ID: "by-name", To: "proxy:desk", Agent: "*", Targets: []string{"tcp:*:*"}})
	s.grant(api.CreateAccessGrant{ID: "bob", To: "user:bob", Agent: "*", Targets: []string{"tcp:*:*"}})
	s.becomes(true, bob, plain)
	s.revoke("bob")
	s.becomes(false, bob, plain)

	person := s.live(ann, plain)
	begin = time.Now()
	s.revoke("sre")
	took := person.cut(t, begin, "access has changed", "user:ann@example.org")
	refused(t, s.try(ann, plain), "user:ann@example.org")
	t.Logf("an open stream was cut within %s, the call included", took)
	machine.lives(t)

	begin = time.Now()
	s.revoke("default-robots")
	t.Logf("machines cut within %s", machine.cut(t, begin, "robot:machines"))
}

// TestAccessThroughTheHubsProxies: at the hub's own proxies, whoever logs in counts,
// with groups; the agent's owner may name them too.
func TestAccessThroughTheHubsProxies(t *testing.T) {
	s := newSite(t, time.Hour)
	token := s.token("machines")
	cfg := config.DefaultAgent()
	cfg.Party = s.party(func(p *config.Party) { p.TokenFile = token })
	cfg.PolicyFile = s.dir + "/policy.yaml"
	writeFile(t, cfg.PolicyFile, "allow: ['tcp:127.0.0.1:*']\ndeny:\n- {rule: 'tcp:*:*', from: ['group:temps']}\n")
	a, err := agent.New(cfg, agent.Options{Version: "test", Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.run("agent", a.Run)
	anonymous := s.request(s.echo, identity.Holder{})
	robot := s.request(s.echo, holderOf(identity.KindRobot, "machines"))
	ann := s.request(s.echo, holderOf(identity.KindUser, "ann", "sre"))
	temp := s.request(s.echo, holderOf(identity.KindUser, "tim", "sre", "temps"))
	for _, r := range []proxy.Request{anonymous, robot} {
		if err := s.try(s.hub, r); err != nil {
			t.Errorf("%s: %v", r.For.Principal, err)
		}
	}
	refused(t, s.try(s.hub, ann), "the hub's access grants do not let user:ann reach office")
	s.grant(api.CreateAccessGrant{ID: "sre", To: "group:sre", Agent: "env=test", Targets: []string{"tcp:*:*"}})
	refused(t, s.try(s.hub, ann), "user:ann")
	if _, err := s.admin.LabelAgent(t.Context(), "default", "office", map[string]string{"env": "test"}); err != nil {
		t.Fatal(err)
	}
	stream := s.live(s.hub, ann)
	// What the hub grants, the owner still refuses.
	refused(t, s.try(s.hub, temp), "deny rule tcp:*:*")

	begin := time.Now()
	if _, err := s.admin.LabelAgent(t.Context(), "default", "office", map[string]string{"env": "prod"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stream.done:
	case <-time.After(accessPatience):
		t.Fatal("the stream lives on")
	}
	t.Logf("a label's change cut within %s", stream.at.Sub(begin))
	refused(t, s.try(s.hub, ann), "user:ann")
	s.revoke("default-hub")
	refused(t, s.try(s.hub, anonymous), "hub:")
}

// TestAccessExpires: when its time is over, a grant allows nothing, and what it allowed
// ends, though nobody does anything.
func TestAccessExpires(t *testing.T) {
	s := newSite(t, time.Hour)
	token := s.token("machines")
	s.agent(func(p *config.Party) { p.TokenFile = token })
	ann := s.enrolled(token, "laptop", holderOf(identity.KindUser, "ann"))
	plain := s.request(s.echo, identity.Holder{})
	granted, err := s.admin.GrantAccess(t.Context(), "default", api.CreateAccessGrant{
		ID: "soon", To: "user:ann", Agent: "*", Targets: []string{"tcp:*:*"}, ExpiresIn: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream := s.live(ann, plain)
	late := stream.cut(t, granted.Expires, "user:ann")
	if late < 0 {
		t.Errorf("cut %s too early", -late)
	}
	t.Logf("cut %s after its end", late)
	refused(t, s.try(ann, plain), "user:ann")
	all, err := s.admin.AccessGrants(t.Context(), "default")
	if err != nil || !all[len(all)-1].Expired {
		t.Errorf("the list is %+v, %v", all, err)
	}
}

// TestGrantNeverWidens: the agent's owner decides too.
func TestGrantNeverWidens(t *testing.T) {
	s := newSite(t, time.Hour)
	token := s.token("machines")
	s.agent(func(p *config.Party) { p.TokenFile = token }) // it allows tcp:127.0.0.1:*
	ann := s.enrolled(token, "laptop", holderOf(identity.KindUser, "ann"))
	s.grant(api.CreateAccessGrant{To: "user:ann", Agent: "*", Targets: []string{"tcp:*:*", "kubernetes"}})
	s.becomes(true, ann, s.request(s.echo, identity.Holder{}))
	for target, why := range map[string]string{
		"10.0.0.1:80": "no rule allows", "169.254.169.254:80": "a cloud metadata address", "[::1]:80": "a loopback address",
	} {
		refused(t, s.try(ann, s.request(target, identity.Holder{})), why, "start the agent with --allow")
	}
}

// TestForgedOrders: what is not signed for this agent, or is older, changes nothing.
func TestForgedOrders(t *testing.T) {
	s := newSite(t, time.Hour)
	token := s.token("machines")
	s.agent(func(p *config.Party) { p.TokenFile = token })
	ann := s.enrolled(token, "laptop", holderOf(identity.KindUser, "ann"))
	robot := s.enrolled(token, "ci", holderOf(identity.KindRobot, "machines"))
	plain := s.request(s.echo, identity.Holder{})
	s.becomes(true, robot, plain)
	seed, err := orders.NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	key, err := orders.ParseSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := key.Seal(orders.Document{Organization: "default", Agent: "office", Version: 1 << 62, Access: []access.Grant{{
		ID: "x", To: policy.Whom{Kind: identity.KindUser, Name: policy.Everyone}, Targets: access.Everything(),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range [][]byte{forged, nil, []byte("{}"), forged[:80]} {
		if err := s.hub.Bus("default").SendOrders(t.Context(), "office", "", message); err != nil {
			t.Fatal(err)
		}
	}
	// What comes after them on the same way has been taken, so they have been too.
	s.grant(api.CreateAccessGrant{ID: "bob", To: "user:bob", Agent: "*", Targets: []string{"tcp:*:*"}})
	for limit := time.Now().Add(accessPatience); ; time.Sleep(10 * time.Millisecond) {
		e, err := s.admin.ExplainAccess(t.Context(), "default", api.AccessQuery{From: []string{"user:bob"}, Agent: "office", Target: "tcp:" + s.echo})
		if err == nil && e.Verdict == api.VerdictAllowed && len(e.Replicas) == 1 && !e.Replicas[0].Behind {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	refused(t, s.try(ann, plain), "user:ann")
	if err := s.try(robot, plain); err != nil {
		t.Error(err)
	}
}

// TestAccessRecords: an organization gets its defaults once, also one that an older hub
// made; what is removed stays so; grants and labels outlive the hub, and not their
// organization; their number is bounded.
func TestAccessRecords(t *testing.T) {
	ctx, store := t.Context(), registry.NewMemory()
	reg := registry.New(store, nil)
	if _, err := reg.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	open := func() *hub.Access {
		t.Helper()
		a := hub.NewAccess(reg, func(string) {}, slog.New(slog.DiscardHandler), nil)
		if err := a.Open(ctx, "acme"); err != nil {
			t.Fatal(err)
		}
		return a
	}
	ids := func(a *hub.Access) string {
		grants, err := a.Grants("acme")
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, g := range grants {
			all = append(all, strings.TrimPrefix(g.ID, "default-"))
		}
		return strings.Join(all, " ")
	}
	a := open()
	if got := ids(a); got != "admin clients hub robots workloads" {
		t.Errorf("defaults: %s", got)
	}
	if _, err := a.Revoke(ctx, "acme", "default-robots"); err != nil {
		t.Fatal(err)
	}
	one := access.Grant{ID: "one", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Agent: access.Selector{ID: "office"}, Targets: access.Everything()}
	if _, err := a.Grant(ctx, "acme", one); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Label(ctx, "acme", "office", map[string]string{"env": "prod", "gone": "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Label(ctx, "acme", "office", map[string]string{"gone": ""}); err != nil {
		t.Fatal(err)
	}
	a = open() // as after a restart
	if got, labels := ids(a), access.FormatLabels(a.Labels("acme")["office"]); got != "admin clients hub workloads one" || labels != "env=prod" {
		t.Errorf("after a restart: %s; labels %s", got, labels)
	}
	var d orders.Document
	a.Order("acme", "office", &d)
	if len(d.Access) != 5 || d.Labels["env"] != "prod" || d.Access[4].Agent.String() != "" || !d.Access[4].Created.IsZero() {
		t.Errorf("told: %+v", d)
	}
	var other orders.Document
	if a.Order("acme", "plant", &other); len(other.Access) != 4 {
		t.Errorf("another agent is told %+v", other)
	}
	if _, err := a.Grant(ctx, "acme", one); !errors.Is(err, registry.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := a.Grant(ctx, "nowhere", one); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
	fill := one
	for i := range access.MaxGrants - 10 {
		fill.ID = fmt.Sprintf("fill-%d", i)
		if err := reg.CreateAccessGrant(ctx, "acme", fill); err != nil {
			t.Fatal(err)
		}
	}
	a = open()
	for fill.ID = ""; ; {
		if _, err := a.Grant(ctx, "acme", fill); err != nil {
			if f := wire.AsFailure(err, wire.LegUnknown); f.Code != wire.CodeBadRequest || f.Hint == "" {
				t.Errorf("too many: %v", err)
			}
			break
		}
	}
	if grants, _ := a.Grants("acme"); len(grants) != access.MaxGrants {
		t.Errorf("%d grants fit", len(grants))
	}

	if err := reg.DeleteOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if a := open(); ids(a) != "admin clients hub robots workloads" || len(a.Labels("acme")) != 0 {
		t.Errorf("a new organization of that name has %s, %v", ids(a), a.Labels("acme"))
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
