// Package kube makes configurations of client-go for clusters behind Postern's agents, so
// that clients, informers and controllers reach them without a kubeconfig.
//
// There are two ways. [Gateway] goes by the hub's gateway: the program is itself, RBAC in
// the cluster decides, and no credential of the cluster is needed. [Tunnel] goes through
// the agent to the API server, end to end: the hub sees nothing, and the program has
// credentials of the cluster, as if it were there.
package kube

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"

	"postern.dev/postern/dialer"
)

// Gateway returns a configuration for a cluster at the hub's gateway. All of client-go
// works with it, exec and port-forward too. The cluster is named as in a URL of the
// gateway; the error is a *dialer.Error.
func Gateway(g *dialer.Gateway, cluster string) (*rest.Config, error) {
	host, err := g.URL(cluster)
	if err != nil {
		return nil, err
	}
	c := &rest.Config{Host: host, TLSClientConfig: rest.TLSClientConfig{CAData: g.CA, ServerName: g.ServerName}}
	if g.ProxyURL != "" {
		proxy, err := url.Parse(g.ProxyURL)
		if err != nil {
			return nil, err
		}
		c.Proxy = http.ProxyURL(proxy)
	}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &bearer{gateway: g, next: next} })
	return c, nil
}

// bearer adds the token of the moment to each request.
type bearer struct {
	gateway *dialer.Gateway
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := b.gateway.Token(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return b.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (b *bearer) WrappedRoundTripper() http.RoundTripper { return b.next }

// apiServer is the name under which every cluster knows its own API server.
const apiServer = "kubernetes.default.svc"

// Tunnel returns a copy of a configuration whose connections go through an agent. Its
// Host is an address as the agent sees it; empty for the API server of the agent's own
// cluster. Credentials and CA are those of the cluster, and verified end to end.
//
// Exec, attach and port-forward of client-go dial by themselves and do not go through: they
// fail, since the Host of the configuration is a name that does not exist outside. Give
// them the round tripper of [RoundTripperFor], or use Gateway.
func Tunnel(d *dialer.Dialer, agent string, base *rest.Config) *rest.Config {
	c := rest.CopyConfig(base)
	scheme, target, name, path := targetOf(c.Host)
	c.Host = scheme + "://" + agent + ".postern.invalid" + path
	if c.ServerName == "" && !c.Insecure {
		c.ServerName = name
	}
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.Dial(ctx, agent+"/"+target) }
	// The agent is the way; a proxy of this machine's environment is not.
	c.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } //nolint:nilnil // that is what "no proxy" is
	return c
}

// targetOf returns what an agent is asked for to reach the host of a configuration, the
// name in the server's certificate, and the scheme and path of the API there.
func targetOf(host string) (scheme, target, name, path string) {
	if host == "" {
		return "https", "kubernetes", apiServer, ""
	}
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	u, err := url.Parse(host)
	if err != nil {
		return "https", "tcp:" + host, "", "" // refused by Dial, with a better error
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return u.Scheme, "tcp:" + net.JoinHostPort(u.Hostname(), port), u.Hostname(), strings.TrimSuffix(u.EscapedPath(), "/")
}
