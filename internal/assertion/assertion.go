// Package assertion is the hub's word for one request that it sends through the
// gateway to an agent: who asks, and whom the cluster is to see. The agent verifies
// it without asking anybody, and acts on it with the rights of its own service
// account. So it is bound to one agent, one method and one request URI, lives for
// seconds, and is good once.
//
// The hub signs with the key that it signs its orders with, whose public part agents
// learn when they enrol. An assertion is a JWT of its own type: no signature of one
// kind passes for the other.
package assertion

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxID       = 64           // bytes of a "jti"
	maxTime     = 253402300799 // the last second of the year 9999
	maxEnvelope = 256          // bytes around the claims in a text: header, signature, the name of a bond
)

// Why an assertion was not made or not believed.
var (
	ErrTooLong   = errors.New("assertion is too long")
	ErrMalformed = errors.New("assertion is malformed")
	ErrForged    = errors.New("assertion is not signed by the hub")
	ErrForeign   = errors.New("assertion is for another agent")
	ErrLate      = errors.New("assertion has expired")
	ErrEarly     = errors.New("assertion is from the future")
	ErrRequest   = errors.New("assertion is for another request")
	ErrReplayed  = errors.New("assertion was used before")
	ErrBusy      = errors.New("too many assertions are remembered")
	ErrBond      = errors.New("assertion is bound to a connection with which nothing was agreed")
)

// Signer makes assertions. It is safe for concurrent use.
type Signer struct{ signer jose.Signer }

// NewSigner returns a signer with the key that signs the hub's orders.
func NewSigner(key ed25519.PrivateKey) (*Signer, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType(Type))
	if err != nil {
		return nil, fmt.Errorf("make signer of assertions: %w", err)
	}
	return &Signer{signer}, nil
}

// Sign returns the text of an assertion. It fails for claims that no agent would
// take: with ErrTooLong, as somebody may be in too many groups, or ErrMalformed.
func (s *Signer) Sign(c Claims) (string, error) {
	w, err := s.Prepare(c)
	if err != nil {
		return "", err
	}
	return w.Over(nil)
}

// Word is an assertion whose connection is not known yet.
type Word struct {
	signer jose.Signer
	p      payload
	at     time.Time
	text   []byte // of p
}

// Prepare does all that may fail because of the claims, as Sign does.
func (s *Signer) Prepare(c Claims) (*Word, error) {
	if c.ID == "" {
		c.ID = rand.Text()
	}
	if c.IssuedAt.IsZero() {
		c.IssuedAt = time.Now()
	}
	p := payload{
		Audience: audience(c.Organization, c.Agent), ID: c.ID, IssuedAt: c.IssuedAt.Unix(), Expires: c.IssuedAt.Add(Life).Unix(),
		Request: request(c.Method, c.URI), Mode: c.Mode, Principal: c.Principal, Groups: c.Groups,
		Impersonate: c.Impersonate, As: c.As, Service: c.Service, Client: c.Client, Trace: c.Trace,
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode assertion: %w", err)
	}
	if n := base64.RawURLEncoding.EncodedLen(len(text)) + maxEnvelope; n > MaxLen {
		return nil, fmt.Errorf("%w: %d bytes, at most %d can be sent", ErrTooLong, n, MaxLen)
	}
	return &Word{signer: s.signer, p: p, at: c.IssuedAt, text: text}, nil
}

// Over returns the text of the assertion for a connection: with the bond's code if it
// holds, or else signed. b may be nil.
func (w *Word) Over(b *Bond) (string, error) {
	if text := b.seal(w.text, w.at); text != "" {
		return text, nil
	}
	text := w.text
	if b != nil {
		p := w.p
		p.Bond = b.name
		var err error
		if text, err = json.Marshal(p); err != nil {
			return "", fmt.Errorf("encode assertion: %w", err)
		}
	}
	signed, err := w.signer.Sign(text)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	return signed.CompactSerialize()
}

// Verifier verifies the assertions for one agent. Make one with NewVerifier; it is
// safe for concurrent use. It remembers what it has seen for as long as that is
// good, so an agent has one.
type Verifier struct {
	keys                func() []string
	organization, agent string
	seen                memory
}

// NewVerifier returns a verifier for an agent. keys returns the public keys of the
// hub at the moment, in base64 as agents are told them.
func NewVerifier(keys func() []string, organization, agent string) *Verifier {
	return &Verifier{keys: keys, organization: organization, agent: agent, seen: memory{limit: maxRemembered}}
}

// Verify returns what a hub asserts of a request with a method and a URI as they
// stand in its request line. An assertion that was verified once is refused from then
// on, whatever became of the request. Errors are those of this package and do not
// quote the text.
func (v *Verifier) Verify(text, method, uri string, now time.Time) (Claims, error) {
	c, _, err := v.VerifyOver(nil, text, method, uri, now)
	return c, err
}

// VerifyOver is Verify for what came over a connection with a bond, which may be nil.
// answer, if not empty, is for the hub to hear, in HeaderBond, also with an error.
func (v *Verifier) VerifyOver(b *Bond, text, method, uri string, now time.Time) (c Claims, answer string, err error) {
	p, key, err := v.open(b, text, now)
	if err != nil {
		if errors.Is(err, ErrBond) {
			answer = bondNone
		}
		return Claims{}, answer, err
	}
	issued, expires := time.Unix(p.IssuedAt, 0).UTC(), time.Unix(p.Expires, 0).UTC()
	switch {
	case p.Audience != audience(v.organization, v.agent):
		return Claims{}, "", ErrForeign
	case expires.Sub(issued) > Life:
		return Claims{}, "", fmt.Errorf("%w: it lives for %s, at most %s are taken", ErrMalformed, expires.Sub(issued), Life)
	case now.After(expires.Add(Skew)):
		return Claims{}, "", fmt.Errorf("%w: at %s, and it is %s here", ErrLate, expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case issued.After(now.Add(Skew)):
		return Claims{}, "", fmt.Errorf("%w: of %s, and it is %s here", ErrEarly, issued.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case p.Request != request(method, uri):
		return Claims{}, "", ErrRequest
	}
	if err := v.seen.use(p.ID, expires.Add(Skew), now); err != nil {
		return Claims{}, "", err
	}
	if key != "" && b != nil && p.Bond == b.name {
		answer = b.begin(key, now)
	}
	return Claims{
		Organization: v.organization, Agent: v.agent, ID: p.ID, Method: method, URI: uri, IssuedAt: issued, Expires: expires,
		Mode: p.Mode, Principal: p.Principal, Groups: p.Groups, Impersonate: p.Impersonate, As: p.As, Service: p.Service,
		Client: p.Client, Trace: p.Trace,
	}, answer, nil
}

// open returns the payload of a text that the hub has signed, and by which key; or of
// one that is bound, and no key.
func (v *Verifier) open(b *Bond, text string, now time.Time) (p payload, key string, err error) {
	if len(text) > MaxLen {
		return payload{}, "", fmt.Errorf("%w: %d bytes", ErrMalformed, len(text))
	}
	var claims []byte
	if strings.HasPrefix(text, boundPrefix) {
		claims, err = b.open(text, v.keys(), now)
	} else {
		claims, key, err = v.signed(text)
	}
	if err != nil {
		return payload{}, "", err
	}
	if err := json.Unmarshal(claims, &p); err != nil {
		return payload{}, "", fmt.Errorf("%w: its payload is none", ErrMalformed)
	}
	if err := p.check(); err != nil {
		return payload{}, "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return p, key, nil
}

// signed returns what stands in a JWT, and the key that verifies it.
func (v *Verifier) signed(text string) (claims []byte, key string, err error) {
	sig, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, "", fmt.Errorf("%w: not a JWT signed with EdDSA", ErrMalformed)
	}
	if typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != Type {
		return nil, "", fmt.Errorf("%w: its type is not %s", ErrMalformed, Type)
	}
	for _, k := range v.keys() {
		key, err := base64.StdEncoding.DecodeString(k)
		if err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		if claims, err := sig.Verify(ed25519.PublicKey(key)); err == nil {
			return claims, k, nil
		}
	}
	return nil, "", ErrForged
}
