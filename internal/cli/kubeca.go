package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"

	"postern.dev/postern/internal/identity"
)

// authorities tells the certificates of the hub's own authorities, as *api.Client does.
type authorities interface {
	CA(ctx context.Context) ([]byte, error)
}

// withNext adds to the authorities that have verified the hub those that it changes to or
// from, so that what is written down now outlives the change. A hub that was verified by
// others, such as a company's, says nothing about those. Without an answer it is as before:
// what is there is good for now.
func withNext(ctx context.Context, hub authorities, ca []byte) []byte {
	known, err := identity.ParseCertificates(ca)
	if err != nil {
		return ca
	}
	text, err := hub.CA(ctx)
	if err != nil {
		return ca
	}
	all, err := identity.ParseCertificates(text)
	if err != nil || !slices.ContainsFunc(all, func(c *x509.Certificate) bool { return slices.ContainsFunc(known, c.Equal) }) {
		return ca
	}
	out := bytes.Clone(ca)
	for _, c := range all {
		if !slices.ContainsFunc(known, c.Equal) {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
	}
	return out
}
