package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// KeyType is a kind of signing key.
type KeyType string

// The kinds. All relying parties know RSA; some clouds know nothing else.
const (
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	ECDSAP256 KeyType = "ecdsa-p256"
)

// Algorithm returns the signature algorithm of keys of a kind; empty for an unknown one.
func (t KeyType) Algorithm() string {
	switch t {
	case RSA2048, RSA3072:
		return string(jose.RS256)
	case ECDSAP256:
		return string(jose.ES256)
	default:
		return ""
	}
}

// Phase is where a key is in its life.
type Phase string

// The phases, in their order. A withdrawn key is in none.
const (
	Published Phase = "published" // relying parties may fetch it; it does not sign yet
	Signing   Phase = "signing"   // tokens are signed with it
	Retiring  Phase = "retiring"  // tokens that it signed may still be good
)

// Key is a signing key of an issuer. It is immutable.
type Key struct {
	ID      string    // RFC 7638 thumbprint: "kid" of tokens
	Type    KeyType   // what it is
	Phase   Phase     // where it is in its life
	Created time.Time // zero: not known
	Since   time.Time // when the phase began; zero: not known

	signer crypto.Signer // nil where only the public half is there
	public crypto.PublicKey
}

// NewKey makes a key.
func NewKey(t KeyType, now time.Time) (Key, error) {
	var signer crypto.Signer
	var err error
	switch t {
	case RSA2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		signer, err = rsa.GenerateKey(rand.Reader, 3072)
	case ECDSAP256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return Key{}, fmt.Errorf("type of signing keys %.40q: want %s, %s or %s", t, RSA2048, RSA3072, ECDSAP256)
	}
	if err != nil {
		return Key{}, fmt.Errorf("make signing key: %w", err)
	}
	return keyOf(signer, signer.Public(), now)
}

// keyOf describes a key; signer may be nil.
func keyOf(signer crypto.Signer, public crypto.PublicKey, created time.Time) (Key, error) {
	t, err := typeOf(public)
	if err != nil {
		return Key{}, err
	}
	print, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return Key{}, fmt.Errorf("name signing key: %w", err)
	}
	return Key{ID: base64.RawURLEncoding.EncodeToString(print), Type: t, Created: created, signer: signer, public: public}, nil
}

// typeOf says which kind a public key is of.
func typeOf(public crypto.PublicKey) (KeyType, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		}
		return "", fmt.Errorf("an RSA key of %d bits: want 2048 or 3072", k.N.BitLen())
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return ECDSAP256, nil
		}
		return "", errors.New("an ECDSA key of another curve: want P-256")
	default:
		return "", errors.New("a key of another kind: want RSA or ECDSA P-256")
	}
}

// jwk returns what relying parties see of a key.
func (k Key) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.public, KeyID: k.ID, Algorithm: k.Type.Algorithm(), Use: "sig"}
}

const (
	privateBlock = "PRIVATE KEY"
	publicBlock  = "PUBLIC KEY"
)

// marshal returns the private key in PEM.
func (k Key) marshal() ([]byte, error) {
	if k.signer == nil {
		return nil, errors.New("encode signing key: its private half is not here")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("encode signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der}), nil
}

// parseKey reads a private key in PEM, as PKCS #8, or as what openssl wrote before;
// or a public one. Errors quote nothing of it.
func parseKey(b []byte) (Key, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return Key{}, errors.New("it is no key in PEM")
	}
	var parsed any
	var err error
	switch block.Type {
	case privateBlock:
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case publicBlock:
		parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
	default:
		return Key{}, fmt.Errorf("it is %.40q and not a key", block.Type)
	}
	if err != nil {
		return Key{}, fmt.Errorf("its %s cannot be read", block.Type)
	}
	if signer, ok := parsed.(crypto.Signer); ok {
		return keyOf(signer, signer.Public(), time.Time{})
	}
	return keyOf(nil, parsed, time.Time{})
}
