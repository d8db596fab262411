package identitytoken

import (
	"context"
	"fmt"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/uplink"
)

// Asker knows where identity tokens are asked for, and by which token. It is safe for
// concurrent use.
type Asker struct {
	dialer *uplink.Dialer
	file   string
}

// NewAsker returns the Asker of an operator's settings. Nobody is asked for anything yet.
func NewAsker(s config.Operator, getenv func(string) string) (*Asker, error) {
	c := uplink.Config{ConnectURL: s.Identity.URL, CAFile: s.Identity.CAFile, CAPin: s.Identity.CAPin, Getenv: getenv}
	if c.ConnectURL == "" {
		c.ConnectURL = s.ConnectURL
	}
	if c.CAFile == "" && c.CAPin == "" && c.ConnectURL == s.ConnectURL {
		c.CAFile, c.CAPin = s.CAFile, s.CAPin
	}
	dialer, err := uplink.New(c)
	if err != nil {
		return nil, err
	}
	return &Asker{dialer: dialer, file: s.Identity.TokenFile}, nil
}

// Issuer returns the issuer, as whoever the token file says now: it may be replaced at any time.
func (a *Asker) Issuer(context.Context) (Issuer, error) {
	token, _, err := enroll.ReadTokenFile(a.file)
	if err != nil {
		return nil, fmt.Errorf("--identity-token-file: %w", err)
	}
	return &api.Client{BaseURL: a.dialer.BaseURL(), HTTP: a.dialer.HTTPClient(), Token: token.Token}, nil
}

// Close gives idle connections back.
func (a *Asker) Close() { a.dialer.CloseIdle() }
