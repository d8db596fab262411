package identitytoken

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

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

// maxKeys is how many bytes of an issuer's keys are read: its own are a few thousand.
const maxKeys = 256 << 10

// Published returns the IDs of the keys that an issuer, given by its name, shows where this Asker asks
// for tokens: its name may lead to somewhere that the operator does not reach.
func (a *Asker) Published(ctx context.Context, issuer string) (map[string]bool, error) {
	name, err := url.Parse(issuer)
	if err != nil {
		return nil, fmt.Errorf("the issuer's name: %w", err)
	}
	at, err := url.Parse(a.dialer.BaseURL())
	if err != nil {
		return nil, fmt.Errorf("the issuer's address: %w", err)
	}
	at.Path = name.Path + "/.well-known/jwks"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the issuer's keys: %w", err)
	}
	res, err := a.dialer.HTTPClient().Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for the issuer's keys: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for the issuer's keys: %s answers %s", at, res.Status)
	}
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxKeys)).Decode(&set); err != nil {
		return nil, fmt.Errorf("read the issuer's keys: %w", err)
	}
	if len(set.Keys) == 0 {
		return nil, fmt.Errorf("%s shows no keys", at)
	}
	shown := make(map[string]bool, len(set.Keys))
	for _, k := range set.Keys {
		shown[k.ID] = true
	}
	return shown, nil
}

// Close gives idle connections back.
func (a *Asker) Close() { a.dialer.CloseIdle() }
