package identity_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/identity"
)

// big2048 makes odd numbers of a size, in the place of RSA moduli that take long
// to find.
type big2048 struct{ n big.Int }

func (b *big2048) number() *big.Int { return b.bits(2048) }

func (b *big2048) bits(n int) *big.Int {
	return b.n.SetBit(b.n.SetInt64(1), n-1, 1)
}

var assertedAt = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func asserted() identity.Claims {
	return identity.Claims{TrustDomain: "hub.test", Organization: "acme", Agent: "edge", Request: "digest"}
}

func agentKey(t testing.TB, kind string) *identity.AgentKey {
	t.Helper()
	k, err := identity.NewAgentKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAssertion(t *testing.T) {
	for _, kind := range []string{identity.KeyEd25519, identity.KeyECDSAP256, identity.KeyECDSAP384, identity.KeyRSA} {
		key := agentKey(t, kind)
		token, err := key.SignAssertion(asserted(), assertedAt)
		if err != nil {
			t.Fatal(err)
		}
		if !identity.IsAssertion(token) {
			t.Errorf("%s: not known as an assertion", kind)
		}
		a, err := identity.ParseAssertion(token)
		if err != nil {
			t.Fatal(kind, err)
		}
		want := asserted()
		want.ID, want.IssuedAt, want.Expires = a.Claims.ID, assertedAt, assertedAt.Add(2*time.Minute)
		if a.Claims != want || len(a.Claims.ID) < 20 || a.KeyID != key.Public().ID() {
			t.Errorf("%s: %+v", kind, a)
		}
		if err := a.Verify(key.Public(), "hub.test", assertedAt); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for _, tc := range []struct {
			now    time.Time
			domain string
			want   error
		}{
			{assertedAt.Add(-time.Minute), "hub.test", nil},
			{assertedAt.Add(-time.Minute - time.Second), "hub.test", identity.ErrAssertionEarly},
			{assertedAt.Add(3 * time.Minute), "hub.test", nil},
			{assertedAt.Add(3*time.Minute + time.Second), "hub.test", identity.ErrTokenExpired},
			{assertedAt, "other.test", identity.ErrAssertionAudience},
		} {
			if err := a.Verify(key.Public(), tc.domain, tc.now); !errors.Is(err, tc.want) {
				t.Errorf("%s at %s for %s: %v, want %v", kind, tc.now, tc.domain, err, tc.want)
			}
		}
		if err := a.Verify(agentKey(t, identity.KeyEd25519).Public(), "hub.test", assertedAt); !errors.Is(err, identity.ErrTokenSignature) {
			t.Errorf("%s: another key: %v", kind, err)
		}
		changed := token[:len(token)-8] + "AAAAAAAA"
		if a, err := identity.ParseAssertion(changed); err == nil {
			if err := a.Verify(key.Public(), "hub.test", assertedAt); !errors.Is(err, identity.ErrTokenSignature) {
				t.Errorf("%s: changed signature: %v", kind, err)
			}
		}
		if !a.Forgettable().Equal(assertedAt.Add(3 * time.Minute)) {
			t.Errorf("%s: forgettable at %s", kind, a.Forgettable())
		}
	}
}

// sign makes a JWT as others might: payload and header are free.
func sign(t testing.TB, key *identity.AgentKey, kid, typ string, payload map[string]any) string {
	t.Helper()
	der, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(der)
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: kid}},
		(&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signer.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAssertionRefused(t *testing.T) {
	key := agentKey(t, identity.KeyEd25519)
	kid, iat := key.Public().ID(), assertedAt.Unix()
	payload := func(change string, value any) map[string]any {
		p := map[string]any{"iss": "edge", "sub": "edge", "aud": "hub.test", "org": "acme", "req": "d", "jti": "1", "iat": iat, "exp": iat + 60}
		if value == nil {
			delete(p, change)
		} else if change != "" {
			p[change] = value
		}
		return p
	}
	for name, tc := range map[string]struct {
		kid, typ string
		payload  map[string]any
		want     error
	}{
		"good":          {kid, identity.AssertionType, payload("", nil), nil},
		"aud in a list": {kid, identity.AssertionType, payload("aud", []string{"hub.test"}), nil},
		"two audiences": {kid, identity.AssertionType, payload("aud", []string{"hub.test", "b"}), identity.ErrTokenMalformed},
		"no audience":   {kid, identity.AssertionType, payload("aud", nil), identity.ErrAssertionAudience},
		"type JWT":      {kid, "JWT", payload("", nil), identity.ErrTokenMalformed},
		"robot's type":  {kid, "postern-robot+jwt", payload("", nil), identity.ErrTokenMalformed},
		"kid":           {"../x", identity.AssertionType, payload("", nil), identity.ErrTokenMalformed},
		"other kid":     {strings.Repeat("0", 64), identity.AssertionType, payload("", nil), identity.ErrTokenSignature},
		"iss":           {kid, identity.AssertionType, payload("iss", "other"), identity.ErrTokenMalformed},
		"no iss":        {kid, identity.AssertionType, payload("iss", nil), identity.ErrTokenMalformed},
		"org":           {kid, identity.AssertionType, payload("org", "a.b"), identity.ErrTokenMalformed},
		"no jti":        {kid, identity.AssertionType, payload("jti", nil), identity.ErrTokenMalformed},
		"long jti":      {kid, identity.AssertionType, payload("jti", strings.Repeat("x", 129)), identity.ErrTokenMalformed},
		"no iat":        {kid, identity.AssertionType, payload("iat", nil), identity.ErrTokenMalformed},
		"no exp":        {kid, identity.AssertionType, payload("exp", nil), identity.ErrTokenMalformed},
		"exp a text":    {kid, identity.AssertionType, payload("exp", "soon"), identity.ErrTokenMalformed},
		"exp huge":      {kid, identity.AssertionType, payload("exp", int64(1)<<62), identity.ErrTokenMalformed},
		"long":          {kid, identity.AssertionType, payload("exp", iat+301), identity.ErrAssertionLong},
		"nbf":           {kid, identity.AssertionType, payload("nbf", iat+61), identity.ErrAssertionEarly},
		"old":           {kid, identity.AssertionType, payload("exp", iat-61), identity.ErrTokenExpired},
	} {
		a, err := identity.ParseAssertion(sign(t, key, tc.kid, tc.typ, tc.payload))
		if err == nil {
			err = a.Verify(key.Public(), "hub.test", assertedAt)
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"`+identity.AssertionType+`"}`)) + ".e30."
	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key.Public().PEM()}, (&jose.SignerOptions{}).WithType(identity.AssertionType))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := hmac.Sign([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	confused, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"none": none, "HMAC with the public key": confused, "long": strings.Repeat("a", 5000), "empty": ""} {
		if _, err := identity.ParseAssertion(token); !errors.Is(err, identity.ErrTokenMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseAssertion(f *testing.F) {
	key := agentKey(f, identity.KeyEd25519)
	good, err := key.SignAssertion(asserted(), assertedAt)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		a, err := identity.ParseAssertion(token)
		if err != nil {
			if !errors.Is(err, identity.ErrTokenMalformed) {
				t.Fatal(err)
			}
			return
		}
		c := a.Claims
		if identity.ValidateName("agent", c.Agent) != nil || identity.ValidateName("organization", c.Organization) != nil || identity.ValidateKeyID(a.KeyID) != nil {
			t.Fatalf("%q gave %+v", token, a)
		}
		err = a.Verify(key.Public(), "hub.test", assertedAt)
		want := asserted()
		want.ID, want.IssuedAt, want.Expires = c.ID, c.IssuedAt, c.Expires
		if err == nil && c != want {
			t.Fatalf("%q is a forgery: %+v", token, c)
		}
	})
}
