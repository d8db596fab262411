package agent

import (
	"strings"
	"testing"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/impersonate"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// TestJudgeOfRequests: requests through the gateway are judged like streams: by access
// grants and by the owner's rules, each for itself, and again at each change.
func TestJudgeOfRequests(t *testing.T) {
	t.Parallel()
	g, err := newGuard(config.Agent{
		Gateway: true, Allow: []string{"tcp:grafana.monitoring.svc:3000"}, Party: config.Party{AgentID: "office"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	j := judge{&Agent{guard: g}}
	g.governed.Store(true)
	grants := func(version uint64, targets ...string) {
		d := orders.Document{Version: version}
		for _, text := range targets {
			d.Access = append(d.Access, access.Grant{ID: "a", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Targets: []policy.Rule{policy.MustRule(text)}})
		}
		g.obey(d)
	}
	ann := policy.Asker{Principal: principal(identity.KindUser, "ann")}
	var cut *wire.Failure
	admit := func(who policy.Asker, target string, own bool) (leave func(), refused string) {
		t.Helper()
		cut = nil
		leave, err := j.Admit(t.Context(), impersonate.Visit{Who: who, Target: targetOf(t, target), Own: own, Cut: func(f *wire.Failure) { cut = f }})
		if err != nil {
			return nil, err.Error()
		}
		return leave, ""
	}
	const grafana, other = "tcp:grafana.monitoring.svc:3000", "tcp:other.monitoring.svc:3000"
	grants(1, "gateway", grafana, other)
	leave, refused := admit(ann, "gateway", false)
	if refused != "" {
		t.Fatal(refused)
	}
	if _, refused := admit(policy.Asker{Principal: principal(identity.KindUser, "bob")}, "gateway", false); !strings.Contains(refused, "access grants do not let user:bob") {
		t.Errorf("without a grant: %q", refused)
	}
	if _, refused := admit(ann, other, false); !strings.Contains(refused, "no rule allows "+other) {
		t.Errorf("a service that the owner does not expose: %q", refused)
	}
	if l, refused := admit(ann, grafana, false); refused != "" {
		t.Error(refused)
	} else {
		l()
	}
	if l, refused := admit(policy.Asker{Principal: principal(identity.KindHub, "main")}, "gateway", true); refused != "" {
		t.Errorf("the hub for itself: %s", refused)
	} else {
		l()
	}
	leave()
	if len(g.live) != 0 {
		t.Errorf("%d live on", len(g.live))
	}

	// A change cuts what runs.
	leave, _ = admit(ann, "gateway", false)
	grants(2, grafana)
	if cut == nil || !strings.Contains(cut.Text, "access has changed") {
		t.Errorf("cut was %v", cut)
	}
	leave()
	if _, refused := admit(ann, "gateway", false); refused == "" {
		t.Error("the grant has gone")
	}
	// Who is denied the gateway has none of its services.
	grants(3, "gateway", grafana)
	leave, _ = admit(ann, grafana, false)
	if _, err := g.use([]policy.Entry{{Rule: policy.MustRule("gateway"), Deny: true, From: []policy.Whom{{Kind: identity.KindUser, Name: "ann"}}}}); err != nil {
		t.Fatal(err)
	}
	leave()
	for _, target := range []string{"gateway", grafana} {
		if _, refused := admit(ann, target, false); !strings.Contains(refused, "deny rule gateway forbids") {
			t.Errorf("%s: %q", target, refused)
		}
	}
}

// TestGatewayIsNoDefault: an API server that is named for the gateway is not thereby
// open to all who have access.
func TestGatewayIsNoDefault(t *testing.T) {
	t.Parallel()
	for _, ofPod := range []bool{true, false} {
		cfg := config.Agent{Gateway: true, Kubernetes: config.Kubernetes{API: "https://10.0.0.1:6443", OfPod: ofPod}}
		kube, err := kubernetesOf(&cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		g, err := newGuard(cfg, kube)
		if err != nil {
			t.Fatal(err)
		}
		if d := g.current.Load().Check(wire.Kubernetes()); d.Allowed != ofPod || kube.Port != 6443 {
			t.Errorf("of a pod %v: %+v", ofPod, d)
		}
	}
}
