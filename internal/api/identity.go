package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// PathIssuerKeys is where the keys of the issuer of identity tokens are managed.
const PathIssuerKeys = "/v1/issuer/keys"

// IdentityTokensPath returns where identity tokens of an organization's control planes
// are asked for, at a hub and at an issuer that runs alone.
func IdentityTokensPath(org string) string { return organizationPath(org) + "/identity-tokens" }

// CreateIdentityToken is the body of POST /v1/organizations/ORG/identity-tokens.
type CreateIdentityToken struct {
	ControlPlane string   `json:"controlPlane"`        // NAME, or SPACE/GROUP/NAME for a subject that is scoped to a group
	Provider     string   `json:"provider"`            // who it is in the control plane
	Audiences    []string `json:"audiences,omitempty"` // who shall accept it; none: the issuer only
}

// IdentityToken is an identity token at its making. Token is a secret that nobody
// keeps; the rest is in the token too.
type IdentityToken struct {
	Token     string    `json:"token"`
	Subject   string    `json:"subject"`
	Audiences []string  `json:"audiences"`
	ID        string    `json:"id"` // "jti"
	IssuedAt  time.Time `json:"issuedAt"`
	Expires   time.Time `json:"expires"`
}

// SetIdentityFor is the body of PUT /v1/organizations/ORG/robots/ROBOT/identity-for.
type SetIdentityFor struct {
	// ControlPlanes are those that the robot may ask identity tokens for: NAME or
	// SPACE/GROUP/NAME, where * stands for one or more characters of a part. None takes
	// the right away.
	ControlPlanes []string `json:"controlPlanes"`
}

// IssuerKey is a signing key of the issuer of identity tokens.
type IssuerKey struct {
	ID      string    `json:"id"`    // "kid" of tokens
	Type    string    `json:"type"`  // "rsa-2048", …
	Phase   string    `json:"phase"` // "published", "signing" or "retiring"
	Created time.Time `json:"created,omitzero"`
	Since   time.Time `json:"since,omitzero"` // when the phase began
	Ends    time.Time `json:"ends,omitzero"`  // when it ends by itself; zero: never
}

// RotateIssuer is the body of POST /v1/issuer/keys.
type RotateIssuer struct {
	AtOnce bool `json:"atOnce,omitempty"` // the next key signs now, however long it was published
}

// CreateIdentityToken asks for an identity token of a provider in a control plane.
func (c *Client) CreateIdentityToken(ctx context.Context, org string, t CreateIdentityToken) (IdentityToken, error) {
	return post[IdentityToken](ctx, c, IdentityTokensPath(org), t)
}

// SetIdentityFor says for which control planes a robot may ask for identity tokens.
func (c *Client) SetIdentityFor(ctx context.Context, org, robot string, controlPlanes []string) (Robot, error) {
	return submit[Robot](ctx, c, http.MethodPut, robotsPath(org)+"/"+url.PathEscape(robot)+"/identity-for", SetIdentityFor{controlPlanes})
}

// IssuerKeys returns the signing keys of the hub's issuer, the one that signs first.
func (c *Client) IssuerKeys(ctx context.Context) ([]IssuerKey, error) {
	return get[[]IssuerKey](ctx, c, PathIssuerKeys, nil)
}

// RotateIssuer publishes the next signing key of the hub's issuer.
func (c *Client) RotateIssuer(ctx context.Context, r RotateIssuer) ([]IssuerKey, error) {
	return post[[]IssuerKey](ctx, c, PathIssuerKeys, r)
}

// WithdrawIssuerKey removes a signing key at once, by its ID or the beginning of it.
func (c *Client) WithdrawIssuerKey(ctx context.Context, id string) error {
	return c.remove(ctx, PathIssuerKeys+"/"+url.PathEscape(id), nil)
}
