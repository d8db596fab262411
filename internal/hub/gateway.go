package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
)

// maxGatewayRequests bounds what the gateway carries at once, for all callers.
const maxGatewayRequests = 20_000

// openGateway makes the gateway; the API is there already.
func (h *Hub) openGateway(signIn *SignIn, metrics *observe.Gateway) error {
	signer, err := h.orders.Signer()
	if err != nil {
		return err
	}
	names := gateway.Names{UserPrefix: h.cfg.GatewayUserPrefix, GroupPrefix: h.cfg.GatewayGroupPrefix, Reserved: h.cfg.GatewayReserved}
	ask := func(org, agent string) gateway.Asker {
		return func(r *http.Request) (*http.Response, error) { return h.gateway.Ask(org, agent)(r) }
	}
	ids, err := newGatewayIDTokens(signIn, h.cfg.GatewayIssuers, h.signInOptions(), h.registry, names)
	if err != nil {
		return err
	}
	authenticators, err := gatewayAuthenticators(h.cfg.Gateway, &gatewayTokens{h.state, h.auth, names, newRecentCallers()}, ids, ask, h.pod)
	if err != nil {
		return err
	}
	h.gateway = gateway.New(gateway.Config{
		Hub:            &gatewayHub{registry: h.registry, tenants: h.tenants, access: h.access, issued: h.issued, holds: h.api.holds},
		Authenticators: authenticators,
		Signer:         signer,
		Self:           identity.Principal{Kind: identity.KindHub, Name: h.state.Node()},
		Limits:         gateway.Limits{Short: h.cfg.GatewayShort, Long: h.cfg.GatewayLong, Total: maxGatewayRequests},
		Failed: func(r *http.Request) time.Duration {
			if h.api.failures.failed(sourceOf(r), time.Now()) {
				return 0
			}
			return failureEvery
		},
		Audit: h.audit, Flood: h.audit.flood, Metrics: metrics, Log: h.log.With("part", "gateway"),
	})
	return nil
}

// gatewayEntrance is the gateway beside the API on the one port: every path belongs to
// it whose first segment is not one of the API's.
type gatewayEntrance struct {
	api, gateway http.Handler
	reserved     map[string]bool
}

func newGatewayEntrance(next, gw http.Handler) *gatewayEntrance {
	e := &gatewayEntrance{api: next, gateway: gw, reserved: make(map[string]bool)}
	for _, path := range []string{api.PathToken, api.PathHealth, api.PathReady} {
		e.reserved[firstSegment(path)] = true
	}
	return e
}

// ServeHTTP implements http.Handler.
func (e *gatewayEntrance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	segment := firstSegment(r.RequestURI)
	if segment == "" || segment[0] == '.' || e.reserved[segment] {
		e.api.ServeHTTP(w, r)
		return
	}
	e.gateway.ServeHTTP(w, r)
}

// firstSegment returns the first segment of a request's target as it stands there, or
// "" for a target that is no path.
func firstSegment(target string) string {
	rest, ok := strings.CutPrefix(target, "/")
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	return rest
}

// gatewayListener is the gateway's own listener.
type gatewayListener struct {
	server  *http.Server
	gate    *webGate
	serving *serving
}

// listenGateway opens the gateway's own listener, if the settings have one.
func (h *Hub) listenGateway(ctx context.Context) (*gatewayListener, error) {
	if h.cfg.GatewayListen == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	l := &gatewayListener{serving: h.serving}
	if h.cfg.GatewayCertFile != "" {
		cfg := h.cfg
		cfg.TLSCertFile, cfg.TLSKeyFile = cfg.GatewayCertFile, cfg.GatewayKeyFile
		var err error
		if l.serving, err = newServing(cfg, h.state, h.log); err != nil {
			return nil, fmt.Errorf("certificate of --gateway-listen: %w", err)
		}
	}
	secure := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.serving.certificate() },
	}
	if file := h.cfg.GatewayClientCAFile; file != "" {
		clients := &clientCAs{file: file, log: h.log}
		if _, err := clients.pool(); err != nil {
			return nil, err
		}
		plain := secure.Clone()
		secure.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cfg := plain.Clone()
			var err error
			cfg.ClientAuth = tls.VerifyClientCertIfGiven
			cfg.ClientCAs, err = clients.pool()
			return cfg, err
		}
	}
	var lc net.ListenConfig
	lc.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}
	ln, err := lc.Listen(ctx, "tcp", h.cfg.GatewayListen)
	if err != nil {
		return nil, fmt.Errorf("--gateway-listen: %w", err)
	}
	l.gate = newWebGate(tls.NewListener(ln, secure), maxWeb, maxWebPerSource)
	l.server = NewHTTPServer(h.gateway, h.log)
	l.server.ConnState = l.gate.changed
	l.server.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return gateway.WithCertificates(ctx) }
	return l, nil
}

// run serves until the listener is closed.
func (l *gatewayListener) run() error {
	if err := l.server.Serve(l.gate); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// close ends the listener with all of its connections; a nil one has none.
func (l *gatewayListener) close() {
	if l != nil {
		_ = l.server.Close()
		_ = l.gate.Close()
	}
}

// clientCAs are the authorities of client certificates, read again when their file
// changes.
type clientCAs struct {
	file string
	log  *slog.Logger

	mu    sync.Mutex
	stamp string
	last  *x509.CertPool
}

func (c *clientCAs) pool() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp := fileStamp(c.file)
	if c.last != nil && stamp == c.stamp {
		return c.last, nil
	}
	pem, err := os.ReadFile(c.file)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = errors.New("it holds no certificate")
	}
	switch {
	case err == nil:
		c.stamp, c.last = stamp, pool
	case c.last == nil:
		return nil, fmt.Errorf("--gateway-client-ca-file: %w", err)
	case stamp != c.stamp:
		c.stamp = stamp
		c.log.Error("the old client CA stays in use: the new one cannot be read", "file", c.file, "error", err)
	}
	return c.last, nil
}

// closeGateway closes the gateway, with time for its requests to end, when ctx ends;
// the result waits for that.
func (h *Hub) closeGateway(ctx context.Context) (wait func()) {
	done := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(done)
		limit, cancel := context.WithTimeout(context.Background(), h.cfg.DrainTimeout)
		defer cancel()
		h.gateway.Close(limit)
	})
	return func() { <-done }
}
