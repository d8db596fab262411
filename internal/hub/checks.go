package hub

import (
	"context"
	"crypto/tls"
	"net"

	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// checkPort sends bytes through the rendezvous, over the one port, as a proxy of
// the hub's own organization would.
func (h *Hub) checkPort(addr net.Addr) observe.Check {
	return func(ctx context.Context) error {
		host, port, err := net.SplitHostPort(addr.String())
		if err != nil {
			return err
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = "localhost"
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil {
			return err
		}
		creds := h.tenants.credentials()
		cfg := &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNPipe}, Certificates: []tls.Certificate{creds.Certificate},
			InsecureSkipVerify: true, //nolint:gosec // it is our own port, and no secret passes
		}
		_, err = pipe.Probe(ctx, conn, cfg)
		return err
	}
}

func (h *Hub) checkBus(ctx context.Context) error {
	one := h.tenants.get(registry.DefaultOrganization)
	if one == nil {
		return nil
	}
	_, err := one.bus.RTT(ctx)
	return err
}
