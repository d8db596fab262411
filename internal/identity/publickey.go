package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// The sizes of RSA keys that agents may have, and the smallest public exponent.
const (
	minAgentRSABits = 2048
	maxAgentRSABits = 4096
	minRSAExponent  = 65537
)

const pemPublicKey = "PUBLIC KEY" // SubjectPublicKeyInfo (RFC 5280 §4.1)

// ErrKeyRefused says that a key may not be an agent's.
var ErrKeyRefused = errors.New("key cannot be used")

// PublicKey is the public half of an agent's key pair: Ed25519, ECDSA on P-256 or
// P-384, or RSA of 2048 to 4096 bits. It is immutable.
type PublicKey struct {
	key       crypto.PublicKey
	der       []byte
	algorithm jose.SignatureAlgorithm
	kind      string
}

// NewPublicKey returns a key as an agent's, or ErrKeyRefused with what is wrong.
func NewPublicKey(key crypto.PublicKey) (PublicKey, error) {
	p := PublicKey{key: key}
	switch k := key.(type) {
	case ed25519.PublicKey:
		p.kind, p.algorithm = "Ed25519", jose.EdDSA
	case *ecdsa.PublicKey:
		p.kind = "ECDSA " + k.Curve.Params().Name
		switch k.Curve {
		case elliptic.P256():
			p.algorithm = jose.ES256
		case elliptic.P384():
			p.algorithm = jose.ES384
		default:
			return PublicKey{}, refusedKey("its curve is %s; P-256 and P-384 are possible", k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		p.kind, p.algorithm = fmt.Sprintf("RSA %d", k.N.BitLen()), jose.PS256
		if n := k.N.BitLen(); n < minAgentRSABits || n > maxAgentRSABits {
			return PublicKey{}, refusedKey("it is RSA of %d bits; %d to %d are possible", n, minAgentRSABits, maxAgentRSABits)
		}
		if k.E < minRSAExponent {
			return PublicKey{}, refusedKey("it is RSA with the public exponent %d; want %d", k.E, minRSAExponent)
		}
	default:
		return PublicKey{}, refusedKey("its type is %s; Ed25519, ECDSA and RSA are possible", strings.TrimPrefix(fmt.Sprintf("%T", key), "*"))
	}
	var err error
	if p.der, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return PublicKey{}, refusedKey("%s", err)
	}
	return p, nil
}

func refusedKey(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrKeyRefused, fmt.Sprintf(format, args...))
}

// ParsePublicKey reads the one key of a PEM file ("PUBLIC KEY"). Errors are
// ErrKeyRefused with what is wrong and never quote the input: it may be a private
// key by mistake.
func ParsePublicKey(b []byte) (PublicKey, error) {
	block, rest := pem.Decode(b)
	switch {
	case block == nil:
		return PublicKey{}, refusedKey("it is not PEM: want a file that begins with -----BEGIN PUBLIC KEY-----")
	case strings.HasSuffix(block.Type, pemPrivateKey):
		return PublicKey{}, refusedKey("it is a PRIVATE key, which belongs to the agent only; give the public one")
	case block.Type == "RSA PUBLIC KEY":
		return PublicKey{}, refusedKey("it is PKCS #1; convert it with: openssl rsa -RSAPublicKey_in -in FILE -pubout")
	case block.Type != pemPublicKey:
		return PublicKey{}, refusedKey("it is a PEM block of type %.40q; want %s", block.Type, pemPublicKey)
	case len(bytes.TrimSpace(rest)) > 0:
		return PublicKey{}, refusedKey("something follows the first key; give each key a file of its own")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, refusedKey("%s", strings.TrimPrefix(err.Error(), "x509: "))
	}
	return NewPublicKey(key)
}

// ID names the key: the SHA-256 of its SubjectPublicKeyInfo, 64 hexadecimal
// digits. "openssl pkey -pubin -in FILE -outform DER | sha256sum" prints it too.
func (p PublicKey) ID() string {
	sum := sha256.Sum256(p.der)
	return hex.EncodeToString(sum[:])
}

// Kind returns what kind of key it is, for people: "Ed25519", "ECDSA P-256",
// "RSA 4096".
func (p PublicKey) Kind() string { return p.kind }

// PEM returns the key as ParsePublicKey reads it.
func (p PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: p.der})
}

// ValidateKeyID says whether s has the form of a key ID.
func ValidateKeyID(s string) error {
	if len(s) != hex.EncodedLen(sha256.Size) || strings.Trim(s, "0123456789abcdef") != "" {
		return fmt.Errorf("key ID %.80q: want 64 hexadecimal digits", s)
	}
	return nil
}
