package api

import (
	"context"
	"net/url"
	"time"
)

// PathAuthorities is where administrators find the hub's certificate authorities.
const PathAuthorities = PathCA + "/authorities"

// Authority is a certificate authority of the hub.
type Authority struct {
	Pin          string    `json:"pin"`
	Phase        string    `json:"phase"` // announced, signing, retiring, retired or distrusted
	Since        time.Time `json:"since"` // of the phase
	NotAfter     time.Time `json:"notAfter,omitzero"`
	NextPhase    time.Time `json:"nextPhase,omitzero"`    // when the next one comes at the latest; zero: by request only
	WaitsFor     int       `json:"waitsFor,omitempty"`    // credentials that the next phase waits for
	Certificates int       `json:"certificates"`          // certificates of parties that it issued and that are alive
	Certificate  string    `json:"certificate,omitempty"` // PEM, while it is trusted
}

// RotateCA is the body of POST /v1/ca/authorities.
type RotateCA struct {
	AtOnce bool `json:"atOnce,omitempty"`
}

// Authorities returns the hub's certificate authorities, the newest first.
func (c *Client) Authorities(ctx context.Context) ([]Authority, error) {
	return get[[]Authority](ctx, c, PathAuthorities, nil)
}

// RotateCA makes a new certificate authority that takes over when all parties
// trust it, or at once, and returns all.
func (c *Client) RotateCA(ctx context.Context, r RotateCA) ([]Authority, error) {
	return post[[]Authority](ctx, c, PathAuthorities, r)
}

// RetireCA withdraws the certificate authority with a pin, of which the first
// digits suffice. One that is in use is withdrawn with force only, and what
// it issued is cut off.
func (c *Client) RetireCA(ctx context.Context, pin string, force bool) error {
	query := url.Values{}
	if force {
		query.Set("force", "true")
	}
	return c.remove(ctx, PathAuthorities+"/"+url.PathEscape(pin), query)
}
