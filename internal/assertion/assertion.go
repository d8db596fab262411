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
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxID   = 64           // bytes of a "jti"
	maxTime = 253402300799 // the last second of the year 9999
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
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode assertion: %w", err)
	}
	signed, err := s.signer.Sign(text)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	compact, err := signed.CompactSerialize()
	if err == nil && len(compact) > MaxLen {
		err = fmt.Errorf("%w: %d bytes, at most %d can be sent", ErrTooLong, len(compact), MaxLen)
	}
	return compact, err
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
	p, err := v.open(text)
	if err != nil {
		return Claims{}, err
	}
	issued, expires := time.Unix(p.IssuedAt, 0).UTC(), time.Unix(p.Expires, 0).UTC()
	switch {
	case p.Audience != audience(v.organization, v.agent):
		return Claims{}, ErrForeign
	case expires.Sub(issued) > Life:
		return Claims{}, fmt.Errorf("%w: it lives for %s, at most %s are taken", ErrMalformed, expires.Sub(issued), Life)
	case now.After(expires.Add(Skew)):
		return Claims{}, fmt.Errorf("%w: at %s, and it is %s here", ErrLate, expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case issued.After(now.Add(Skew)):
		return Claims{}, fmt.Errorf("%w: of %s, and it is %s here", ErrEarly, issued.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case p.Request != request(method, uri):
		return Claims{}, ErrRequest
	}
	if err := v.seen.use(p.ID, expires.Add(Skew), now); err != nil {
		return Claims{}, err
	}
	return Claims{
		Organization: v.organization, Agent: v.agent, ID: p.ID, Method: method, URI: uri, IssuedAt: issued, Expires: expires,
		Mode: p.Mode, Principal: p.Principal, Groups: p.Groups, Impersonate: p.Impersonate, As: p.As, Service: p.Service,
		Client: p.Client, Trace: p.Trace,
	}, nil
}

// open returns the payload of a text that the hub has signed.
func (v *Verifier) open(text string) (payload, error) {
	if len(text) > MaxLen {
		return payload{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(text))
	}
	sig, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return payload{}, fmt.Errorf("%w: not a JWT signed with EdDSA", ErrMalformed)
	}
	if typ, _ := sig.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != Type {
		return payload{}, fmt.Errorf("%w: its type is not %s", ErrMalformed, Type)
	}
	var p payload
	for _, k := range v.keys() {
		key, err := base64.StdEncoding.DecodeString(k)
		if err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		text, err := sig.Verify(ed25519.PublicKey(key))
		if err != nil {
			continue
		}
		if err := json.Unmarshal(text, &p); err != nil {
			return payload{}, fmt.Errorf("%w: its payload is none", ErrMalformed)
		}
		if err := p.check(); err != nil {
			return payload{}, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		return p, nil
	}
	return payload{}, ErrForged
}
