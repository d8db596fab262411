package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Verify checks a token of an issuer: signature, issuer, audience, expiry and start
// of validity, the last two with Leeway. Errors are one of the Err… with details;
// none quotes the token.
func (v *Verifier) Verify(ctx context.Context, i Issuer, token string) (*Claims, error) {
	algorithms, err := i.algorithms()
	if err != nil {
		return nil, err
	}
	if len(i.Audiences) == 0 {
		return nil, errors.New("verify token: no audience is expected")
	}
	if len(token) > MaxToken {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are possible", ErrMalformed, len(token), MaxToken)
	}
	sig, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, fmt.Errorf("%w: not a JWT signed with one of %v", ErrMalformed, algorithms)
	}
	// What it says decides only whether it is worth to look for keys.
	if c, err := parseClaims(sig.UnsafePayloadWithoutVerification()); err != nil {
		return nil, err
	} else if err := c.check(i, v.now()); err != nil {
		return nil, err
	}
	payload, err := v.verify(ctx, i, sig)
	if err != nil {
		return nil, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return nil, err
	}
	return c, c.check(i, v.now())
}

// verify returns the payload of what one of the issuer's keys signed.
func (v *Verifier) verify(ctx context.Context, i Issuer, sig *jose.JSONWebSignature) ([]byte, error) {
	header := sig.Signatures[0].Protected
	keys, err := v.keys(ctx, i, header.KeyID)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		// A key that says what it is for is not used for anything else.
		if !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" || k.Algorithm != "" && k.Algorithm != header.Algorithm ||
			header.KeyID != "" && k.KeyID != header.KeyID {
			continue
		}
		if payload, err := sig.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	return nil, ErrSignature
}

// Claims is what a token says, checked. It is immutable and safe for concurrent
// use.
type Claims struct {
	Issuer   string
	Subject  string
	Audience []string
	IssuedAt time.Time // zero: not told
	Expires  time.Time
	ID       string // "jti"; may be empty

	all map[string]any
	nbf time.Time
}

// String returns a claim that is a text, or "".
func (c *Claims) String(path ...string) string {
	s, _ := c.Lookup(path...).(string)
	return s
}

// Strings returns a claim that is a list of texts, or a single one as a list.
// What is no text is left out.
func (c *Claims) Strings(path ...string) []string {
	switch value := c.Lookup(path...).(type) {
	case string:
		return []string{value}
	case []any:
		var out []string
		for _, one := range value {
			if s, ok := one.(string); ok {
				out = append(out, s)
			}
		}
		return out
	default:
		return nil
	}
}

// Bool reports whether a claim is true: as JSON, or as the text that some
// issuers send.
func (c *Claims) Bool(path ...string) bool {
	value := c.Lookup(path...)
	return value == true || value == "true"
}

// Lookup returns the value of a claim, or nil: of the member with that name, or of
// one within objects. Numbers are json.Number.
func (c *Claims) Lookup(path ...string) any {
	var at any = c.all
	for _, name := range path {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[name]
	}
	return at
}

// Match reports whether a claim is the text want, or a list that holds it. A
// number or a truth value matches as JSON writes it.
func (c *Claims) Match(want string, path ...string) bool {
	same := func(value any) bool {
		switch value := value.(type) {
		case string:
			return value == want
		case json.Number:
			return value.String() == want
		case bool:
			return fmt.Sprint(value) == want
		}
		return false
	}
	value := c.Lookup(path...)
	if several, ok := value.([]any); ok {
		return slices.ContainsFunc(several, same)
	}
	return same(value)
}

// parseClaims reads a token's payload.
func parseClaims(payload []byte) (*Claims, error) {
	dec := json.NewDecoder(strings.NewReader(string(payload)))
	dec.UseNumber()
	c := &Claims{}
	if err := dec.Decode(&c.all); err != nil || c.all == nil {
		return nil, fmt.Errorf("%w: its payload is no JSON object", ErrMalformed)
	}
	c.Issuer, c.Subject, c.Audience, c.ID = c.String("iss"), c.String("sub"), c.Strings("aud"), c.String("jti")
	var ok [3]bool
	c.IssuedAt, ok[0] = c.time("iat")
	c.Expires, ok[1] = c.time("exp")
	c.nbf, ok[2] = c.time("nbf")
	switch {
	case c.Issuer == "" || c.Subject == "" || c.Expires.IsZero():
		return nil, fmt.Errorf("%w: one of iss, sub and exp is missing", ErrMalformed)
	case ok != [3]bool{true, true, true}:
		return nil, fmt.Errorf("%w: one of iat, exp and nbf is no time", ErrMalformed)
	}
	return c, nil
}

// maxSeconds is the latest time that is taken for one: the year 9999.
const maxSeconds = 253402300799

// time returns a claim that counts seconds since 1970; zero if there is none.
func (c *Claims) time(name string) (time.Time, bool) {
	value, found := c.all[name]
	if !found {
		return time.Time{}, true
	}
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := number.Float64()
	if err != nil || !(seconds >= 0 && seconds <= maxSeconds) {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}

// check holds the claims against what is expected of the issuer's tokens.
func (c *Claims) check(i Issuer, now time.Time) error {
	switch {
	case c.Issuer != i.URL:
		return fmt.Errorf("%w: %.200q, and %s is expected", ErrIssuer, c.Issuer, i.URL)
	case !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(i.Audiences, a) }):
		return fmt.Errorf("%w: %.200q, and %q is expected", ErrAudience, c.Audience, i.Audiences)
	case now.After(c.Expires.Add(Leeway)):
		return fmt.Errorf("%w: at %s", ErrExpired, c.Expires.Format(time.RFC3339))
	case now.Add(Leeway).Before(c.nbf):
		return fmt.Errorf("%w: before %s", ErrEarly, c.nbf.Format(time.RFC3339))
	case now.Add(Leeway).Before(c.IssuedAt):
		return fmt.Errorf("%w: it was issued at %s", ErrEarly, c.IssuedAt.Format(time.RFC3339))
	}
	return nil
}

// All returns what the token says, as decoded from JSON with numbers as json.Number.
// It must not be changed.
func (c *Claims) All() map[string]any { return c.all }

// UnverifiedIssuer returns which issuer a token says it is of, or "" if it is no
// token. Nobody has proved it: it tells only by whose keys to verify.
func UnverifiedIssuer(token string) string {
	issuer, _ := Unverified(token)
	return issuer
}

// Unverified returns which issuer a token says it is of, and for whom; nothing if it is
// no token. Nobody has proved it: it tells only by which rules to verify.
func Unverified(token string) (issuer string, audience []string) {
	if len(token) > MaxToken {
		return "", nil
	}
	sig, err := jose.ParseSignedCompact(token, knownAlgorithms())
	if err != nil {
		return "", nil
	}
	var all map[string]any
	if json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &all) != nil {
		return "", nil
	}
	c := &Claims{all: all}
	return c.String("iss"), c.Strings("aud")
}
