package api

import (
	"context"
	"net/url"
	"time"
)

// PathJoin is where an agent shows the secret of its join string.
const PathJoin = "/v1/join"

// CreateJoin is the body of POST /v1/organizations/ORG/joins.
type CreateJoin struct {
	Agent       string `json:"agent"`
	Description string `json:"description,omitempty"` // of the agent
	ExpiresIn   int64  `json:"expiresIn"`             // seconds
	ConnectURL  string `json:"connectUrl"`            // where the agent reaches the hub
	FurtherKey  bool   `json:"furtherKey,omitempty"`  // it may give an agent that is registered a further key
}

// NewJoin is a join string at its making. The string is a secret that the hub does
// not keep and cannot show again.
type NewJoin struct {
	ID           string    `json:"id"`
	Organization string    `json:"organization"`
	Agent        string    `json:"agent"`
	Expires      time.Time `json:"expires"`
	ConnectURL   string    `json:"connectUrl"`
	CAPin        string    `json:"caPin,omitempty"` // empty: the hub presents a certificate of a public CA
	JoinString   string    `json:"joinString"`
}

// The states of a join string.
const (
	JoinOpen    = "open"    // nobody has used it
	JoinUsed    = "used"    // an agent has joined with it
	JoinExpired = "expired" // nobody has used it in time
)

// Join is what the hub tells of a join string after it was made.
type Join struct {
	ID           string    `json:"id"`
	Organization string    `json:"organization"`
	Agent        string    `json:"agent"`
	State        string    `json:"state"`
	FurtherKey   bool      `json:"furtherKey,omitempty"`
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires"`
	Used         time.Time `json:"used,omitzero"`
	KeyID        string    `json:"keyId,omitempty"` // of the key that used it
}

// UseJoin is the body of POST /v1/join.
type UseJoin struct {
	Organization string `json:"organization"`
	ID           string `json:"id"`
	Secret       string `json:"secret"`
	PublicKey    string `json:"publicKey"` // in PEM
}

// Joined is the answer to UseJoin: the key is registered for the agent.
type Joined struct {
	Organization string `json:"organization"`
	Agent        string `json:"agent"`
	KeyID        string `json:"keyId"`
}

// CreateJoin makes a join string. The hub shows it this once.
func (c *Client) CreateJoin(ctx context.Context, org string, j CreateJoin) (NewJoin, error) {
	return post[NewJoin](ctx, c, joinsPath(org), j)
}

// Joins returns an organization's join strings, the newest first.
func (c *Client) Joins(ctx context.Context, org string) ([]Join, error) {
	return get[[]Join](ctx, c, joinsPath(org), nil)
}

// RevokeJoin removes a join string by its ID.
func (c *Client) RevokeJoin(ctx context.Context, org, id string) error {
	return c.remove(ctx, joinsPath(org)+"/"+url.PathEscape(id), nil)
}

// Join registers an agent's key with the secret of a join string. It needs no token.
func (c *Client) Join(ctx context.Context, j UseJoin) (Joined, error) {
	return post[Joined](ctx, c, PathJoin, j)
}

func joinsPath(org string) string { return organizationPath(org) + "/joins" }
