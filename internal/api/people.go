package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The paths of signing in, users and roles that take no parameter.
const (
	PathSignIn     = "/v1/sign-in"
	PathWhoAmI     = "/v1/whoami"
	PathSessions   = "/v1/sessions"
	PathUsers      = "/v1/users"
	PathAdminToken = "/v1/admin-token"
)

// TokenTypeID is the type of an ID token in a token exchange (RFC 8693 §3).
const TokenTypeID = "urn:ietf:params:oauth:token-type:id_token"

// SignIn is the answer of GET /v1/sign-in: where people sign in. All is empty
// where they cannot.
type SignIn struct {
	Issuer   string   `json:"issuer,omitempty"`
	ClientID string   `json:"clientId,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	CA       string   `json:"ca,omitempty"` // PEM to trust for the issuer instead of the system's
}

// NonceOf returns the nonce that an ID token has to have for whoever shows secret
// with it. A token that is found somewhere is then of no use.
func NonceOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// SessionRequest asks for a session in exchange for an ID token.
type SessionRequest struct {
	IDToken     string
	NonceSecret string // of which NonceOf is in the ID token
	Session     string // ID of the session to renew; empty for a new one
	Client      string // program and machine, for lists
}

// Session is the answer to a SessionRequest (RFC 8693 §2.2.1).
type Session struct {
	AccessToken     string   `json:"access_token"` // a secret
	IssuedTokenType string   `json:"issued_token_type"`
	TokenType       string   `json:"token_type"` // "Bearer"
	ExpiresIn       int64    `json:"expires_in"` // seconds
	SessionID       string   `json:"session_id"`
	User            string   `json:"user"`
	Groups          []string `json:"groups,omitempty"`
}

// SessionInfo is what the hub tells of a session.
type SessionInfo struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Groups  []string  `json:"groups,omitempty"`
	Source  string    `json:"source"` // address from which it was renewed last
	Client  string    `json:"client,omitempty"`
	Created time.Time `json:"created"`
	Renewed time.Time `json:"renewed"`
	Expires time.Time `json:"expires"`
}

// User is a person who has signed in, or who was revoked.
type User struct {
	Name     string    `json:"name"`
	Issuer   string    `json:"issuer,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Groups   []string  `json:"groups,omitempty"` // at the last sign-in
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
	Revoked  time.Time `json:"revoked,omitzero"` // zero: may sign in
}

// RoleBinding is a role that a user or group has in an organization.
type RoleBinding struct {
	Role      string    `json:"role"`
	Principal string    `json:"principal"` // user:NAME or group:NAME
	Created   time.Time `json:"created"`
	By        string    `json:"by"`
}

// GrantRole is the body of POST /v1/organizations/ORG/roles.
type GrantRole struct {
	Role      string `json:"role"`
	Principal string `json:"principal"`
}

// WhoAmI is the answer of GET /v1/whoami.
type WhoAmI struct {
	Principal    string              `json:"principal"`
	Organization string              `json:"organization,omitempty"` // of a robot
	Groups       []string            `json:"groups,omitempty"`
	Hub          bool                `json:"hub"`             // administers the hub itself
	Roles        map[string][]string `json:"roles,omitempty"` // by organization
	Session      string              `json:"session,omitempty"`
	Expires      time.Time           `json:"expires,omitzero"` // of the session
}

// AdminToken is the administrator's token at its making. It is a secret.
type AdminToken struct {
	Token string `json:"token"`
}

// SignIn returns where people sign in. It needs no token.
func (c *Client) SignIn(ctx context.Context) (SignIn, error) {
	return get[SignIn](ctx, c, PathSignIn, nil)
}

// OpenSession exchanges an ID token for a session.
func (c *Client) OpenSession(ctx context.Context, r SessionRequest) (*Session, error) {
	form := url.Values{
		"grant_type": {GrantTypeExchange}, "requested_token_type": {TokenTypeAccess},
		"subject_token": {r.IDToken}, "subject_token_type": {TokenTypeID},
	}
	for name, value := range map[string]string{"nonce_secret": r.NonceSecret, "session": r.Session, "client": r.Client} {
		if value != "" {
			form.Set(name, value)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL+PathToken, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, badURL(c.BaseURL, err)
	}
	req.Header.Set("Content-Type", TypeForm)
	var s Session
	_, err = c.send(req, &s)
	return &s, err
}

// WhoAmI returns who the token's owner is.
func (c *Client) WhoAmI(ctx context.Context) (WhoAmI, error) {
	return get[WhoAmI](ctx, c, PathWhoAmI, nil)
}

// Sessions returns one's own sessions, or for those who administer the hub those
// of a user, or with an empty name of all.
func (c *Client) Sessions(ctx context.Context, user string) ([]SessionInfo, error) {
	query := url.Values{}
	if user != "" {
		query.Set("user", user)
	}
	return get[[]SessionInfo](ctx, c, PathSessions, query)
}

// RevokeSession ends a session and cuts what was issued on it.
func (c *Client) RevokeSession(ctx context.Context, id string) error {
	return c.remove(ctx, PathSessions+"/"+url.PathEscape(id), nil)
}

// Users returns all who have signed in or were revoked.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	return get[[]User](ctx, c, PathUsers, nil)
}

// RevokeUser ends a user's sessions and lets the user sign in no more.
func (c *Client) RevokeUser(ctx context.Context, user string) error {
	return c.order(ctx, http.MethodPost, PathUsers+"/"+url.PathEscape(user)+"/revoke")
}

// AllowUser lets a revoked user sign in again.
func (c *Client) AllowUser(ctx context.Context, user string) error {
	return c.order(ctx, http.MethodPost, PathUsers+"/"+url.PathEscape(user)+"/allow")
}

// RoleBindings returns who has which role in an organization.
func (c *Client) RoleBindings(ctx context.Context, org string) ([]RoleBinding, error) {
	return get[[]RoleBinding](ctx, c, organizationPath(org)+"/roles", nil)
}

// GrantRole gives a user or group a role.
func (c *Client) GrantRole(ctx context.Context, org string, g GrantRole) (RoleBinding, error) {
	return post[RoleBinding](ctx, c, organizationPath(org)+"/roles", g)
}

// RevokeRole takes a role from a user or group.
func (c *Client) RevokeRole(ctx context.Context, org string, g GrantRole) error {
	return c.remove(ctx, organizationPath(org)+"/roles/"+url.PathEscape(g.Role)+"/"+url.PathEscape(g.Principal), nil)
}

// RotateAdminToken replaces the administrator's token. The hub shows the new one
// this once, and keeps it in its data directory.
func (c *Client) RotateAdminToken(ctx context.Context) (AdminToken, error) {
	return post[AdminToken](ctx, c, PathAdminToken, struct{}{})
}

// DisableAdminToken switches the administrator's token off.
func (c *Client) DisableAdminToken(ctx context.Context) error {
	return c.order(ctx, http.MethodDelete, PathAdminToken)
}

// order asks for something that has no body and no answer.
func (c *Client) order(ctx context.Context, method, path string) error {
	req, err := http.NewRequestWithContext(ctx, method, c.BaseURL+path, nil)
	if err != nil {
		return badURL(c.BaseURL, err)
	}
	_, _, err = c.do(req)
	return err
}
