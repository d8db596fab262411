package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"
)

// told is a hub that has some authorities.
type told struct {
	text []byte
	err  error
}

func (h told) CA(context.Context) ([]byte, error) { return h.text, h.err }

// TestWithNext: what the hub changes to is added where its own authority has verified it,
// and nowhere else.
func TestWithNext(t *testing.T) {
	t.Parallel()
	now, next, company := authority(t), authority(t), authority(t)
	both := now + next
	for name, one := range map[string]struct {
		hub  told
		ca   string
		want string
	}{
		"no change":        {told{text: []byte(now)}, now, now},
		"a change":         {told{text: []byte(both)}, now, both},
		"a change back":    {told{text: []byte(both)}, next, next + now},
		"both are known":   {told{text: []byte(both)}, next + now, next + now},
		"verified by else": {told{text: []byte(both)}, company, company},
		"the system's":     {told{text: []byte(both)}, "", ""},
		"no answer":        {told{err: errors.New("away")}, now, now},
		"no certificates":  {told{text: []byte("junk")}, now, now},
	} {
		if got := withNext(t.Context(), one.hub, []byte(one.ca)); string(got) != one.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// authority returns the certificate of a new authority, in PEM.
func authority(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
