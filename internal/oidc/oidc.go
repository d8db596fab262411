// Package oidc checks tokens that others issue: the ID tokens of an identity
// provider that people sign in with, and the tokens of workloads. It finds an
// issuer's keys by OpenID Connect Discovery 1.0, keeps them, and follows their
// rotation.
//
// Whoever shows a token may name an issuer's key that does not exist, as often as
// they like: keys are asked for at most once in a few seconds, and everything that
// an issuer answers has a limit. An issuer that is down is an error for the tokens
// that need it, and for nobody else; keys that are known stay good meanwhile.
package oidc

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/wire"
)

// Bounds.
const (
	// MaxToken bounds the length of a token in bytes; longer ones are not parsed.
	// People in many groups have long ones.
	MaxToken = 32 << 10

	// Leeway is how far the clocks of issuer and hub may differ.
	Leeway = time.Minute

	maxAnswer  = 1 << 20 // bytes of a discovery document or key set
	maxKeys    = 128     // in a key set
	maxIssuers = 512     // that are remembered; the oldest are asked again
)

// Why a token was refused. All but ErrUnavailable are the token's fault.
var (
	ErrMalformed   = errors.New("token is malformed")
	ErrSignature   = errors.New("token was not signed with a key of its issuer")
	ErrIssuer      = errors.New("token was issued by another issuer")
	ErrAudience    = errors.New("token is for another audience")
	ErrExpired     = errors.New("token has expired")
	ErrEarly       = errors.New("token is not valid yet")
	ErrUnavailable = errors.New("issuer cannot be asked for its keys")
)

// Issuer is an issuer of tokens, and what its tokens have to be like. The zero
// value of a field that is not said to be needed means no rule.
type Issuer struct {
	// URL is the issuer's name, exactly as in "iss", and where its discovery
	// document is found: https, or http on loopback. It is needed.
	URL string

	// Audiences are those of which a token has to be for one at least. Needed:
	// without it, a token for anybody would do.
	Audiences []string

	// Algorithms are the signature algorithms that are accepted; none means
	// DefaultAlgorithms.
	Algorithms []string

	// CA holds certificates in PEM to trust for the issuer instead of the
	// system's.
	CA []byte

	// Keys is a JWK set to use instead of asking the issuer, for one that the
	// hub cannot reach.
	Keys []byte

	// Public restricts the issuer to addresses of the public Internet: for URLs
	// that come from somebody who may not look around in the hub's own network.
	Public bool
}

// DefaultAlgorithms returns the signature algorithms that are accepted unless an
// Issuer says otherwise: all that are asymmetric and in use.
func DefaultAlgorithms() []string { return []string{"RS256", "ES256", "PS256", "ES384", "EdDSA"} }

// knownAlgorithms are those that an Issuer may list. "none" and those with a
// shared secret are not among them.
func knownAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// ValidateURL says whether an issuer may have the name s.
func ValidateURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || len(s) > 512:
		return fmt.Errorf("issuer %.200q is not a URL: want https://HOST[/PATH]", s)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errors.New("issuer URL may have no user, query or fragment")
	case u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	default:
		return fmt.Errorf("issuer %q has to begin with https://; http:// is for loopback only", s)
	}
}

// Validate says whether an Issuer can be used.
func (i Issuer) Validate() error {
	if err := ValidateURL(i.URL); err != nil {
		return err
	}
	if len(i.Audiences) == 0 {
		return errors.New("issuer without an audience: a token for anybody would be accepted")
	}
	if _, err := i.algorithms(); err != nil {
		return err
	}
	if len(i.Keys) > 0 {
		if _, err := parseKeys(i.Keys); err != nil {
			return err
		}
	}
	_, err := caPool(i.CA)
	return err
}

func (i Issuer) algorithms() ([]jose.SignatureAlgorithm, error) {
	names := i.Algorithms
	if len(names) == 0 {
		names = DefaultAlgorithms()
	}
	out := make([]jose.SignatureAlgorithm, 0, len(names))
next:
	for _, name := range names {
		for _, known := range knownAlgorithms() {
			if name == string(known) {
				out = append(out, known)
				continue next
			}
		}
		return nil, fmt.Errorf("signature algorithm %.40q: want one of %v", name, knownAlgorithms())
	}
	return out, nil
}

// Failure returns an error of Verify or Discover for people: what is wrong, and
// with a hint where there is one. Nothing of the token is in it.
func Failure(err error, now time.Time) *wire.Failure {
	f := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the %s", err).WithCause(err)
	switch {
	case errors.Is(err, ErrUnavailable):
		f.Code = wire.CodeOverloaded
		f.Hint = "the hub could not reach the issuer; try again, and look at the issuer if it stays so"
	case errors.Is(err, ErrExpired), errors.Is(err, ErrEarly):
		f.Text += "; by the hub's clock it is " + now.UTC().Format(time.RFC3339)
		f.Hint = "get a new one; if that does not help, compare the clocks of issuer and hub"
	case errors.Is(err, ErrAudience):
		f.Hint = "have the issuer make it for the audience that the hub expects"
	}
	return f
}
