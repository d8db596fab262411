package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// The labels of the PEM blocks that this package reads and writes.
const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY" // PKCS #8 (RFC 5208)
	pemRequest     = "CERTIFICATE REQUEST"
)

// pinPrefix starts every pin; another hash function would get another one.
const pinPrefix = "sha256:"

// minRSABits is the smallest RSA key that gets a certificate.
const minRSABits = 2048

// NewKey makes a P-256 key, the kind that parties use.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewRequest returns a PKCS #10 certificate request in PEM that proves the
// possession of key. It names nobody: the hub decides whom the certificate is for.
func NewRequest(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), nil
}

// ParseRequest returns the public key of a certificate request in PEM after
// checking that the sender possesses its private key.
func ParseRequest(requestPEM []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(requestPEM)
	if block == nil || block.Type != pemRequest || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("certificate request is not exactly one PEM block of type " + pemRequest)
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := checkPublicKey(req.PublicKey); err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	return req.PublicKey, nil
}

// checkPublicKey refuses keys that are too weak to certify.
func checkPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return fmt.Errorf("certify key: curve %s is not allowed; use P-256, P-384 or P-521", k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("certify key: RSA keys need at least %d bits, this one has %d", minRSABits, k.N.BitLen())
		}
		return nil
	default:
		return fmt.Errorf("certify key: keys of type %T are not allowed; use ECDSA P-256", pub)
	}
}

// Pin returns how a certificate's key is pinned: "sha256:" and the hexadecimal
// SHA-256 of its SubjectPublicKeyInfo, as RFC 7469 §2.4 hashes it. It survives
// a renewal of the certificate with the same key.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// ParsePin returns a pin in the form that Pin writes. It accepts capital
// letters, and colons between bytes as openssl prints them.
func ParsePin(s string) (string, error) {
	rest, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(s)), pinPrefix)
	digits := strings.ReplaceAll(rest, ":", "")
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("pin %q: want sha256: and 64 hexadecimal digits, as the hub prints it at its start", s)
	}
	return pinPrefix + digits, nil
}

// HashSecret returns the text under which a secret is stored. It is a plain
// SHA-256, so it is only for secrets with at least 128 random bits, never for
// what people choose.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return pinPrefix + hex.EncodeToString(sum[:])
}

// SecretMatches reports whether hash is the HashSecret of secret, in a time
// that does not depend on where they differ.
func SecretMatches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashSecret(secret)), []byte(hash)) == 1
}

// encodeKey returns a private key as PKCS #8 in PEM.
func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der}), nil
}

// decodeKey reads what encodeKey writes. Its errors never quote the input.
func decodeKey(keyPEM []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != pemPrivateKey {
		return nil, errors.New("private key is not a PEM block of type " + pemPrivateKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private keys of type %T cannot sign", key)
	}
	return signer, nil
}

// equalPublic reports whether two public keys are the same.
func equalPublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
