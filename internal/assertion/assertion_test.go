package assertion

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/orders"
)

// now is when the tests take place.
func now() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

// hub is a hub's key with what agents know of it.
type hub struct {
	signer *Signer
	key    ed25519.PrivateKey
	public string
}

func newHub(t testing.TB) hub {
	t.Helper()
	seed, err := orders.NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	key, err := orders.ParseSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := NewSigner(key.Private())
	if err != nil {
		t.Fatal(err)
	}
	return hub{signer, key.Private(), key.Public()}
}

func (h hub) verifier() *Verifier {
	return NewVerifier(func() []string { return []string{"nonsense", h.public} }, "acme", "office")
}

func (h hub) sign(t testing.TB, c Claims) string {
	t.Helper()
	text, err := h.signer.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// raw signs a payload and a type as they are.
func (h hub) raw(t testing.TB, typ, payload string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: h.key}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sample() Claims {
	return Claims{
		Organization: "acme", Agent: "office", Method: "GET", URI: "/api/v1/pods?limit=500", IssuedAt: now(),
		Mode: ModeImpersonate, Principal: "user:ann@example.org", Groups: []string{"sre"},
		Impersonate: Identity{
			User: "ann@example.org", UID: "7", Groups: []string{"sre", "system:authenticated"},
			Extra: map[string][]string{"postern.dev/principal": {"user:ann@example.org"}},
		},
		As:      Identity{User: "bob", Groups: []string{"g"}},
		Service: &Service{"https", "monitoring", "grafana", "web"},
		Client:  "192.0.2.7", Trace: "0af7651916cd43dd8448eb211c80319c",
	}
}

func TestSignAndVerify(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	v := h.verifier()
	want := sample()
	text := h.sign(t, want)
	got, err := v.Verify(text, "GET", "/api/v1/pods?limit=500", now())
	if err != nil {
		t.Fatal(err)
	}
	want.ID, want.Expires = got.ID, now().Add(Life)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := v.Verify(text, "GET", "/api/v1/pods?limit=500", now()); !errors.Is(err, ErrReplayed) {
		t.Errorf("the second time: %v", err)
	}
	if text == h.sign(t, sample()) {
		t.Error("two assertions of the same are the same text")
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	h, other := newHub(t), newHub(t)
	const uri = "/api/v1/pods?limit=500"
	good := h.sign(t, sample())
	with := func(change func(*Claims)) string {
		c := sample()
		change(&c)
		return h.sign(t, c)
	}
	head, rest, _ := strings.Cut(good, ".")
	body, signature, _ := strings.Cut(rest, ".")
	plain := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"` + Type + `"}`))
	symmetric := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"` + Type + `"}`))
	payload := func(change string) string {
		return `{"aud":"acme/office","jti":"1","iat":1772600767,"exp":1772600797,"req":"` + request("GET", uri) +
			`","sub":"user:ann","mode":"pass"` + change + `}`
	}
	if _, err := h.verifier().Verify(h.raw(t, Type, payload("")), "GET", uri, now()); err != nil {
		t.Fatalf("the payload that others change is not good: %v", err)
	}
	for name, tt := range map[string]struct {
		text, method, uri string
		at                time.Duration
		want              error
	}{
		"another hub's":         {other.sign(t, sample()), "GET", uri, 0, ErrForged},
		"changed":               {head + "." + body[:len(body)-2] + "AA." + signature, "GET", uri, 0, ErrForged},
		"no signature":          {head + "." + body + ".", "GET", uri, 0, ErrForged},
		"algorithm none":        {plain + "." + body + ".", "GET", uri, 0, ErrMalformed},
		"symmetric":             {symmetric + "." + body + "." + signature, "GET", uri, 0, ErrMalformed},
		"another type":          {h.raw(t, "client-authentication+jwt", payload("")), "GET", uri, 0, ErrMalformed},
		"no text":               {"", "GET", uri, 0, ErrMalformed},
		"very long":             {good + strings.Repeat("A", MaxLen), "GET", uri, 0, ErrMalformed},
		"another agent":         {with(func(c *Claims) { c.Agent = "plant" }), "GET", uri, 0, ErrForeign},
		"another organization":  {with(func(c *Claims) { c.Organization = "other" }), "GET", uri, 0, ErrForeign},
		"late":                  {good, "GET", uri, Life + Skew + time.Second, ErrLate},
		"early":                 {good, "GET", uri, -Skew - time.Second, ErrEarly},
		"another method":        {good, "DELETE", uri, 0, ErrRequest},
		"another path":          {good, "GET", "/api/v1/secrets?limit=500", 0, ErrRequest},
		"another query":         {good, "GET", "/api/v1/pods", 0, ErrRequest},
		"escaped otherwise":     {good, "GET", "/api/v1/%70ods?limit=500", 0, ErrRequest},
		"moved border":          {good, "GET /api/v1/pods", "", 0, ErrRequest},
		"long life":             {h.raw(t, Type, payload(`,"exp":1772610000`)), "GET", uri, 0, ErrMalformed},
		"no end":                {h.raw(t, Type, payload(`,"exp":0`)), "GET", uri, 0, ErrMalformed},
		"mode of a newer hub":   {h.raw(t, Type, payload(`,"mode":"root"`)), "GET", uri, 0, ErrMalformed},
		"nobody":                {h.raw(t, Type, payload(`,"mode":"impersonate"`)), "GET", uri, 0, ErrMalformed},
		"self as somebody":      {h.raw(t, Type, payload(`,"mode":"self","impersonate":{"user":"root"}`)), "GET", uri, 0, ErrMalformed},
		"a wish without a user": {h.raw(t, Type, payload(`,"mode":"impersonate","impersonate":{"user":"a"},"as":{"groups":["g"]}`)), "GET", uri, 0, ErrMalformed},
		"no principal":          {h.raw(t, Type, payload(`,"sub":""`)), "GET", uri, 0, ErrMalformed},
		"no ID":                 {h.raw(t, Type, payload(`,"jti":""`)), "GET", uri, 0, ErrMalformed},
		"a long ID":             {h.raw(t, Type, payload(`,"jti":"`+strings.Repeat("x", maxID+1)+`"`)), "GET", uri, 0, ErrMalformed},
		"a service over ftp":    {h.raw(t, Type, payload(`,"service":{"scheme":"ftp","namespace":"a","name":"b","port":"1"}`)), "GET", uri, 0, ErrMalformed},
		"a service of no name":  {h.raw(t, Type, payload(`,"service":{"scheme":"http","namespace":"a","port":"1"}`)), "GET", uri, 0, ErrMalformed},
		"no JSON":               {h.raw(t, Type, `[]`), "GET", uri, 0, ErrMalformed},
	} {
		v := h.verifier()
		if c, err := v.Verify(tt.text, tt.method, tt.uri, now().Add(tt.at)); !errors.Is(err, tt.want) || c.Principal != "" {
			t.Errorf("%s: got %+v, %v; want %v", name, c, err, tt.want)
		}
		// What was refused has not used up a good one.
		if _, err := v.Verify(good, "GET", uri, now()); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	if _, err := NewVerifier(func() []string { return nil }, "acme", "office").Verify(good, "GET", uri, now()); !errors.Is(err, ErrForged) {
		t.Errorf("without keys: %v", err)
	}
}

// TestClocks: clocks may differ by a minute, in either direction.
func TestClocks(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, d := range []time.Duration{-Skew, -time.Second, 0, Life, Life + Skew} {
		if _, err := h.verifier().Verify(h.sign(t, sample()), "GET", sample().URI, now().Add(d)); err != nil {
			t.Errorf("%s: %v", d, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	c := sample()
	for i := range 2000 {
		c.Impersonate.Groups = append(c.Impersonate.Groups, fmt.Sprintf("a-group-with-a-long-name-%d", i))
	}
	if _, err := h.signer.Sign(c); !errors.Is(err, ErrTooLong) {
		t.Errorf("2000 groups: %v", err)
	}
	c = sample()
	c.Mode = ""
	if _, err := h.signer.Sign(c); !errors.Is(err, ErrMalformed) {
		t.Errorf("no mode: %v", err)
	}
}

// TestMemory: what is remembered is bounded, full means refused, and what cannot be
// used any more is forgotten.
func TestMemory(t *testing.T) {
	t.Parallel()
	m := memory{limit: 3}
	until := now().Add(Life + Skew)
	for _, id := range []string{"a", "b", "c"} {
		if err := m.use(id, until, now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.use("a", until, until); !errors.Is(err, ErrReplayed) {
		t.Errorf("known until its end: %v", err)
	}
	if err := m.use("d", until, until); !errors.Is(err, ErrBusy) {
		t.Errorf("full: %v", err)
	}
	later := until.Add(2 * span)
	if err := m.use("d", later.Add(Life), later); err != nil || m.count != 1 || len(m.generations) != 1 {
		t.Errorf("after the end: %v, %d remembered in %d generations", err, m.count, len(m.generations))
	}
}

// FuzzPayload: whatever a hub signs is refused or well formed.
func FuzzPayload(f *testing.F) {
	h := newHub(f)
	for _, c := range []Claims{sample(), {Organization: "acme", Agent: "office", IssuedAt: now(), Mode: ModeSelf, Principal: "hub:h"}} {
		signed, err := jose.ParseSignedCompact(h.sign(f, c), []jose.SignatureAlgorithm{jose.EdDSA})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(signed.UnsafePayloadWithoutVerification()))
	}
	f.Add(`{"aud":"acme/office","iat":-1,"exp":1e30}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := h.verifier().Verify(h.raw(t, Type, text), "GET", sample().URI, now())
		if err != nil {
			return
		}
		if c.Organization != "acme" || c.Agent != "office" || c.Principal == "" || c.Mode == ModeImpersonate && c.Impersonate.User == "" {
			t.Fatalf("%s gives %+v", text, c)
		}
		if _, err := h.signer.Sign(c); err != nil && !errors.Is(err, ErrTooLong) {
			t.Fatal(err)
		}
	})
}

// FuzzText: no text that the hub has not signed is believed, nor breaks anything.
func FuzzText(f *testing.F) {
	h, other := newHub(f), newHub(f)
	f.Add(other.sign(f, sample()))
	f.Add("a.b.c")
	f.Add(`{"payload":"","signatures":[]}`)
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := h.verifier().Verify(text, "GET", "/", now()); err == nil {
			t.Fatalf("%q is believed: %+v", text, c)
		}
	})
}

func TestPayloadIsStable(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	c := Claims{Organization: "acme", Agent: "office", ID: "1", Method: "GET", URI: "/", IssuedAt: now(), Mode: ModePass, Principal: "user:ann"}
	signed, err := jose.ParseSignedCompact(h.sign(t, c), []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"aud": "acme/office", "jti": "1", "iat": 1772600767.0, "exp": 1772600797.0, "req": request("GET", "/"), "mode": "pass", "sub": "user:ann",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkSign(b *testing.B) {
	h := newHub(b)
	c := sample()
	b.ReportAllocs()
	for b.Loop() {
		h.sign(b, c)
	}
}

func BenchmarkVerify(b *testing.B) {
	h := newHub(b)
	v := h.verifier()
	for b.Loop() {
		b.StopTimer()
		text := h.sign(b, sample())
		b.StartTimer()
		if _, err := v.Verify(text, "GET", sample().URI, now()); err != nil {
			b.Fatal(err)
		}
	}
}
