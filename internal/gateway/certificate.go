package gateway

import (
	"context"
	"net/http"
	"slices"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// Certificates is an Authenticator by client certificates, as Kubernetes has it: the
// common name is the user, organizations are groups. It counts only where the server
// has verified the certificate against the authority that is trusted with this:
// WithCertificates says so.
type Certificates struct {
	Names Names

	// Allowed says whether the hub lets a user in; nil for all.
	Allowed func(ctx context.Context, user string) error
}

// certificatesKey is where a connection's context says that client certificates count.
type certificatesKey struct{}

// WithCertificates returns the context of a server's connections whose verified client
// certificates count.
func WithCertificates(ctx context.Context) context.Context {
	return context.WithValue(ctx, certificatesKey{}, true)
}

// Method implements Authenticator.
func (*Certificates) Method() Method { return MethodCertificate }

// Authenticate implements Authenticator.
func (a *Certificates) Authenticate(r *http.Request, _ kubeurl.URL) (Caller, error) {
	if r.Context().Value(certificatesKey{}) == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Caller{}, ErrNoCredentials
	}
	leaf := r.TLS.VerifiedChains[0][0]
	refuse := func(format string, args ...any) (Caller, error) {
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, format, args...)
	}
	c := Caller{
		Principal: identity.Principal{Kind: identity.KindUser, Name: leaf.Subject.CommonName},
		Groups:    slices.Compact(slices.Sorted(slices.Values(leaf.Subject.Organization))), Expires: leaf.NotAfter,
	}
	if err := sameSite(r); err != nil {
		return Caller{}, err
	}
	if err := c.Principal.Validate(); err != nil {
		return refuse("the client certificate names no user: %s", err)
	}
	if len(c.Groups) > identity.MaxGroups {
		return refuse("the client certificate has %d organizations, and %d are possible", len(c.Groups), identity.MaxGroups)
	}
	for _, g := range c.Groups {
		if err := (identity.Principal{Kind: identity.KindGroup, Name: g}).Validate(); err != nil {
			return refuse("the client certificate: %s", err)
		}
	}
	if a.Allowed != nil {
		c.Still = func(ctx context.Context) error { return a.Allowed(ctx, c.Principal.Name) }
		if err := c.Still(r.Context()); err != nil {
			return Caller{}, err
		}
	}
	var err error
	c.Kubernetes, c.Dropped, err = a.Names.User(c.Principal.Name, c.Groups)
	return c, err
}

// sameSite refuses what another site has a browser send: a browser shows its user's
// certificate without asking, as it does with cookies, and whoever sends a request that
// changes something need not see the answer. Programs other than browsers are not meant.
func sameSite(r *http.Request) error {
	asked := r
	if r.Header.Get("Upgrade") != "" { // a WebSocket begins with GET, and any site may read it
		asked = r.Clone(r.Context())
		asked.Method = http.MethodPost
	}
	if err := new(http.CrossOriginProtection).Check(asked); err != nil {
		return wire.Fail(wire.LegClient, wire.CodeDenied, "a page of another site had the browser send this: %s", err).WithCause(err)
	}
	return nil
}
