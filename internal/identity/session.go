package identity

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// sessionType is the "typ" of a session token's header.
const sessionType = "postern-session+jwt"

// SessionClaims is what the token of a person's session says. What the person may
// do is not in it: the registry is asked at each use.
type SessionClaims struct {
	User     string // the principal's name
	ID       string // names the session in lists and logs; not secret
	IssuedAt time.Time
	Expires  time.Time
}

// sessionPayload is the JWT payload of a session token.
type sessionPayload struct {
	Issuer   string `json:"iss"` // the trust domain
	Subject  string `json:"sub"` // "user:NAME"
	ID       string `json:"jti"`
	Session  string `json:"sid"`
	IssuedAt int64  `json:"iat"` // seconds since 1970
	Expires  int64  `json:"exp"` // seconds since 1970
}

// SignSession returns a session token, a compact JWT. It is a secret, and differs
// at each call.
func (s *TokenSigner) SignSession(c SessionClaims) (string, error) {
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("sign session: %w", err)
	}
	payload, err := json.Marshal(sessionPayload{
		Issuer: s.domain, Subject: Principal{KindUser, c.User}.String(), ID: rand.Text(), Session: c.ID,
		IssuedAt: c.IssuedAt.Unix(), Expires: c.Expires.Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("encode session: %w", err)
	}
	signer, err := s.signerOf(sessionType)
	if err != nil {
		return "", err
	}
	sig, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign session: %w", err)
	}
	return sig.CompactSerialize()
}

// IsSession reports whether a token says of itself that it is a session's.
func IsSession(token string) bool {
	_, err := parseSession(token)
	return err == nil
}

func parseSession(token string) (*jose.JSONWebSignature, error) {
	if len(token) > MaxTokenLen {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTokenMalformed, len(token), MaxTokenLen)
	}
	sig, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, fmt.Errorf("%w: not a JWT signed with EdDSA; it may be truncated", ErrTokenMalformed)
	}
	if typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != sessionType {
		return nil, fmt.Errorf("%w: not a session's token", ErrTokenMalformed)
	}
	return sig, nil
}

// VerifySession returns what a session token says after checking its signature,
// issuer and expiry, the last without leeway, since the hub made it. Errors are as
// those of VerifyRobot. Whether the session was revoked is the registry's to say.
func (s *TokenSigner) VerifySession(token string, now time.Time) (SessionClaims, error) {
	sig, err := parseSession(token)
	if err != nil {
		return SessionClaims{}, err
	}
	payload, err := sig.Verify(s.key.Public())
	if err != nil {
		return SessionClaims{}, ErrTokenSignature
	}
	var p sessionPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return SessionClaims{}, fmt.Errorf("%w: payload is not what we sign", ErrTokenMalformed)
	}
	if p.Issuer != s.domain {
		return SessionClaims{}, fmt.Errorf("%w: %q, and this one is %s", ErrTokenIssuer, p.Issuer, s.domain)
	}
	user, ok := strings.CutPrefix(p.Subject, string(KindUser)+":")
	c := SessionClaims{User: user, ID: p.Session, IssuedAt: time.Unix(p.IssuedAt, 0).UTC(), Expires: time.Unix(p.Expires, 0).UTC()}
	if err := c.validate(); err != nil || !ok {
		return SessionClaims{}, fmt.Errorf("%w: not a session's claims", ErrTokenMalformed)
	}
	if !now.Before(c.Expires) {
		return c, fmt.Errorf("%w: at %s", ErrTokenExpired, c.Expires.Format(time.RFC3339))
	}
	return c, nil
}

// validate checks the names in c.
func (c SessionClaims) validate() error {
	return errors.Join(Principal{KindUser, c.User}.Validate(), ValidateName("session", c.ID))
}
