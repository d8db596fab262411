package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
)

// The kinds of keys that NewAgentKey makes.
const (
	KeyEd25519   = "ed25519"
	KeyECDSAP256 = "ecdsa-p256"
	KeyECDSAP384 = "ecdsa-p384"
	KeyRSA       = "rsa" // of 4096 bits
)

// AgentKey is an agent's private key, with which it proves who it is at the hub.
// It is immutable and safe for concurrent use.
type AgentKey struct {
	signer crypto.Signer
	public PublicKey
}

// NewAgentKey makes a key of the given kind, one of the Key constants.
func NewAgentKey(kind string) (*AgentKey, error) {
	var key crypto.Signer
	var err error
	switch kind {
	case KeyEd25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case KeyECDSAP256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case KeyECDSAP384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case KeyRSA:
		key, err = rsa.GenerateKey(rand.Reader, maxAgentRSABits)
	default:
		return nil, fmt.Errorf("key type %q: want %s, %s, %s or %s", kind, KeyEd25519, KeyECDSAP256, KeyECDSAP384, KeyRSA)
	}
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return newAgentKey(key)
}

func newAgentKey(signer crypto.Signer) (*AgentKey, error) {
	public, err := NewPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	return &AgentKey{signer: signer, public: public}, nil
}

// ParseAgentKey reads a private key in PEM: PKCS #8, or what older tools write
// for RSA and ECDSA. Errors are ErrKeyRefused with what is wrong and never quote
// the input.
func ParseAgentKey(b []byte) (*AgentKey, error) {
	if !bytes.Contains(b, []byte("\n")) { // an environment variable may hold the key in one line
		b = bytes.ReplaceAll(b, []byte(`\n`), []byte("\n"))
	}
	block, rest := pem.Decode(b)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl writes them before the key
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, refusedKey("it is not PEM: want a file that begins with -----BEGIN PRIVATE KEY-----")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, refusedKey("something follows the first key")
	}
	var key any
	var err error
	switch block.Type {
	case pemPrivateKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, refusedKey("it is encrypted; remove the passphrase with: openssl pkey -in FILE")
		}
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, refusedKey("it is encrypted; remove the passphrase with: openssl pkey -in FILE")
		}
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, refusedKey("it is encrypted; remove the passphrase with: openssl pkey -in FILE")
	case pemPublicKey:
		return nil, refusedKey("it is the public key; the agent needs the private one")
	case "OPENSSH PRIVATE KEY":
		return nil, refusedKey("it is a key of OpenSSH; make one with: postern agent keygen")
	default:
		return nil, refusedKey("it is a PEM block of type %.40q; want %s", block.Type, pemPrivateKey)
	}
	if err != nil {
		return nil, refusedKey("it does not parse: %s", strings.TrimPrefix(err.Error(), "x509: "))
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, refusedKey("keys of type %T cannot sign", key)
	}
	return newAgentKey(signer)
}

// Public returns the public half.
func (k *AgentKey) Public() PublicKey { return k.public }

// PEM returns the private key as PKCS #8 in PEM. It is a secret.
func (k *AgentKey) PEM() ([]byte, error) { return encodeKey(k.signer) }
