package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeauth"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// Caller is who makes a request.
type Caller struct {
	Principal    identity.Principal
	Groups       []string // of a user, at the hub
	Organization string   // the only one that it belongs to; empty for a user, who may have roles in several
	Hub          bool     // a user who holds the permission over the hub itself
	Item         string   // what it showed, such as the ID of a session or token; empty for what the hub does not keep
	Expires      time.Time

	// Still, if not nil, says whether the caller is still who it was: for credentials
	// whose revocation nobody tells the hub. While a long request runs it is asked
	// from time to time; CodeUnauthenticated and CodeDenied end the request.
	Still func(ctx context.Context) error

	// Kubernetes is whom the cluster is to see.
	Kubernetes assertion.Identity

	// Dropped are groups of the caller that the cluster is not told of, because
	// their names are reserved.
	Dropped []string

	// Pass has the caller's own Authorization go to the API server untouched, in
	// place of Kubernetes. Whoever sets it has asked that very cluster about it.
	Pass bool
}

// Method is a way to prove who one is, as metrics name it.
type Method string

// The methods.
const (
	MethodNone        Method = "none" // no credential was shown, or none that is known
	MethodHub         Method = "hub"
	MethodCluster     Method = "cluster"
	MethodOIDC        Method = "oidc"
	MethodCertificate Method = "certificate"
)

// ErrNoCredentials says that a request shows nothing that an Authenticator is for: the
// next one is asked.
var ErrNoCredentials = errors.New("the request shows no credentials of this kind")

// Authenticator says who makes a request. It is safe for concurrent use. Its errors
// are ErrNoCredentials, or a *wire.Failure: with CodeUnauthenticated if the credential
// is of its kind and not good.
type Authenticator interface {
	Method() Method
	Authenticate(r *http.Request, u kubeurl.URL) (Caller, error)
}

// authenticate asks one Authenticator after the other. A credential that one of them
// knows and refuses is not shown to the others.
func (g *Gateway) authenticate(r *http.Request, u kubeurl.URL) (Caller, Method, error) {
	if len(r.Header.Values("Authorization")) > 1 {
		return Caller{}, MethodNone, wire.Fail(wire.LegClient, wire.CodeBadRequest, "the request has more than one Authorization field")
	}
	for _, a := range g.c.Authenticators {
		c, err := a.Authenticate(r, u)
		if !errors.Is(err, ErrNoCredentials) {
			return c, a.Method(), err
		}
	}
	f := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the request shows no credential").
		WithHint("sign in with postern login and use postern kubectl, or send a token: Authorization: Bearer TOKEN")
	if Token(r) != "" {
		f.Text, f.Hint = "the token is none that this hub knows", "use a session or robot token of this hub, or have its operator trust the token's issuer"
	}
	return Caller{}, MethodNone, f
}

// Token returns the bearer token that a request shows, or "".
func Token(r *http.Request) string { return kubeauth.Token(r.Header) }
