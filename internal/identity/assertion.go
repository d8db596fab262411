package identity

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// AssertionType is the "typ" of an assertion's header (RFC 8725 §3.11). What
	// else a key may have signed can thereby not pass for an assertion.
	AssertionType = "client-authentication+jwt"

	// MaxAssertionLife is the most that may lie between an assertion's "iat" and
	// "exp".
	MaxAssertionLife = 5 * time.Minute

	// assertionLife is how long the assertions are good that we make.
	assertionLife = 2 * time.Minute

	// maxJTI bounds an assertion's "jti", in bytes.
	maxJTI = 128
)

// Why an assertion was refused, beside ErrTokenMalformed, ErrTokenSignature and
// ErrTokenExpired.
var (
	ErrAssertionAudience = errors.New("assertion is for another hub")
	ErrAssertionEarly    = errors.New("assertion is from the future")
	ErrAssertionLong     = errors.New("assertion lives too long")
)

// assertionAlgorithms are the algorithms that an assertion may be signed with.
// Each kind of key has one: NewPublicKey says which.
func assertionAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.ES384, jose.PS256}
}

// Claims is what an agent asserts of itself (RFC 7523 §3).
type Claims struct {
	TrustDomain  string // the audience: the hub that it is made for
	Organization string
	Agent        string // issuer and subject: the agent's ID
	Request      string // the digest of the request that it is for; see api.TokenRequest
	ID           string // "jti"; Sign draws one if it is empty
	IssuedAt     time.Time
	Expires      time.Time
}

// assertionPayload is the JWT payload of an assertion.
type assertionPayload struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Org       string   `json:"org"`
	Request   string   `json:"req"`
	ID        string   `json:"jti"`
	IssuedAt  int64    `json:"iat"`           // seconds since 1970
	NotBefore int64    `json:"nbf,omitempty"` // the same
	Expires   int64    `json:"exp"`           // the same
}

// audience is a JWT's "aud": a text, or a list that must have one member, since
// an assertion for two hubs could be shown to one by the other.
type audience string

// UnmarshalJSON reads both forms.
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*a = audience(one)
		return nil
	}
	var list []string
	if err := json.Unmarshal(b, &list); err != nil || len(list) != 1 {
		return errors.New("aud is not one text")
	}
	*a = audience(list[0])
	return nil
}

// SignAssertion returns an assertion of c that is good for two minutes from now.
// It draws the ID.
func (k *AgentKey) SignAssertion(c Claims, now time.Time) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: k.public.algorithm, Key: jose.JSONWebKey{Key: k.signer, KeyID: k.public.ID()}},
		(&jose.SignerOptions{}).WithType(AssertionType))
	if err != nil {
		return "", fmt.Errorf("make assertion: %w", err)
	}
	payload, err := json.Marshal(assertionPayload{
		Issuer: c.Agent, Subject: c.Agent, Audience: audience(c.TrustDomain), Org: c.Organization, Request: c.Request, ID: rand.Text(),
		IssuedAt: now.Unix(), Expires: now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("encode assertion: %w", err)
	}
	sig, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	return sig.CompactSerialize()
}

// Assertion is one that was parsed and not verified yet.
type Assertion struct {
	Claims Claims // nobody has proved them before Verify
	KeyID  string // of the key that is said to have signed it

	signature *jose.JSONWebSignature
	algorithm string
	notBefore time.Time
}

// IsAssertion reports whether a token says that it is an assertion.
func IsAssertion(token string) bool {
	_, err := parseAssertionHeader(token)
	return err == nil
}

func parseAssertionHeader(token string) (*jose.JSONWebSignature, error) {
	if len(token) > MaxTokenLen {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTokenMalformed, len(token), MaxTokenLen)
	}
	sig, err := jose.ParseSignedCompact(token, assertionAlgorithms())
	if err != nil {
		return nil, fmt.Errorf("%w: not a JWT signed with EdDSA, ES256, ES384 or PS256", ErrTokenMalformed)
	}
	if typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != AssertionType {
		return nil, fmt.Errorf("%w: its type is not %s", ErrTokenMalformed, AssertionType)
	}
	return sig, nil
}

// ParseAssertion reads an assertion. What it says is to be believed after Verify
// only. Errors are ErrTokenMalformed and do not quote it.
func ParseAssertion(token string) (*Assertion, error) {
	sig, err := parseAssertionHeader(token)
	if err != nil {
		return nil, err
	}
	header := sig.Signatures[0].Protected
	if err := ValidateKeyID(header.KeyID); err != nil {
		return nil, fmt.Errorf("%w: kid is not a key ID", ErrTokenMalformed)
	}
	var p assertionPayload
	if err := json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &p); err != nil {
		return nil, fmt.Errorf("%w: its payload is not an assertion's", ErrTokenMalformed)
	}
	switch {
	case p.Subject == "" || p.Issuer != p.Subject:
		return nil, fmt.Errorf("%w: iss and sub are not the agent's ID both", ErrTokenMalformed)
	case ValidateName("agent ID", p.Subject) != nil || ValidateName("organization", p.Org) != nil:
		return nil, fmt.Errorf("%w: sub or org is not a name", ErrTokenMalformed)
	case p.ID == "" || len(p.ID) > maxJTI:
		return nil, fmt.Errorf("%w: jti has %d bytes, want 1 to %d", ErrTokenMalformed, len(p.ID), maxJTI)
	case p.IssuedAt <= 0 || p.Expires <= 0 || p.IssuedAt > maxTime || p.Expires > maxTime || p.NotBefore < 0 || p.NotBefore > maxTime:
		return nil, fmt.Errorf("%w: iat or exp is missing, or is no time", ErrTokenMalformed)
	}
	a := &Assertion{
		KeyID: header.KeyID, signature: sig, algorithm: header.Algorithm,
		Claims: Claims{
			TrustDomain: string(p.Audience), Organization: p.Org, Agent: p.Subject, Request: p.Request, ID: p.ID,
			IssuedAt: time.Unix(p.IssuedAt, 0).UTC(), Expires: time.Unix(p.Expires, 0).UTC(),
		},
	}
	if p.NotBefore != 0 {
		a.notBefore = time.Unix(p.NotBefore, 0).UTC()
	}
	return a, nil
}

// maxTime is the last second of the year 9999, which every clock library can write.
const maxTime = 253402300799

// Verify checks that key signed the assertion, for this trust domain, and that it
// is of now, give or take a minute. That it is used once is the caller's to
// check, until Claims.Expires and a minute have passed.
func (a *Assertion) Verify(key PublicKey, trustDomain string, now time.Time) error {
	if a.algorithm != string(key.algorithm) || a.KeyID != key.ID() {
		return ErrTokenSignature
	}
	if _, err := a.signature.Verify(key.key); err != nil {
		return ErrTokenSignature
	}
	c := a.Claims
	begins := c.IssuedAt
	if a.notBefore.After(begins) {
		begins = a.notBefore
	}
	switch {
	case c.TrustDomain != trustDomain:
		return fmt.Errorf("%w: %.100q, and this one is %s", ErrAssertionAudience, c.TrustDomain, trustDomain)
	case c.Expires.Sub(c.IssuedAt) > MaxAssertionLife:
		return fmt.Errorf("%w: %s, at most %s are allowed", ErrAssertionLong, c.Expires.Sub(c.IssuedAt), MaxAssertionLife)
	case now.After(c.Expires.Add(tokenLeeway)):
		return fmt.Errorf("%w: at %s", ErrTokenExpired, c.Expires.Format(time.RFC3339))
	case begins.After(now.Add(tokenLeeway)):
		return fmt.Errorf("%w: of %s", ErrAssertionEarly, begins.Format(time.RFC3339))
	}
	return nil
}

// Forgettable returns from when on an assertion is refused because of its age, so
// that its ID need not be remembered any longer.
func (a *Assertion) Forgettable() time.Time { return a.Claims.Expires.Add(tokenLeeway) }
