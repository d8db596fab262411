package hub_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/wire"
)

const podSubject = "system:serviceaccount:postern:agent"

// trusting is a hub that trusts an issuer, whose tokens for podSubject enrol agent edge.
type trusting struct {
	*fixture
	issuer *oidctest.Issuer
}

func newTrusting(t *testing.T) *trusting {
	t.Helper()
	w := &trusting{fixture: newFixture(t), issuer: oidctest.New(t)}
	if _, err := w.admin.CreateTrust(t.Context(), "default", w.trust(nil)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *trusting) trust(change func(*api.CreateTrust)) api.CreateTrust {
	req := api.CreateTrust{
		Name: "cluster", Issuer: w.issuer.URL, Audiences: []string{"postern"}, Claims: []string{"sub=" + podSubject},
		Role: "agent", Identity: "edge", CA: string(w.issuer.CA),
	}
	if change != nil {
		change(&req)
	}
	return req
}

// token returns a token of the issuer for the pod, with some claims in addition or instead.
func (w *trusting) token(claims map[string]any) string {
	all := map[string]any{"sub": podSubject, "kubernetes.io": map[string]any{"namespace": "postern"}}
	maps.Copy(all, claims)
	return w.issuer.Sign(w.t, w.issuer.Claims(w.now(), "postern", all))
}

// enrol exchanges a token.
func (w *trusting) enrol(token string, change func(*api.TokenRequest)) (*api.TokenResponse, error) {
	w.t.Helper()
	request := tokenRequest(w.t, token)
	request.BusKey = newBusKey(w.t)
	if change != nil {
		change(&request)
	}
	return w.client("").Exchange(w.t.Context(), request)
}

func TestWorkload(t *testing.T) {
	w := newTrusting(t)
	res, err := w.enrol(w.token(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	h, err := identity.CertificateHolder(certs[0])
	if want := (identity.Principal{Kind: identity.KindWorkload, Name: "cluster/" + podSubject}); err != nil || h.Principal != want {
		t.Errorf("holder %v, %v", h, err)
	}
	all, err := w.admin.Trusts(t.Context(), "default")
	if err != nil || len(all) != 1 || all[0].Issuer != w.issuer.URL || all[0].Keys || all[0].Public || all[0].Identity != "edge" {
		t.Errorf("%+v, %v", all, err)
	}

	// Its end revokes what was issued on it, and one of the same name does not undo that.
	serial := identity.Serial(certs[0])
	if w.issued.Revoked(serial) {
		t.Error("revoked from the start")
	}
	if err := w.admin.RemoveTrust(t.Context(), "default", "cluster"); err != nil {
		t.Fatal(err)
	}
	if !w.issued.Revoked(serial) {
		t.Error("the certificate outlives the trust")
	}
	_, err = w.enrol(w.token(nil), nil)
	wantFailure(t, "removed", err, wire.CodeUnauthenticated, "trusts no issuer")
	if _, err := w.admin.CreateTrust(t.Context(), "default", w.trust(nil)); err != nil {
		t.Fatal(err)
	}
	if !w.issued.Revoked(serial) {
		t.Error("a new trust of the same name revives certificates")
	}
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Error(err)
	}
	if strings.Contains(w.log.String(), "eyJ") {
		t.Error("the log holds a token")
	}
}

func TestWorkloadRefused(t *testing.T) {
	w := newTrusting(t)
	ctx := t.Context()
	stranger := oidctest.New(t)
	if _, err := w.admin.CreateOrganization(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.admin.CreateTrust(ctx, "default", w.trust(func(c *api.CreateTrust) {
		c.Name, c.Role, c.Identity, c.Claims = "names", "proxy", "p-{kubernetes.io.namespace}", []string{"sub=system:serviceaccount:*:proxy"}
	})); err != nil {
		t.Fatal(err)
	}
	proxy := func(name string) func(*api.TokenRequest) {
		return func(r *api.TokenRequest) { r.Role, r.Name = "proxy", name }
	}
	ofProxy := map[string]any{"sub": "system:serviceaccount:prod:proxy", "kubernetes.io": map[string]any{"namespace": "prod"}}
	if _, err := w.enrol(w.token(ofProxy), proxy("p-prod")); err != nil {
		t.Error(err)
	}
	hs := oidctest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, w.issuer.Claims(w.now(), "postern", map[string]any{"sub": podSubject}))
	for name, tc := range map[string]struct {
		token  string
		change func(*api.TokenRequest)
		code   wire.Code
		text   string
	}{
		"audience":             {w.token(map[string]any{"aud": "kubernetes"}), nil, wire.CodeUnauthenticated, "for another audience"},
		"subject":              {w.token(map[string]any{"sub": "system:serviceaccount:default:agent"}), nil, wire.CodeUnauthenticated, "does not meet the rule sub="},
		"subject of two":       {w.token(map[string]any{"sub": podSubject + ":x"}), nil, wire.CodeUnauthenticated, "does not meet the rule"},
		"expired":              {w.token(map[string]any{"exp": w.now().Add(-2 * time.Minute).Unix()}), nil, wire.CodeUnauthenticated, "has expired"},
		"good for a year":      {w.token(map[string]any{"exp": w.now().Add(365 * 24 * time.Hour).Unix()}), nil, wire.CodeUnauthenticated, "too long"},
		"not yet":              {w.token(map[string]any{"nbf": w.now().Add(time.Hour).Unix()}), nil, wire.CodeUnauthenticated, "not valid yet"},
		"a shared secret":      {hs, nil, wire.CodeUnauthenticated, "malformed"},
		"another issuer":       {stranger.Sign(t, stranger.Claims(w.now(), "postern", map[string]any{"sub": podSubject})), nil, wire.CodeUnauthenticated, "trusts no issuer"},
		"another's signature":  {stranger.Sign(t, w.issuer.Claims(w.now(), "postern", map[string]any{"sub": podSubject})), nil, wire.CodeUnauthenticated, "not signed with a key of its issuer"},
		"another organization": {w.token(nil), func(r *api.TokenRequest) { r.Organization = "acme" }, wire.CodeUnauthenticated, "trusts no issuer"},
		"no organization":      {w.token(nil), func(r *api.TokenRequest) { r.Organization = "none" }, wire.CodeUnauthenticated, "trusts no issuer"},
		"another agent":        {w.token(nil), func(r *api.TokenRequest) { r.Name = "other" }, wire.CodeDenied, "as agent edge, and not as agent other"},
		"a proxy":              {w.token(nil), proxy("edge"), wire.CodeDenied, "and not as proxy edge"},
		"another's namespace":  {w.token(ofProxy), proxy("p-postern"), wire.CodeDenied, "as proxy p-prod"},
	} {
		_, err := w.enrol(tc.token, tc.change)
		wantFailure(t, name, err, tc.code, tc.text)
		w.advance(20 * time.Second) // the limit on failures is another test's
	}
	if n := stranger.Asked(); n != 0 {
		t.Errorf("an issuer that nobody trusts was asked %d times", n)
	}
}

// TestWorkloadAndOthers keeps the ways to enrol an agent apart.
func TestWorkloadAndOthers(t *testing.T) {
	w := newTrusting(t)
	ctx := t.Context()
	robot := w.robot("default", "bot").Token
	_, err := w.enrol(robot, nil)
	wantFailure(t, "a robot as the workload's agent", err, wire.CodeDenied, "enrolled by the workload tokens of trust cluster")
	if _, err := w.enrol(robot, func(r *api.TokenRequest) { r.Name = "other" }); err != nil {
		t.Error(err)
	}
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.admin.RegisterAgent(ctx, "default", api.RegisterAgent{ID: "edge", PublicKeys: []string{string(key.Public().PEM())}}); err != nil {
		t.Fatal(err)
	}
	_, err = w.enrol(w.token(nil), nil)
	wantFailure(t, "a workload as an agent with keys", err, wire.CodeDenied, "is registered with keys")
}

// TestWorkloadIssuerTrouble changes the issuer's key, and takes it away.
func TestWorkloadIssuerTrouble(t *testing.T) {
	w := newTrusting(t)
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Fatal(err)
	}
	w.advance(10 * time.Second)
	w.issuer.Rotate()
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	w.issuer.Down(true)
	w.advance(2 * time.Hour)
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Errorf("with the issuer down: %v", err)
	}
}

// TestWorkloadFlood shows a thousand tokens of a trusted issuer's name, each with a
// key that does not exist, and a thousand of issuers that nobody trusts.
func TestWorkloadFlood(t *testing.T) {
	w := newTrusting(t)
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Fatal(err)
	}
	before := w.issuer.Asked()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request := tokenRequest(t, "")
	for range 1000 {
		forged := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: rand.Text()}}
		for _, claims := range []map[string]any{{"sub": podSubject}, {"sub": podSubject, "iss": "https://" + rand.Text() + ".example.org"}} {
			request.SubjectToken = oidctest.Sign(t, forged, w.issuer.Claims(w.now(), "postern", claims))
			if _, err := w.client("").Exchange(t.Context(), request); err == nil {
				t.Fatal("a forged token is good")
			}
		}
	}
	// Once in three seconds, of however long this takes.
	if n := w.issuer.Asked() - before; n > 20 {
		t.Errorf("the issuer was asked %d times", n)
	}
	if _, err := w.enrol(w.token(nil), nil); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestTrustKeys(t *testing.T) {
	w := newTrusting(t)
	ctx := t.Context()
	set := func(keys ...jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	newKey := func(id string) jose.JSONWebKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return jose.JSONWebKey{Key: key, KeyID: id, Algorithm: "ES256"}
	}
	const issuer = "https://kubernetes.default.svc.cluster.local"
	one, two := newKey("one"), newKey("two")
	sign := func(key jose.JSONWebKey) string {
		return oidctest.Sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, w.issuer.Claims(w.now(), "postern", map[string]any{"iss": issuer, "sub": podSubject}))
	}
	if _, err := w.admin.CreateTrust(ctx, "default", w.trust(func(c *api.CreateTrust) {
		c.Name, c.Issuer, c.CA, c.Keys, c.Identity = "private", issuer, "", set(one.Public()), "inside"
	})); err != nil {
		t.Fatal(err)
	}
	inside := func(r *api.TokenRequest) { r.Name = "inside" }
	if _, err := w.enrol(sign(one), inside); err != nil {
		t.Error(err)
	}
	_, err := w.enrol(sign(two), inside)
	wantFailure(t, "before the rotation", err, wire.CodeUnauthenticated, "not signed")
	if err := w.admin.SetTrustKeys(ctx, "default", "private", set(two.Public())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.enrol(sign(two), inside); err != nil {
		t.Error(err)
	}
	_, err = w.enrol(sign(one), inside)
	wantFailure(t, "after the rotation", err, wire.CodeUnauthenticated, "not signed")
	for name, keys := range map[string]string{"none": "", "no JSON": "x", "empty": `{"keys":[]}`} {
		wantFailure(t, name, w.admin.SetTrustKeys(ctx, "default", "private", keys), wire.CodeBadRequest, "")
	}
	wantFailure(t, "of one that is asked", w.admin.SetTrustKeys(ctx, "default", "cluster", set(one.Public())), wire.CodeBadRequest, "asks the issuer")
}

func TestTrustRefused(t *testing.T) {
	w := newTrusting(t)
	for name, tc := range map[string]struct {
		change func(*api.CreateTrust)
		text   string
	}{
		"plain http":     {func(c *api.CreateTrust) { c.Issuer = "http://127.0.0.1:1" }, "want https://"},
		"no audience":    {func(c *api.CreateTrust) { c.Audiences = nil }, "without an audience"},
		"empty audience": {func(c *api.CreateTrust) { c.Audiences = []string{" "} }, "audience"},
		"no rule":        {func(c *api.CreateTrust) { c.Claims = nil }, "no rule says whose"},
		"no subject":     {func(c *api.CreateTrust) { c.Claims = []string{"groups=a"} }, "no rule says whose"},
		"any subject":    {func(c *api.CreateTrust) { c.Claims = []string{"sub=*"} }, "would let anybody"},
		"no identity":    {func(c *api.CreateTrust) { c.Identity = "" }, "name"},
		"bad identity":   {func(c *api.CreateTrust) { c.Identity = "{a}{b}" }, "one claim in braces"},
		"role":           {func(c *api.CreateTrust) { c.Role = "hub" }, "want agent or proxy"},
		"hub's proxy":    {func(c *api.CreateTrust) { c.Role, c.Identity = "proxy", "hub" }, "hub's own proxies"},
		"CA":             {func(c *api.CreateTrust) { c.CA = "x" }, "no certificate in PEM"},
		"unknown CA":     {func(c *api.CreateTrust) { c.CA = "" }, "cannot be asked"},
		"keys":           {func(c *api.CreateTrust) { c.Keys = "{}" }, "key"},
		"name":           {func(c *api.CreateTrust) { c.Name = "a/b" }, "trust"},
	} {
		_, err := w.admin.CreateTrust(t.Context(), "default", w.trust(func(c *api.CreateTrust) { c.Name = "other"; tc.change(c) }))
		wantFailure(t, name, err, wire.CodeBadRequest, tc.text)
	}
	_, err := w.admin.CreateTrust(t.Context(), "default", w.trust(nil))
	if !api.IsExists(err) {
		t.Errorf("twice: %v", err)
	}
	if err := w.admin.RemoveTrust(t.Context(), "default", "none"); !api.IsNotFound(err) {
		t.Errorf("remove one that is not: %v", err)
	}
}

// TestTrustOfTenants: who administers an organization, and not the hub, cannot have
// the hub look around in its own network.
func TestTrustOfTenants(t *testing.T) {
	p := newPeopled(t, nil)
	if _, err := p.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	p.grant("acme", "admin", "user:ann@example.org")
	inside := oidctest.New(t)
	asked := false
	inside.Mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { asked = true })
	w := &trusting{fixture: p.fixture, issuer: inside}
	_, err := p.client(p.user("ann@example.org").Token).CreateTrust(t.Context(), "acme", w.trust(nil))
	wantFailure(t, "an issuer on loopback", err, wire.CodeBadRequest, "not an address of the public Internet")
	if asked || inside.Asked() > 0 {
		t.Error("it was asked")
	}
	if _, err := p.admin.CreateTrust(t.Context(), "acme", w.trust(nil)); err != nil {
		t.Errorf("who administers the hub: %v", err)
	}
}

func newBusKey(t testing.TB) string {
	t.Helper()
	public, _, err := bus.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}
