package issuer

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/wire"
)

// Bounds of what is asked for.
const (
	maxAudiences = 8
	maxAudience  = 255 // bytes
)

// Request is whom a token is to be for, and who is to accept it. That the caller may
// speak for the control plane, whoever calls Mint has made sure.
type Request struct {
	Account      string // an organization
	ControlPlane controlplane.Ref
	Provider     string
	Audiences    []string // none: the issuer itself, so that nobody else takes it by accident
}

// Token is an identity token. Value is a secret.
type Token struct {
	Value     string
	Subject   string
	Audiences []string
	ID        string // "jti"
	IssuedAt  time.Time
	Expires   time.Time
}

// claims are those of a token, in the order of the documents.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  []string `json:"aud"`
	Expires   int64    `json:"exp"`
	NotBefore int64    `json:"nbf"`
	IssuedAt  int64    `json:"iat"`
	ID        string   `json:"jti"`
}

// Mint makes a token. Errors are *wire.Failure.
func (i *Issuer) Mint(q Request) (Token, error) {
	t, err := i.mint(q)
	i.c.Metrics.Minted(err)
	return t, err
}

func (i *Issuer) mint(q Request) (Token, error) {
	subject, err := controlplane.Subject(q.Account, q.ControlPlane, q.Provider)
	if err != nil {
		return Token{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	audiences := q.Audiences
	if len(audiences) == 0 {
		audiences = []string{i.c.URL}
	}
	if err := checkAudiences(audiences); err != nil {
		return Token{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	now := i.now()
	t := Token{
		Subject: subject, Audiences: audiences, ID: base64.StdEncoding.EncodeToString(id), IssuedAt: now, Expires: now.Add(TokenLife),
	}
	payload, err := json.Marshal(claims{
		Issuer: i.c.URL, Subject: subject, Audience: audiences, Expires: t.Expires.Unix(), NotBefore: now.Unix(), IssuedAt: now.Unix(), ID: t.ID,
	})
	if err != nil {
		return Token{}, wire.Fail(wire.LegHub, wire.CodeInternal, "encode token").WithCause(err)
	}
	signed, err := i.view.Load().signer.Sign(payload)
	if err != nil {
		return Token{}, wire.Fail(wire.LegHub, wire.CodeInternal, "sign token").WithCause(err)
	}
	if t.Value, err = signed.CompactSerialize(); err != nil {
		return Token{}, wire.Fail(wire.LegHub, wire.CodeInternal, "encode token").WithCause(err)
	}
	return t, nil
}

// checkAudiences allows what clouds and API servers call themselves: URLs and names.
func checkAudiences(all []string) error {
	if len(all) > maxAudiences {
		return fmt.Errorf("%d audiences; at most %d are possible", len(all), maxAudiences)
	}
	for _, one := range all {
		if one == "" || len(one) > maxAudience {
			return fmt.Errorf("audience %.60q: want 1 to %d bytes", one, maxAudience)
		}
		for i := range len(one) {
			if c := one[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' || c == ',' {
				return fmt.Errorf("audience %.260q: want printable ASCII without spaces, quotes and commas", one)
			}
		}
	}
	return nil
}

// newSigner returns what signs with a key.
func newSigner(k Key) (jose.Signer, error) {
	if k.signer == nil {
		return nil, fmt.Errorf("%w: the private half of the one that signs is not there", ErrCorrupt)
	}
	s, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.SignatureAlgorithm(k.Type.Algorithm()), Key: jose.JSONWebKey{Key: k.signer, KeyID: k.ID},
	}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.ID, err)
	}
	return s, nil
}
