// Package servingcert gives the webhook its certificate: from an authority of its own, kept in a
// Secret, replaced long before it expires, and known to the API server before it is used.
package servingcert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// How long things live. They are replaced after two thirds of it, so that an operator may be away
// for a month, and an authority is trusted for months after the last certificate it signed.
const (
	authorityTime = 365 * 24 * time.Hour
	leafTime      = 90 * 24 * time.Hour
	skew          = 5 * time.Minute // by which clocks may differ
	maxTrusted    = 4               // authorities
)

// Material is what the Secret holds, all in PEM.
type Material struct {
	Authorities  []byte // certificates of the authorities that are trusted: first the one that signs, then the one that signed Cert
	AuthorityKey []byte // of the first
	Cert, Key    []byte // what the webhook is served with
}

// Equal reports whether two are the same.
func (m Material) Equal(other Material) bool {
	return bytes.Equal(m.Authorities, other.Authorities) && bytes.Equal(m.AuthorityKey, other.AuthorityKey) &&
		bytes.Equal(m.Cert, other.Cert) && bytes.Equal(m.Key, other.Key)
}

// Next returns what the Secret should hold: m itself, if that is good. published are the authorities
// that the API server trusts by now, in PEM. A certificate of a new authority is only made when
// that is published, or when there is none that can be served, and what is published stays trusted
// until it expires, so that replicas may go on with what they have loaded. Thus a Secret that was
// deleted or damaged costs nothing either. names are the host names of the webhook.
func Next(now time.Time, m Material, published []byte, names []string) (Material, error) {
	trusted := valid(now, m.Authorities)
	signer := newSigner(trusted, m.AuthorityKey)
	if signer == nil || old(now, signer.cert) {
		fresh, err := newAuthority(now)
		if err != nil {
			return Material{}, err
		}
		signer = fresh
		trusted = slices.Insert(trusted, 0, fresh.cert)
	}
	for _, cert := range valid(now, published) {
		if !contains(trusted, cert) {
			trusted = append(trusted, cert)
		}
	}
	trusted = trimmed(trusted, m.Cert)
	next := Material{Authorities: encodeCerts(trusted), AuthorityKey: signer.key, Cert: m.Cert, Key: m.Key}
	known := contains(valid(now, published), signer.cert)
	leaf := usable(now, m, trusted, names)
	if leaf == nil || known && (old(now, leaf) || leaf.CheckSignatureFrom(signer.cert) != nil) {
		var err error
		if next.Cert, next.Key, err = signer.sign(now, names); err != nil {
			return Material{}, err
		}
	}
	return next, nil
}

// trimmed puts the authority that signed what is served after the one that signs, and leaves out the
// last ones if they are too many. The order counts when the Secret is gone: what replicas serve is
// not known then, and the API server's copy has the one that they need among the first.
func trimmed(trusted []*x509.Certificate, served []byte) []*x509.Certificate {
	if block, _ := pem.Decode(served); block != nil {
		leaf, err := x509.ParseCertificate(block.Bytes)
		signed := func(by *x509.Certificate) bool { return leaf.CheckSignatureFrom(by) == nil }
		if err == nil {
			if i := slices.IndexFunc(trusted, signed); i > 1 {
				by := trusted[i]
				trusted = slices.Insert(slices.Delete(trusted, i, i+1), 1, by)
			}
		}
	}
	return trusted[:min(len(trusted), maxTrusted)]
}

// signer is an authority that can sign.
type signer struct {
	cert    *x509.Certificate
	private *ecdsa.PrivateKey
	key     []byte // PEM of private
}

// newSigner returns the first authority with its key, or nil if they do not fit.
func newSigner(trusted []*x509.Certificate, key []byte) *signer {
	private := parseKey(key)
	if len(trusted) == 0 || private == nil || !private.PublicKey.Equal(trusted[0].PublicKey) {
		return nil
	}
	return &signer{cert: trusted[0], private: private, key: key}
}

func newAuthority(now time.Time) (*signer, error) {
	private, key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "postern-operator webhook " + now.UTC().Format(time.RFC3339)}, NotBefore: now.Add(-skew), NotAfter: now.Add(authorityTime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := create(template, template, private, private)
	if err != nil {
		return nil, err
	}
	return &signer{cert: cert, private: private, key: key}, nil
}

func (s *signer) sign(now time.Time, names []string) (cert, key []byte, err error) {
	private, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	leaf, err := create(&x509.Certificate{
		Subject: pkix.Name{CommonName: "postern-operator"}, DNSNames: names, NotBefore: now.Add(-skew), NotAfter: now.Add(leafTime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, s.cert, private, s.private)
	if err != nil {
		return nil, nil, err
	}
	return encodeCerts([]*x509.Certificate{leaf}), key, nil
}

func create(template, parent *x509.Certificate, subject, issuer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &subject.PublicKey, issuer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	return private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(text []byte) *ecdsa.PrivateKey {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil
	}
	private, _ := key.(*ecdsa.PrivateKey)
	return private
}

// old reports whether two thirds of a certificate's life are over.
func old(now time.Time, cert *x509.Certificate) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return now.After(cert.NotAfter.Add(-life / 3))
}

// usable returns the certificate that is served, or nil if clients would refuse it.
func usable(now time.Time, m Material, trusted []*x509.Certificate, names []string) *x509.Certificate {
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		return nil
	}
	pool := x509.NewCertPool()
	for _, cert := range trusted {
		pool.AddCert(cert)
	}
	for _, name := range names {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, CurrentTime: now}); err != nil {
			return nil
		}
	}
	return pair.Leaf
}

// valid returns the authorities in a text that are valid now: a clock may have been wrong. What is none
// is left out.
func valid(now time.Time, text []byte) (list []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return list
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && cert.IsCA && now.After(cert.NotBefore) && now.Before(cert.NotAfter) && !contains(list, cert) {
			list = append(list, cert)
		}
	}
}

func contains(list []*x509.Certificate, cert *x509.Certificate) bool {
	return slices.ContainsFunc(list, cert.Equal)
}

func encodeCerts(list []*x509.Certificate) []byte {
	var text []byte
	for _, cert := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}
