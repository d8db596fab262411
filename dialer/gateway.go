package dialer

import (
	"context"
	"errors"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/uplink"
)

// tokenReuse is for how long a token that was read is shown again.
const tokenReuse = 10 * time.Second

// Gateway is what a client of Kubernetes needs to reach clusters by the hub's gateway:
// with URLs, and as the program or person that the options are of. RBAC in each cluster
// decides; no credential of a cluster is needed. Unlike a Dialer it holds no connection,
// so there is nothing to close. It is safe for concurrent use.
type Gateway struct {
	base string
	org  string

	// CA is the authority of the hub in PEM; nil for the system's. ServerName is the
	// name in its certificate; empty for the host of the URL. ProxyURL is the HTTP
	// proxy on the way, from the options.
	CA         []byte
	ServerName string
	ProxyURL   string

	token func(context.Context) (string, error)

	mu   sync.Mutex
	text string // guarded by mu
	read time.Time
}

// NewGateway asks the hub for its certificate and returns its Gateway. Of the options,
// those count that say where the hub is, the organization, and the secret. The error is
// an *Error.
func NewGateway(ctx context.Context, o Options) (*Gateway, error) {
	cfg, err := o.party()
	if err != nil {
		return nil, public(err)
	}
	d, err := uplink.New(uplink.Config{ConnectURL: o.ConnectURL, CAFile: o.CAFile, CAPin: o.CAPin, ProxyURL: o.ProxyURL, ProxyCAFile: o.ProxyCAFile})
	if err != nil {
		return nil, public(err)
	}
	defer d.CloseIdle()
	if d.Endpoint().WebSocket() {
		return nil, badRequest(errors.New("the gateway is reached by https:// or tls://, and not inside a WebSocket"))
	}
	server, err := d.Server(ctx)
	if err != nil {
		return nil, public(err)
	}
	secret := o.secret()
	return &Gateway{
		base: d.BaseURL(), org: cfg.Settings.Organization, CA: server.CA, ServerName: server.Name, ProxyURL: o.ProxyURL,
		token: func(ctx context.Context) (string, error) { t, _, err := secret.SubjectToken(ctx); return t, err },
	}, nil
}

// URL returns the address of a cluster's API server: the one of an agent, or of the name
// that the cluster is registered under. The error is an *Error with CodeBadRequest.
func (g *Gateway) URL(cluster string) (string, error) {
	if err := identity.ValidateName("cluster", cluster); err != nil {
		return "", badRequest(err)
	}
	return g.base + "/" + g.org + ":" + cluster, nil
}

// Token returns what to send as bearer token, at the moment: it is renewed or read again
// when it is time. Send it to nobody but the hub. The error is an *Error.
func (g *Gateway) Token(ctx context.Context) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.text != "" && time.Since(g.read) < tokenReuse {
		return g.text, nil
	}
	text, err := g.token(ctx)
	if err != nil {
		return "", public(err)
	}
	g.text, g.read = text, time.Now()
	return text, nil
}
