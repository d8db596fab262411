package hub_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// registered makes a key and registers the agent "edge" with it.
func (f *fixture) registered(org string) *identity.AgentKey {
	f.t.Helper()
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = f.admin.RegisterAgent(f.t.Context(), org, api.RegisterAgent{ID: "edge", PublicKeys: []string{string(key.Public().PEM())}})
	if err != nil {
		f.t.Fatal(err)
	}
	return key
}

// asserted returns a token request with an assertion; change may spoil the one
// before it is signed, late after.
func (f *fixture) asserted(t *testing.T, key *identity.AgentKey, change func(*identity.Claims), late func(*api.TokenRequest)) api.TokenRequest {
	t.Helper()
	req := tokenRequest(t, "")
	c := identity.Claims{TrustDomain: f.state.TrustDomain(), Organization: "default", Agent: "edge", Request: req.Digest()}
	if change != nil {
		change(&c)
	}
	token, err := key.SignAssertion(c, f.now())
	if err != nil {
		t.Fatal(err)
	}
	req.SubjectToken = token
	if late != nil {
		late(&req)
	}
	return req
}

func TestAssertedExchange(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	key := f.registered("default")
	req := f.asserted(t, key, nil, nil)
	res, err := f.client("").Exchange(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identity.CertificateID(certs[0]); err != nil || id.Name != "edge" || id.Role != identity.RoleAgent {
		t.Errorf("ID %v, %v", id, err)
	}
	r, err := f.admin.Registration(ctx, "default", "edge")
	if err != nil || len(r.Keys) != 1 || r.Keys[0].LastUsed.IsZero() || r.Keys[0].ID != key.Public().ID() {
		t.Errorf("registration %+v, %v", r, err)
	}
	if strings.Contains(f.log.String(), req.SubjectToken) {
		t.Error("the log holds the assertion")
	}
	_, err = f.client("").Exchange(ctx, req)
	wantFailure(t, "replay", err, wire.CodeUnauthenticated, "has been used already")
	f.advance(4 * time.Minute)
	_, err = f.client("").Exchange(ctx, req)
	wantFailure(t, "late replay", err, wire.CodeUnauthenticated, "expired")

	serial := identity.Serial(certs[0])
	if f.issued.Revoked(serial) {
		t.Error("revoked before anybody did")
	}
	if err := f.admin.RemoveAgentKey(ctx, "default", "edge", key.Public().ID()); err != nil {
		t.Fatal(err)
	}
	if !f.issued.Revoked(serial) || len(f.voided) != 1 || f.voided[0] != busKey {
		t.Errorf("not revoked; bus users revoked: %v", f.voided)
	}
	_, err = f.client("").Exchange(ctx, f.asserted(t, key, nil, nil))
	wantFailure(t, "removed key", err, wire.CodeUnauthenticated, "has no key")
}

func TestAssertedExchangeRefused(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	if _, err := f.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	key, other := f.registered("default"), f.registered("acme")
	for name, tc := range map[string]struct {
		key    *identity.AgentKey
		change func(*identity.Claims)
		late   func(*api.TokenRequest)
		code   wire.Code
		text   string
	}{
		"other organization's key": {other, nil, nil, wire.CodeUnauthenticated, "has no key"},
		"unknown agent":            {key, func(c *identity.Claims) { c.Agent = "none" }, nil, wire.CodeUnauthenticated, "has no key"},
		"other hub":                {key, func(c *identity.Claims) { c.TrustDomain = "other.test" }, nil, wire.CodeUnauthenticated, "for another hub"},
		"other digest":             {key, func(c *identity.Claims) { c.Request = "" }, nil, wire.CodeUnauthenticated, "another request"},
		"bus key changed": {key, nil, func(r *api.TokenRequest) { r.BusKey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF5" },
			wire.CodeUnauthenticated, "another request"},
		"replica changed": {key, nil, func(r *api.TokenRequest) { r.Replica = "r2" }, wire.CodeUnauthenticated, "another request"},
		"certificate for another key": {key, nil, func(r *api.TokenRequest) { r.CSR = tokenRequest(t, "").CSR },
			wire.CodeUnauthenticated, "another request"},
	} {
		_, err := f.client("").Exchange(ctx, f.asserted(t, tc.key, tc.change, tc.late))
		wantFailure(t, name, err, tc.code, tc.text)
		f.advance(time.Minute)
	}
	sign := func(change func(*api.TokenRequest)) api.TokenRequest {
		req := tokenRequest(t, "")
		change(&req)
		var err error
		req.SubjectToken, err = key.SignAssertion(identity.Claims{
			TrustDomain: f.state.TrustDomain(), Organization: "default", Agent: "edge", Request: req.Digest(),
		}, f.now())
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	for name, change := range map[string]func(*api.TokenRequest){
		"another agent":        func(r *api.TokenRequest) { r.Name = "plant" },
		"a proxy":              func(r *api.TokenRequest) { r.Role = "proxy" },
		"another organization": func(r *api.TokenRequest) { r.Organization = "acme" },
	} {
		_, err := f.client("").Exchange(ctx, sign(change))
		wantFailure(t, name, err, wire.CodeDenied, "")
	}
	robot := f.robot("default", "bot").Token
	_, err := f.client("").Exchange(ctx, tokenRequest(t, robot))
	wantFailure(t, "a robot as a registered agent", err, wire.CodeDenied, "registered with keys")
	_, err = f.client(f.asserted(t, key, nil, nil).SubjectToken).Agents(ctx, "default")
	wantFailure(t, "an assertion as bearer token", err, wire.CodeUnauthenticated, "")
}

// A revocation is not forgotten by a restart, nor one that the process did not
// live to enforce.
func TestIssuedAcrossARestart(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	key := f.registered("default")
	ground := registry.Ground{Organization: "default", Kind: registry.GroundAgent, Name: "edge", Item: key.Public().ID()}
	store := registry.NewMemory()
	open := func() *hub.Issued {
		t.Helper()
		g, err := hub.OpenIssued(ctx, store, f.reg, f, nil, f.now)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	issue := func(g *hub.Issued, serial, previous string, ground registry.Ground) error {
		return g.Issue(ctx, hub.Issuance{
			Ground: ground, Serial: serial, Previous: previous, ID: "spiffe://x/org/default/agent/edge/r1", BusKey: busKey, Expires: f.now().Add(time.Hour),
		})
	}
	g := open()
	if err := issue(g, "1", "", ground); err != nil {
		t.Fatal(err)
	}
	if g = open(); g.Revoked("1") {
		t.Error("revoked by a restart")
	}
	second, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.reg.AddAgentKey(ctx, "default", "edge", second.Public()); err != nil {
		t.Fatal(err)
	}
	newer := ground
	newer.Item = second.Public().ID()
	if err := issue(g, "9", "", ground); err != nil { // of somebody else who has the key
		t.Fatal(err)
	}
	if err := issue(g, "2", "1", newer); err != nil {
		t.Fatal(err)
	}
	if _, err := f.reg.RemoveAgentKey(ctx, "default", "edge", ground.Item); err != nil {
		t.Fatal(err)
	}
	g = open() // nobody enforced it before
	if g.Revoked("1") || g.Revoked("2") || !g.Revoked("9") {
		t.Errorf("revoked: 1 %t, 2 %t, 9 %t; want only 9", g.Revoked("1"), g.Revoked("2"), g.Revoked("9"))
	}
	if err := issue(g, "3", "2", ground); !errors.Is(err, registry.ErrRevoked) || !g.Revoked("3") || g.Revoked("2") {
		t.Errorf("an issuance on a ground that is gone: %v", err)
	}
	if _, err := f.reg.AddAgentKey(ctx, "default", "edge", mustParse(t, key.Public().PEM())); err != nil {
		t.Fatal(err)
	}
	if g = open(); !g.Revoked("9") {
		t.Error("revived when the key was added again")
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { g.Run(run); close(done) }()
	stop()
	<-done
}

func mustParse(t *testing.T, b []byte) identity.PublicKey {
	t.Helper()
	k, err := identity.ParsePublicKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
