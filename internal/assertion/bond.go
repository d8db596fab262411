package assertion

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"
	"time"
)

// HeaderBond is the name of the field of an answer in which an agent says what became
// of a bond: its token if it holds from now on, bondNone if it does not.
const HeaderBond = "Postern-Bond"

// How long a bond lasts. The hub begins it anew before the agent would forget it.
const (
	bondLife  = 5 * time.Minute
	bondRenew = 4 * time.Minute // from the signature that began it
)

const (
	bondNone    = "none"
	boundPrefix = "bond." // of an assertion that is bound; a JWT begins otherwise
	bondLabel   = "EXPORTER-postern-bond"
	bondKeyLen  = sha256.Size
	bondNameLen = 16
)

// Bond is what hub and agent have in common by one connection between them, and nobody
// else has: keys from its TLS (RFC 8446 §7.5), which never travel. Once the agent has
// believed a signature that names the bond, the assertions that follow over the same
// connection are authenticated by HMAC-SHA256 with its key, for some minutes. All else
// about an assertion stays as it is.
//
// A signature that names another connection's bond, or none, begins nothing. So whoever
// has the hub's certificate, but not the key that it signs with, gets no further with a
// bond than without.
//
// Both ends make theirs with NewBond. A nil *Bond never holds. Safe for concurrent use.
type Bond struct {
	name  string
	token string // by which the agent says that it holds

	mu     sync.Mutex
	mac    hash.Hash
	until  time.Time
	asked  time.Time // at the hub: when it last signed
	signer string    // at the agent: the public key that the bond began with
}

// Bonded is a connection that has a bond.
type Bonded interface {
	Bond() *Bond // nil if there is none
}

// Channel is an encrypted connection as a bond needs it, such as *pipe.Pipe.
type Channel interface {
	// Export returns n bytes that only the two ends of the connection know.
	Export(label string, n int) ([]byte, error)

	// Companion returns what a user of the connection keeps with it. The first call
	// makes it.
	Companion(make func() any) any
}

// BondOf returns the bond of a connection, or nil if it can have none.
func BondOf(c Channel) *Bond {
	b, _ := c.Companion(func() any {
		b, err := NewBond(c.Export)
		if err != nil {
			return (*Bond)(nil)
		}
		return b
	}).(*Bond)
	return b
}

// NewBond returns the bond of a connection, which does not hold yet.
func NewBond(export func(label string, n int) ([]byte, error)) (*Bond, error) {
	secret, err := export(bondLabel, bondKeyLen+2*bondNameLen)
	if err != nil {
		return nil, fmt.Errorf("derive a bond's key: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString
	return &Bond{
		mac:  hmac.New(sha256.New, secret[:bondKeyLen]),
		name: text(secret[bondKeyLen : bondKeyLen+bondNameLen]), token: text(secret[bondKeyLen+bondNameLen:]),
	}, nil
}

// Heard tells the hub's bond what the agent has answered in HeaderBond. Others, such as
// a service behind the agent, cannot make it hold; the worst that they can do is to
// have the hub sign.
func (b *Bond) Heard(answer []string) {
	if b == nil || len(answer) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case slices.Contains(answer, bondNone):
		b.until = time.Time{}
	case slices.Contains(answer, b.token):
		b.until = b.asked.Add(bondRenew)
	}
}

// seal returns a payload with its code, or "" if the bond does not hold.
func (b *Bond) seal(payload []byte, now time.Time) string {
	if b == nil {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) {
		b.asked = now
		return ""
	}
	text := make([]byte, 0, len(boundPrefix)+base64.RawURLEncoding.EncodedLen(len(payload))+1+base64.RawURLEncoding.EncodedLen(sha256.Size))
	text = append(text, boundPrefix...)
	text = base64.RawURLEncoding.AppendEncode(text, payload)
	code := b.code(text)
	text = append(text, '.')
	return string(base64.RawURLEncoding.AppendEncode(text, code[:]))
}

// code returns the code of a text; mu is held.
func (b *Bond) code(text []byte) (code [sha256.Size]byte) {
	b.mac.Reset()
	_, _ = b.mac.Write(text) // never fails
	b.mac.Sum(code[:0])
	return code
}

// open returns the payload of a text that seal made. The bond has to hold, and the key
// that it began with must be good still.
func (b *Bond) open(text string, keys []string, now time.Time) ([]byte, error) {
	if b == nil {
		return nil, ErrBond
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) || !slices.Contains(keys, b.signer) {
		return nil, ErrBond
	}
	end := strings.LastIndexByte(text, '.') // that of the prefix at least
	code, err := base64.RawURLEncoding.DecodeString(text[end+1:])
	if err != nil || len(code) != sha256.Size {
		return nil, fmt.Errorf("%w: no code", ErrMalformed)
	}
	if want := b.code([]byte(text[:end])); !hmac.Equal(want[:], code) {
		return nil, ErrForged
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text[:end], boundPrefix))
	if err != nil {
		return nil, fmt.Errorf("%w: not in base64", ErrMalformed)
	}
	return payload, nil
}

// begin notes that a signature by key names the bond, and returns what to answer.
func (b *Bond) begin(key string, now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until, b.signer = now.Add(bondLife), key
	return b.token
}
