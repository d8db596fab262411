package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxTokenLen bounds the length of a token in bytes; longer ones are not parsed.
	MaxTokenLen = 4096

	// tokenType is the "typ" of a robot token's header (RFC 8725 §3.11), so that
	// no other JWT signed by the same key can pass for one.
	tokenType = "postern-robot+jwt"

	robotPrefix = "robot:"

	// tokenLeeway is how long after its expiry a token is still taken: clocks differ.
	tokenLeeway = time.Minute
)

// Why a token was refused.
var (
	ErrTokenMalformed = errors.New("token is malformed")
	ErrTokenSignature = errors.New("token was not signed by this hub, or was changed")
	ErrTokenIssuer    = errors.New("token was issued by another hub")
	ErrTokenExpired   = errors.New("token has expired")
)

// RobotClaims is what a robot token says.
type RobotClaims struct {
	Organization string
	Robot        string
	AccessID     string    // names the token in lists and logs; not secret
	IssuedAt     time.Time // to the second
	Expires      time.Time // to the second; zero when it does not expire
}

// robotPayload is the JWT payload of a robot token (RFC 7519 §4.1).
type robotPayload struct {
	Issuer   string `json:"iss"` // the trust domain
	Subject  string `json:"sub"` // "robot:NAME"
	Org      string `json:"org"`
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`           // seconds since 1970
	Expires  int64  `json:"exp,omitempty"` // seconds since 1970
}

// TokenSigner signs and verifies the tokens of one trust domain with an Ed25519
// key. It is immutable and safe for concurrent use.
type TokenSigner struct {
	domain string
	key    ed25519.PrivateKey
	kid    string
	signer jose.Signer
}

// NewTokenSigner makes a signer with a new key.
func NewTokenSigner(trustDomain string) (*TokenSigner, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make token key: %w", err)
	}
	return newTokenSigner(trustDomain, key)
}

// LoadTokenSigner reads a signer's key from what KeyPEM returned.
func LoadTokenSigner(trustDomain string, keyPEM []byte) (*TokenSigner, error) {
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read token key: %w", err)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read token key: want Ed25519, found %T", key)
	}
	return newTokenSigner(trustDomain, ed)
}

func newTokenSigner(trustDomain string, key ed25519.PrivateKey) (*TokenSigner, error) {
	if err := ValidateTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	// The key's ID is made of the key, so that it needs no file of its own.
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	kid := base64.RawURLEncoding.EncodeToString(sum[:12])
	s := &TokenSigner{domain: trustDomain, key: key, kid: kid}
	var err error
	s.signer, err = s.signerOf(tokenType)
	return s, err
}

// signerOf returns a signer of tokens with a "typ".
func (s *TokenSigner) signerOf(typ jose.ContentType) (jose.Signer, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: s.key, KeyID: s.kid}}, (&jose.SignerOptions{}).WithType(typ))
	if err != nil {
		return nil, fmt.Errorf("make token signer: %w", err)
	}
	return signer, nil
}

// KeyPEM returns the signer's private key as PKCS #8 in PEM.
func (s *TokenSigner) KeyPEM() ([]byte, error) { return encodeKey(s.key) }

// KeyID returns the "kid" of the tokens that s signs.
func (s *TokenSigner) KeyID() string { return s.kid }

// SignRobot returns a robot token, a compact JWT (RFC 7519). It is a secret.
func (s *TokenSigner) SignRobot(c RobotClaims) (string, error) {
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	p := robotPayload{
		Issuer: s.domain, Subject: robotPrefix + c.Robot, Org: c.Organization, ID: c.AccessID, IssuedAt: c.IssuedAt.Unix(),
	}
	if !c.Expires.IsZero() {
		p.Expires = c.Expires.Unix()
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	sig, err := s.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return sig.CompactSerialize()
}

// IsRobot reports whether a token says that it is a robot token, of whichever hub.
func IsRobot(token string) bool {
	if len(token) > MaxTokenLen {
		return false
	}
	sig, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return false
	}
	typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string)
	return typ == tokenType
}

// VerifyRobot returns what a robot token says after checking its signature,
// issuer and expiry, the last with a leeway of a minute. Errors are one of
// ErrTokenMalformed, ErrTokenSignature, ErrTokenIssuer and ErrTokenExpired, with
// details; with ErrTokenExpired the claims are returned too. None quotes the token.
// Whether the token was revoked is the registry's to say.
func (s *TokenSigner) VerifyRobot(token string, now time.Time) (RobotClaims, error) {
	if len(token) > MaxTokenLen {
		return RobotClaims{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTokenMalformed, len(token), MaxTokenLen)
	}
	sig, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return RobotClaims{}, fmt.Errorf("%w: not a JWT signed with EdDSA; it may be truncated", ErrTokenMalformed)
	}
	payload, err := sig.Verify(s.key.Public())
	if err != nil {
		// Another hub's token deserves a better word than a bad signature, and
		// the unverified issuer is only used to choose that word.
		var p robotPayload
		if json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &p) == nil && p.Issuer != s.domain && ValidateTrustDomain(p.Issuer) == nil {
			return RobotClaims{}, fmt.Errorf("%w: %s, and this one is %s", ErrTokenIssuer, p.Issuer, s.domain)
		}
		return RobotClaims{}, ErrTokenSignature
	}
	if typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != tokenType {
		return RobotClaims{}, fmt.Errorf("%w: not a robot token", ErrTokenMalformed)
	}
	var p robotPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return RobotClaims{}, fmt.Errorf("%w: payload is not what we sign", ErrTokenMalformed)
	}
	if p.Issuer != s.domain {
		return RobotClaims{}, fmt.Errorf("%w: %q, and this one is %s", ErrTokenIssuer, p.Issuer, s.domain)
	}
	robot, ok := strings.CutPrefix(p.Subject, robotPrefix)
	c := RobotClaims{Organization: p.Org, Robot: robot, AccessID: p.ID, IssuedAt: time.Unix(p.IssuedAt, 0).UTC()}
	if p.Expires != 0 {
		c.Expires = time.Unix(p.Expires, 0).UTC()
	}
	if err := c.validate(); err != nil || !ok {
		return RobotClaims{}, fmt.Errorf("%w: not a robot's claims", ErrTokenMalformed)
	}
	if !c.Expires.IsZero() && now.After(c.Expires.Add(tokenLeeway)) {
		return c, fmt.Errorf("%w: at %s", ErrTokenExpired, c.Expires.Format(time.RFC3339))
	}
	return c, nil
}

// validate checks the names in c.
func (c RobotClaims) validate() error {
	return errors.Join(ValidateName("organization", c.Organization), ValidateName("robot", c.Robot),
		ValidateName("access ID", c.AccessID))
}
