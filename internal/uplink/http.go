package uplink

import (
	"context"
	"net"
	"net/http"
	"time"
)

// BaseURL returns the https URL of the hub's API on the one port, without a
// slash at its end.
func (d *Dialer) BaseURL() string { return d.endpoint.BaseURL() }

// HTTPClient returns the client for the hub's HTTPS API. It is one and the same
// at each call, so connections are shared; it goes where the Dialer goes
// whatever host a request names, presents no certificate, and does not follow
// redirects, for requests carry secrets. Errors have a *wire.Failure in their
// chain. Requests are limited by their contexts.
func (d *Dialer) HTTPClient() *http.Client { return d.client }

// CloseIdle closes idle connections to the hub's API.
func (d *Dialer) CloseIdle() { d.client.CloseIdleConnections() }

func (d *Dialer) newHTTPClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				raw, err := d.DialRaw(ctx)
				if err != nil {
					return nil, err
				}
				conn, _, err := d.handshake(ctx, raw, []string{"h2", "http/1.1"}, nil)
				if err != nil {
					return nil, err // a nil *tls.Conn must not become a net.Conn
				}
				return conn, nil
			},
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        time.Minute,
			ResponseHeaderTimeout:  time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
			// A hub that vanished without a FIN must not hold requests up.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 10 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
