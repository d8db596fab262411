package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern.dev/postern/internal/identity"
)

func pemOf(t *testing.T, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	return pemOf(t, "PUBLIC KEY", der, err)
}

func TestAgentKeys(t *testing.T) {
	for kind, want := range map[string]string{
		identity.KeyEd25519: "Ed25519", identity.KeyECDSAP256: "ECDSA P-256", identity.KeyECDSAP384: "ECDSA P-384", identity.KeyRSA: "RSA 4096",
	} {
		key, err := identity.NewAgentKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		b, err := key.PEM()
		if err != nil || !strings.HasPrefix(string(b), "-----BEGIN PRIVATE KEY-----\n") {
			t.Errorf("%s: %v", kind, err)
		}
		oneLine := strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", `\n`)
		for _, text := range []string{string(b), oneLine} {
			again, err := identity.ParseAgentKey([]byte(text))
			if err != nil || again.Public().ID() != key.Public().ID() {
				t.Errorf("%s: read back: %v", kind, err)
			}
		}
		public, err := identity.ParsePublicKey(key.Public().PEM())
		if err != nil || public.Kind() != want || public.ID() != key.Public().ID() || identity.ValidateKeyID(public.ID()) != nil {
			t.Errorf("%s: public key %s %s, %v", kind, public.Kind(), public.ID(), err)
		}
		block, _ := pem.Decode(public.PEM())
		if sum := sha256.Sum256(block.Bytes); public.ID() != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: ID %s is not what sha256sum says", kind, public.ID())
		}
	}
	if _, err := identity.NewAgentKey("dsa"); err == nil {
		t.Error("a DSA key was made")
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	big := &rsa.PublicKey{N: p521.X, E: 65537}
	good := publicPEM(t, p256.Public())
	pkcs8, err := x509.MarshalPKCS8PrivateKey(p256)
	for name, tc := range map[string]struct{ in, want string }{
		"empty":        {"", "not PEM"},
		"OpenSSH":      {"ssh-ed25519 AAAAC3Nz me@here", "not PEM"},
		"private":      {pemOf(t, "PRIVATE KEY", pkcs8, err), "PRIVATE key"},
		"old private":  {pemOf(t, "RSA PRIVATE KEY", nil, nil), "PRIVATE key"},
		"PKCS #1":      {pemOf(t, "RSA PUBLIC KEY", nil, nil), "-RSAPublicKey_in"},
		"certificate":  {pemOf(t, "CERTIFICATE", nil, nil), "want PUBLIC KEY"},
		"two keys":     {good + good, "something follows"},
		"broken":       {pemOf(t, "PUBLIC KEY", []byte{1, 2}, nil), "asn1"},
		"P-521":        {publicPEM(t, p521.Public()), "P-256 and P-384 are possible"},
		"small RSA":    {publicPEM(t, big), "2048 to 4096"},
		"RSA exponent": {publicPEM(t, &rsa.PublicKey{N: new(big2048).number(), E: 3}), "public exponent 3"},
		"huge RSA":     {publicPEM(t, &rsa.PublicKey{N: new(big2048).bits(4097), E: 65537}), "4097 bits"},
	} {
		_, err := identity.ParsePublicKey([]byte(tc.in))
		if !errors.Is(err, identity.ErrKeyRefused) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestParseAgentKey(t *testing.T) {
	ec, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	sec1PEM := pemOf(t, "EC PRIVATE KEY", sec1, err)
	for name, tc := range map[string]struct{ in, want string }{
		"SEC 1":           {sec1PEM, ""},
		"with parameters": {pemOf(t, "EC PARAMETERS", []byte{6, 0}, nil) + sec1PEM, ""},
		"PKCS #1, small":  {pemOf(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small), nil), "2048 to 4096"},
		"public":          {publicPEM(t, ec.Public()), "it is the public key"},
		"encrypted":       {pemOf(t, "ENCRYPTED PRIVATE KEY", nil, nil), "openssl pkey"},
		"old encrypted":   {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "openssl pkey"},
		"OpenSSH":         {pemOf(t, "OPENSSH PRIVATE KEY", nil, nil), "postern agent keygen"},
		"token":           {`{"accessId":"a","token":"b"}`, "not PEM"},
		"broken":          {pemOf(t, "PRIVATE KEY", []byte{1}, nil), "does not parse"},
		"two":             {sec1PEM + sec1PEM, "something follows"},
	} {
		_, err := identity.ParseAgentKey([]byte(tc.in))
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, identity.ErrKeyRefused) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzParsePublicKey(f *testing.F) {
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		f.Fatal(err)
	}
	private, err := key.PEM()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.Public().PEM())
	f.Add(private)
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\nBgA=\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := identity.ParseAgentKey(b); err == nil {
			if _, err := identity.ParsePublicKey(k.Public().PEM()); err != nil {
				t.Fatal(err)
			}
		}
		k, err := identity.ParsePublicKey(b)
		if err != nil {
			return
		}
		if again, err := identity.ParsePublicKey(k.PEM()); err != nil || again.ID() != k.ID() {
			t.Fatal(fmt.Errorf("read back: %w", err))
		}
	})
}
