package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// Revocation keeps an agent or a proxy out by its name, whatever it shows.
type Revocation struct {
	Organization string    `json:"organization"`
	Role         string    `json:"role"` // "agent" or "proxy"
	Name         string    `json:"name"`
	Reason       string    `json:"reason,omitempty"`
	By           string    `json:"by,omitempty"` // principal; robots are told neither
	Revoked      time.Time `json:"revoked"`

	// Cut is how many connections were cut, in the answer to RevokeParty only.
	Cut int `json:"cut,omitempty"`
}

// RevokeParty is the body of PUT /v1/organizations/ORG/revocations/ROLE/NAME.
type RevokeParty struct {
	Reason string `json:"reason,omitempty"` // for those who administer; 1024 bytes at most
}

// Revocations returns the agents and proxies of an organization that are revoked by name,
// agents first, by name.
func (c *Client) Revocations(ctx context.Context, org string) ([]Revocation, error) {
	return get[[]Revocation](ctx, c, revocationsPath(org), nil)
}

// RevokeParty revokes an agent or a proxy, role being "agent" or "proxy": its connections
// are cut, and nobody gets credentials by that name. It returns what holds now, which for
// one that is revoked already is the revocation of then.
func (c *Client) RevokeParty(ctx context.Context, org, role, name string, r RevokeParty) (Revocation, error) {
	return submit[Revocation](ctx, c, http.MethodPut, revocationPath(org, role, name), r)
}

// RestoreParty lets a revoked agent or proxy in again.
func (c *Client) RestoreParty(ctx context.Context, org, role, name string) error {
	return c.remove(ctx, revocationPath(org, role, name), nil)
}

func revocationsPath(org string) string { return organizationPath(org) + "/revocations" }
func revocationPath(org, role, name string) string {
	return revocationsPath(org) + "/" + url.PathEscape(role) + "/" + url.PathEscape(name)
}

// IsPartyRevoked reports whether err is the hub's answer that the party which asks for
// credentials is revoked by name. Unlike a token or key that was revoked, it may be
// restored.
func IsPartyRevoked(err error) bool {
	var p *Problem
	return errors.As(err, &p) && p.Code == ErrorPartyRevoked
}
