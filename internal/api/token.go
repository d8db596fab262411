package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The constants of the token exchange (RFC 8693 §2.1 and §3).
const (
	GrantTypeExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	TokenTypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	TokenTypeAccess      = "urn:ietf:params:oauth:token-type:access_token" // an administrator's token
	TokenTypeCredentials = "urn:postern:params:oauth:token-type:credentials"
)

// The error codes of the token endpoint (RFC 6749 §5.2, RFC 8693 §2.2.2;
// temporarily_unavailable and slow_down are of RFC 6749 §4.1.2.1 and RFC 8628 §3.5).
const (
	ErrorInvalidRequest   = "invalid_request"
	ErrorInvalidGrant     = "invalid_grant"       // the subject token is not good
	ErrorInvalidTarget    = "invalid_target"      // the audience is not the token's organization
	ErrorUnauthorized     = "unauthorized_client" // the subject may not have what it asks for
	ErrorUnsupportedGrant = "unsupported_grant_type"
	ErrorUnavailable      = "temporarily_unavailable"
	ErrorSlowDown         = "slow_down"
	ErrorPartyRevoked     = "party_revoked" // ours: the agent or proxy is revoked by name, whatever it shows
)

// TokenRequest asks for short-lived credentials in exchange for a long-lived
// secret.
type TokenRequest struct {
	SubjectToken     string
	SubjectTokenType string // TokenTypeJWT or TokenTypeAccess
	Organization     string // the audience
	Role             string // "agent" or "proxy"
	Name             string
	Replica          string
	CSR              string // PKCS #10 in PEM, for the key that gets the certificate
	BusKey           string // the public key that gets the bus credentials
	Version          string // of the program that asks
	Previous         string // serial number of the certificate that this renews; empty for the first
}

// Digest returns what an agent's assertion for this request has to hold; see
// RequestDigest.
func (r *TokenRequest) Digest() string { return RequestDigest(r.form()) }

// RequestDigest returns the SHA-256 of a token request in base64url: of its
// parameters but the subject token, sorted by name and in form encoding. With it
// in an assertion, whoever gets hold of the assertion cannot use it for keys of
// his own.
func RequestDigest(form url.Values) string {
	rest := maps.Clone(form)
	delete(rest, "subject_token")
	sum := sha256.Sum256([]byte(rest.Encode()))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// form returns the request's parameters.
func (r *TokenRequest) form() url.Values {
	form := url.Values{
		"grant_type":           {GrantTypeExchange},
		"requested_token_type": {TokenTypeCredentials},
		"subject_token":        {r.SubjectToken},
		"subject_token_type":   {r.SubjectTokenType},
		"audience":             {r.Organization},
		"role":                 {r.Role},
		"name":                 {r.Name},
		"replica":              {r.Replica},
		"csr":                  {r.CSR},
		"bus_key":              {r.BusKey},
		"version":              {r.Version},
	}
	if r.Previous != "" {
		form.Set("previous", r.Previous)
	}
	return form
}

// TokenResponse is the answer to a TokenRequest (RFC 8693 §2.2.1).
type TokenResponse struct {
	AccessToken     string        `json:"access_token"` // the certificate chain in PEM
	IssuedTokenType string        `json:"issued_token_type"`
	TokenType       string        `json:"token_type"` // "N_A": it is not a bearer token
	ExpiresIn       int64         `json:"expires_in"` // seconds
	CABundle        string        `json:"ca_bundle"`  // the organization's authorities in PEM, for inner TLS
	BusToken        string        `json:"bus_token"`
	TrustDomain     string        `json:"trust_domain"`
	Item            string        `json:"item,omitempty"` // ID of the token, key or session that was shown; empty from a hub of an older version
	Configuration   Configuration `json:"configuration"`

	// HubTime is the hub's clock as it answered, to the second; zero if it did
	// not say. It comes from the Date field.
	HubTime time.Time `json:"-"`
}

// Configuration is what a hub tells its parties beside their credentials.
type Configuration struct {
	HubVersion string   `json:"hub_version,omitempty"`
	Relays     []string `json:"relays,omitempty"` // connect URLs; none means the one that the party used

	// OrdersKeys are the public keys by which an agent verifies its orders. None
	// means that the hub gives no orders, because it is of an older version.
	OrdersKeys []string `json:"orders_keys,omitempty"`
}

// TokenError is the body of the token endpoint's errors (RFC 6749 §5.2) with
// two members of ours.
type TokenError struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
	Hint        string `json:"hint,omitempty"`
	Leg         string `json:"leg,omitempty"`
}

// Exchange asks the token endpoint for credentials. Errors are *wire.Failure, with
// a *Problem in their chain when the hub answered.
func (c *Client) Exchange(ctx context.Context, r TokenRequest) (*TokenResponse, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL+PathToken, strings.NewReader(r.form().Encode()))
	if err != nil {
		return nil, badURL(c.BaseURL, err)
	}
	req.Header.Set("Content-Type", TypeForm)
	var res TokenResponse
	date, err := c.send(req, &res)
	if err != nil {
		return nil, err
	}
	res.HubTime = date
	return &res, nil
}
