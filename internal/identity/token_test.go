package identity_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
)

func newSigner(t testing.TB, domain string) *identity.TokenSigner {
	t.Helper()
	s, err := identity.NewTokenSigner(domain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func claims() identity.RobotClaims {
	at := now.UTC().Truncate(time.Second)
	return identity.RobotClaims{Organization: "acme", Robot: "deployer", AccessID: "0b7a", IssuedAt: at, Expires: at.Add(time.Hour)}
}

func TestRobotToken(t *testing.T) {
	s := newSigner(t, "a.test")
	want := claims()
	token, err := s.SignRobot(want)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := s.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := identity.LoadTokenSigner("a.test", keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	got, err := loaded.VerifyRobot(token, now)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if loaded.KeyID() != s.KeyID() {
		t.Error("key ID changed")
	}
	if _, err := loaded.VerifyRobot(token, want.Expires.Add(59*time.Second)); err != nil {
		t.Errorf("within leeway: %v", err)
	}
	if c, err := loaded.VerifyRobot(token, want.Expires.Add(2*time.Minute)); !errors.Is(err, identity.ErrTokenExpired) || c.AccessID != want.AccessID {
		t.Errorf("expired: %v, %v", c, err)
	}

	want.Expires = time.Time{}
	forever, err := s.SignRobot(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.VerifyRobot(forever, now.AddDate(50, 0, 0)); err != nil || !got.Expires.IsZero() {
		t.Errorf("without expiry: %v, %v", got, err)
	}
}

func TestRobotTokenRefused(t *testing.T) {
	s := newSigner(t, "a.test")
	token, _ := s.SignRobot(claims())
	foreign, _ := newSigner(t, "b.test").SignRobot(claims())
	sameName, _ := newSigner(t, "a.test").SignRobot(claims())
	head, rest, _ := strings.Cut(token, ".")
	body, sig, _ := strings.Cut(rest, ".")
	for name, tc := range map[string]struct {
		token string
		want  error
	}{
		"empty":          {"", identity.ErrTokenMalformed},
		"truncated":      {token[:len(token)-20], identity.ErrTokenSignature},
		"no signature":   {head + "." + body, identity.ErrTokenMalformed},
		"long":           {strings.Repeat("a", identity.MaxTokenLen+1), identity.ErrTokenMalformed},
		"alg none":       {"eyJhbGciOiJub25lIn0." + body + ".", identity.ErrTokenMalformed},
		"other hub":      {foreign, identity.ErrTokenIssuer},
		"same name":      {sameName, identity.ErrTokenSignature},
		"changed":        {head + "." + body[:len(body)-2] + "AA." + sig, identity.ErrTokenSignature},
		"other type":     {rawToken(t, s, "at+jwt", `{"iss":"a.test","sub":"robot:x","org":"acme","jti":"1"}`), identity.ErrTokenMalformed},
		"no type":        {rawToken(t, s, "", `{"iss":"a.test","sub":"robot:x","org":"acme","jti":"1"}`), identity.ErrTokenMalformed},
		"other subject":  {rawToken(t, s, "postern-robot+jwt", `{"iss":"a.test","sub":"user:x","org":"acme","jti":"1"}`), identity.ErrTokenMalformed},
		"foreign issuer": {rawToken(t, s, "postern-robot+jwt", `{"iss":"b.test","sub":"robot:x","org":"acme","jti":"1"}`), identity.ErrTokenIssuer},
		"bad name":       {rawToken(t, s, "postern-robot+jwt", `{"iss":"a.test","sub":"robot:X Y","org":"acme","jti":"1"}`), identity.ErrTokenMalformed},
		"not an object":  {rawToken(t, s, "postern-robot+jwt", `[]`), identity.ErrTokenMalformed},
	} {
		_, err := s.VerifyRobot(tc.token, now)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: error %v, want %v", name, err, tc.want)
		}
		if err != nil && len(tc.token) > 40 && strings.Contains(err.Error(), tc.token[:40]) {
			t.Errorf("%s: error quotes the token", name)
		}
	}
}

// rawToken signs any payload with s's key.
func rawToken(t *testing.T, s *identity.TokenSigner, typ, payload string) string {
	t.Helper()
	keyPEM, err := s.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	opts := &jose.SignerOptions{}
	if typ != "" {
		opts = opts.WithType(jose.ContentType(typ))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: edKey(t, keyPEM)}, opts)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	out, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRobotTokenAnyNames(t *testing.T) {
	s := newSigner(t, "a.test")
	name := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		want := identity.RobotClaims{
			Organization: name.Draw(t, "org"), Robot: name.Draw(t, "robot"), AccessID: name.Draw(t, "id"),
			IssuedAt: time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "iat"), 0).UTC(),
		}
		token, err := s.SignRobot(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.VerifyRobot(token, now)
		if err != nil || got != want {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
	})
}

func FuzzVerifyRobot(f *testing.F) {
	s := newSigner(f, "a.test")
	token, err := s.SignRobot(claims())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("..")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(`{"payload":"e30","signature":"","protected":"e30"}`)
	f.Fuzz(func(t *testing.T, in string) {
		c, err := s.VerifyRobot(in, now)
		if err == nil && c != claims() {
			t.Fatalf("forged a token: %q says %v", in, c)
		}
	})
}
