package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// The chain's labels keep its hashes and signatures apart from any others.
const (
	hashLabel       = "postern-audit-1\n"
	checkpointLabel = "postern-audit-checkpoint-1\n"
)

// firstPrevious returns the Previous of the first entry of a chain.
func firstPrevious() string { return strings.Repeat("0", 2*sha256.Size) }

// Head is the end of a chain: the place and hash of its newest entry.
type Head struct {
	Sequence uint64 `json:"seq"`
	Hash     string `json:"hash"`
}

// Seal puts a record behind a chain's head, and returns its line, without a line
// feed, and the new head. The hash is SHA-256 over a label and the canonical form
// (see encoder) of all members but "hash" itself, which ends the line.
func (h Head) Seal(b []byte, r *Record) ([]byte, Head) {
	return h.seal(b, r, &Entry{})
}

func (h Head) seal(b []byte, r *Record, place *Entry) ([]byte, Head) {
	place.Sequence, place.Previous = h.Sequence+1, h.Hash
	if h.Sequence == 0 {
		place.Previous = firstPrevious()
	}
	from := len(b)
	b = appendRecord(b, r, place)
	next := Head{place.Sequence, hashOf(b[from:])}
	b = append(b[:len(b)-1], `,"hash":"`...)
	return append(append(b, next.Hash...), `"}`...), next
}

func hashOf(canonical []byte) string {
	var sum [sha256.Size]byte
	d := sha256.New()
	d.Write([]byte(hashLabel))
	d.Write(canonical)
	return hex.EncodeToString(d.Sum(sum[:0]))
}

// Signer signs chains with a hub's key, so that who can write the store, or an
// exported file, but lacks the key cannot make up a chain.
type Signer struct {
	key ed25519.PrivateKey
	id  string
}

// NewSigner returns a signer with a key of NewSigningKey.
func NewSigner(keyPEM []byte) (*Signer, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("the audit log's key is not PEM")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := any.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("the audit log's key is no Ed25519 key in PKCS #8")
	}
	return &Signer{key: key, id: keyID(key.Public().(ed25519.PublicKey))}, nil
}

// NewSigningKey makes the key of a Signer, in PEM. It is a secret.
func NewSigningKey() ([]byte, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make the audit log's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the audit log's key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// PublicKey returns the public key in PEM, for whoever verifies.
func (s *Signer) PublicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the audit log's public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParsePublicKey reads what PublicKey returned.
func ParsePublicKey(text []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the audit log's public key is not PEM")
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	key, ok := any.(ed25519.PublicKey)
	if err != nil || !ok {
		return nil, errors.New("the audit log's public key is no Ed25519 key")
	}
	return key, nil
}

// keyID returns how checkpoints name a key.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// checkpoint signs the head and puts the signature behind it as a record.
func (s *Signer) checkpoint(h Head, b []byte, r *Record) ([]byte, Head) {
	r.Action, r.OK = Checkpoint, true
	return h.seal(b, r, &Entry{
		Key: s.id, Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, checkpointText(r.Organization, h))),
	})
}

// checkpointText is what a checkpoint signs: whose chain it is, and its head
// before the checkpoint, whose hash covers everything before it.
func checkpointText(organization string, h Head) []byte {
	return fmt.Appendf(nil, "%s%s\n%d\n%s\n", checkpointLabel, organization, h.Sequence, h.Hash)
}
