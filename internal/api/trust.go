package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"postern.dev/postern/internal/wire"
)

// Trust is an issuer whose tokens enrol workloads of an organization.
type Trust struct {
	Organization string    `json:"organization"`
	Name         string    `json:"name"`
	Issuer       string    `json:"issuer"`    // as in "iss"
	Audiences    []string  `json:"audiences"` // a token has to be for one of them
	Claims       []string  `json:"claims"`    // CLAIM=PATTERN, all of which a token has to meet
	Role         string    `json:"role"`      // "agent" or "proxy"
	Identity     string    `json:"identity"`  // the agent ID or proxy name that it enrols; may hold one {CLAIM}
	Keys         bool      `json:"keys"`      // its keys were given, and it is not asked for them
	Public       bool      `json:"public"`    // it is asked at addresses of the public Internet only
	Created      time.Time `json:"created"`
}

// CreateTrust is the body of POST /v1/organizations/ORG/trusts.
type CreateTrust struct {
	Name      string   `json:"name"`
	Issuer    string   `json:"issuer"`
	Audiences []string `json:"audiences"`
	Claims    []string `json:"claims"`
	Role      string   `json:"role"`
	Identity  string   `json:"identity"`
	CA        string   `json:"ca,omitempty"`   // PEM to verify the issuer with, instead of the system's CAs
	Keys      string   `json:"keys,omitempty"` // JWK set, for an issuer that the hub cannot reach
}

// SetTrustKeys is the body of PUT /v1/organizations/ORG/trusts/NAME/keys.
type SetTrustKeys struct {
	Keys string `json:"keys"` // JWK set
}

// Trusts returns an organization's trusted issuers, by name.
func (c *Client) Trusts(ctx context.Context, org string) ([]Trust, error) {
	return get[[]Trust](ctx, c, trustsPath(org), nil)
}

// CreateTrust has an organization trust an issuer.
func (c *Client) CreateTrust(ctx context.Context, org string, t CreateTrust) (Trust, error) {
	return post[Trust](ctx, c, trustsPath(org), t)
}

// SetTrustKeys replaces the keys of an issuer that the hub does not ask for them.
func (c *Client) SetTrustKeys(ctx context.Context, org, name, keys string) error {
	b, err := json.Marshal(SetTrustKeys{Keys: keys})
	if err != nil {
		return wire.Fail(wire.LegClient, wire.CodeInternal, "encode request: %s", err).WithCause(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.BaseURL+trustsPath(org)+"/"+url.PathEscape(name)+"/keys", bytes.NewReader(b))
	if err != nil {
		return badURL(c.BaseURL, err)
	}
	req.Header.Set("Content-Type", TypeJSON)
	_, _, err = c.do(req)
	return err
}

// RemoveTrust ends the trust in an issuer. What enrolled by it is cut off.
func (c *Client) RemoveTrust(ctx context.Context, org, name string) error {
	return c.remove(ctx, trustsPath(org)+"/"+url.PathEscape(name), nil)
}

func trustsPath(org string) string { return organizationPath(org) + "/trusts" }
