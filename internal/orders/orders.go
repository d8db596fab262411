// Package orders holds what a hub tells one of its agents beside its credentials:
// which access grants are in force there, the agent's labels, and limits. It is one
// document, replaced as a whole, with a version that only grows, and signed: over the
// bus an answer can be brought to where only the hub should speak, so an agent
// believes the signature and not the subject.
//
// The hub's signing key is told to agents when they enrol, over TLS with the hub.
package orders

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"postern.dev/postern/internal/access"
)

// Limits of a document, in bytes.
const (
	MaxMessage  = 900 << 10 // signed, as it travels: less than what the bus takes
	maxDocument = 4 << 20   // unpacked
)

// context is signed along with a document, so that a signature of something else
// never passes for one of this.
const context = "postern orders 1\x00"

// Document is what the hub tells an agent. Unknown members are ignored: the hub may
// be newer.
type Document struct {
	Organization string            `json:"organization"`
	Agent        string            `json:"agent"`
	Version      uint64            `json:"version"` // grows with each change, across restarts of the hub
	Labels       map[string]string `json:"labels,omitempty"`
	Access       []access.Grant    `json:"access"` // those that concern the agent

	// Unknown counts the grants that a receiver cannot read, because the hub is newer:
	// it goes without them, for a grant only ever allows.
	Unknown int `json:"-"`

	// Limits are for whoever enforces limits at the agent; nothing means none.
	Limits json.RawMessage `json:"limits,omitempty"`
}

// Errors of Open.
var (
	ErrForged  = errors.New("orders are not signed by the hub")
	ErrForeign = errors.New("orders are for another agent")
)

// Key is what a hub signs with.
type Key struct{ private ed25519.PrivateKey }

// NewSeed returns a seed for ParseSeed. It is a secret.
func NewSeed() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make key for orders: %w", err)
	}
	return []byte(base64.StdEncoding.EncodeToString(private.Seed())), nil
}

// ParseSeed returns the key of a seed.
func ParseSeed(seed []byte) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(seed)))
	if err != nil || len(raw) != ed25519.SeedSize {
		return Key{}, errors.New("seed of the key for orders is not one") // the cause might show it
	}
	return Key{ed25519.NewKeyFromSeed(raw)}, nil
}

// Public returns the public part, as agents are told it.
func (k Key) Public() string {
	return base64.StdEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey)) //nolint:forcetypeassert // it is one
}

// Private returns the key itself, for the other things that agents believe only from
// the hub: whatever it signs must not begin as an orders document does.
func (k Key) Private() ed25519.PrivateKey { return k.private }

// Seal packs and signs a document: 64 bytes of Ed25519, then JSON in gzip. It fails
// for one that is too long. Where there are many to seal, use one Packer for all.
func (k Key) Seal(d Document) ([]byte, error) { return k.NewPacker().Seal(d) }

// Open returns the document in a message, if one of the public keys signed it and it
// is for the agent.
func Open(message []byte, keys []string, organization, agent string) (Document, error) {
	if len(message) <= ed25519.SignatureSize || len(message) > MaxMessage {
		return Document{}, fmt.Errorf("%w: %d bytes", ErrForged, len(message))
	}
	signature, packed := message[:ed25519.SignatureSize], message[ed25519.SignatureSize:]
	signed := append([]byte(context), packed...)
	genuine := false
	for _, text := range keys {
		key, err := base64.StdEncoding.DecodeString(text)
		genuine = genuine || err == nil && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, signed, signature)
	}
	if !genuine {
		return Document{}, ErrForged
	}
	d, err := unpack(packed)
	if err != nil {
		return Document{}, fmt.Errorf("read orders: %w", err)
	}
	if d.Organization != organization || d.Agent != agent {
		return Document{}, fmt.Errorf("%w: %.100q of organization %.100q", ErrForeign, d.Agent, d.Organization)
	}
	return d, nil
}

func unpack(packed []byte) (Document, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return Document{}, err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxDocument+1))
	if err != nil {
		return Document{}, err
	}
	if len(text) > maxDocument {
		return Document{}, fmt.Errorf("longer than %d bytes", maxDocument)
	}
	var raw struct {
		Document
		Access []json.RawMessage `json:"access"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return Document{}, err
	}
	d := raw.Document
	if len(raw.Access) > access.MaxGrants {
		return Document{}, fmt.Errorf("%d access grants; at most %d are possible", len(raw.Access), access.MaxGrants)
	}
	for _, text := range raw.Access {
		var g access.Grant
		if err := json.Unmarshal(text, &g); err != nil || g.Validate() != nil {
			d.Unknown++
			continue
		}
		d.Access = append(d.Access, g)
	}
	return d, access.ValidateLabels(d.Labels)
}
