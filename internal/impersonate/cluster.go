package impersonate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/wire"
)

// API says where the cluster's API server is, and how the agent proves itself to it.
type API struct {
	Address       wire.Target // tcp:HOST:PORT
	TokenFile     string      // of the agent's service account
	CAFile        string      // what verifies the API server; empty: the system's roots
	ServiceCAFile string      // what verifies services, beside CAFile; may be empty
}

const (
	lookFiles    = 10 * time.Second // between two looks at files
	maxFile      = 1 << 20          // bytes
	maxAnswer    = 1 << 20          // bytes of an answer's header
	reachTime    = 10 * time.Second // to connect, and again for TLS
	continueTime = 10 * time.Second // that a body waits for its 100 (Continue)
	keepIdle     = 90 * time.Second
	pingAfter    = 15 * time.Second // of silence on HTTP/2; load balancers cut what is silent for longer
	streamWindow = 256 << 10        // bytes that a slow reader leaves in memory
)

// cluster is the API server and the services of a cluster. It is an http.RoundTripper
// for requests, and safe for concurrent use.
type cluster struct {
	api    API
	host   string // of URLs
	judge  Judge
	log    *slog.Logger
	dialer reach.Dialer

	secret  atomic.Pointer[string]
	current atomic.Pointer[ways]

	mu   sync.Mutex // held by whoever looks at the files
	told string     // the last problem with files, for the log to tell once
	cas  [2][]byte  // what ways were made of
}

// ways are the connections that one set of authorities is good for.
type ways struct {
	api      *http.Transport // HTTP/2 where the server has it
	upgrades *http.Transport // HTTP/1.1, which alone can change to another protocol
	services *http.Transport
}

func newCluster(api API, judge Judge, log *slog.Logger) (*cluster, error) {
	c := &cluster{api: api, host: api.Address.Address(), judge: judge, log: log}
	if api.Address.Port == 443 {
		c.host = hostOnly(api.Address.Host)
	}
	if err := c.look(); err != nil {
		return nil, err
	}
	return c, nil
}

func hostOnly(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// token returns the service account's token of the moment.
func (c *cluster) token() string { return *c.secret.Load() }

// follow looks at the files until ctx ends.
func (c *cluster) follow(ctx context.Context) {
	tick := time.NewTicker(lookFiles)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.look(); err != nil && err.Error() != c.told {
				c.told = err.Error()
				c.log.Error("the cluster's credentials cannot be read; those before stay in use", "error", err)
			} else if err == nil {
				c.told = ""
			}
		}
	}
}

// look reads the files, and puts what has changed to use.
func (c *cluster) look() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, err := readFile(c.api.TokenFile)
	token := strings.TrimSpace(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("read the service account's token: %w", err)
	case token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return fmt.Errorf("read the service account's token: %s holds none", c.api.TokenFile)
	}
	var cas [2][]byte
	for i, file := range []string{c.api.CAFile, c.api.ServiceCAFile} {
		if file == "" {
			continue
		}
		if cas[i], err = readFile(file); err != nil {
			return fmt.Errorf("read the cluster's CA certificate: %w", err)
		}
	}
	old := c.current.Load()
	if old == nil || !bytes.Equal(cas[0], c.cas[0]) || !bytes.Equal(cas[1], c.cas[1]) {
		w, err := c.ways(cas)
		if err != nil {
			return err
		}
		c.cas = cas
		c.current.Store(w)
		if old != nil {
			c.log.Info("the cluster's CA certificate has changed")
			old.close()
		}
	}
	c.secret.Store(&token)
	return nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// ways returns transports that trust some authorities.
func (c *cluster) ways(cas [2][]byte) (*ways, error) {
	var roots *x509.CertPool // nil: the system's
	if len(cas[0]) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(cas[0]) {
			return nil, fmt.Errorf("%s holds no certificate", c.api.CAFile)
		}
	}
	inside := roots
	if len(cas[1]) > 0 {
		if inside = x509.NewCertPool(); roots != nil {
			inside = roots.Clone()
		}
		if !inside.AppendCertsFromPEM(cas[1]) {
			return nil, fmt.Errorf("%s holds no certificate", c.api.ServiceCAFile)
		}
	}
	w := &ways{api: transport(), upgrades: transport(), services: transport()}
	w.api.Protocols.SetHTTP2(true)
	w.api.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: reachTime, MaxReceiveBufferPerStream: streamWindow}
	for _, t := range []*http.Transport{w.api, w.upgrades} {
		t.DialContext = c.dialAPI
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	}
	w.services.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialService(ctx) }
	w.services.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialServiceTLS(ctx, inside) }
	return w, nil
}

func transport() *http.Transport {
	t := &http.Transport{
		Protocols: new(http.Protocols), DisableCompression: true, MaxIdleConns: 256, MaxIdleConnsPerHost: 32, IdleConnTimeout: keepIdle,
		TLSHandshakeTimeout: reachTime, ExpectContinueTimeout: continueTime, MaxResponseHeaderBytes: maxAnswer,
	}
	t.Protocols.SetHTTP1(true)
	return t
}

func (w *ways) close() {
	for _, t := range []*http.Transport{w.api, w.upgrades, w.services} {
		t.CloseIdleConnections()
	}
}

func (c *cluster) close() { c.current.Load().close() }

// RoundTrip implements http.RoundTripper.
func (c *cluster) RoundTrip(r *http.Request) (*http.Response, error) {
	w := c.current.Load()
	switch q := requestOf(r.Context()); {
	case q != nil && q.service != nil:
		return w.services.RoundTrip(r)
	case q != nil && q.upgrade:
		return w.upgrades.RoundTrip(r)
	default:
		return w.api.RoundTrip(r)
	}
}

// dialAPI connects to the API server. That the owner has switched the gateway on, and
// denied it to nobody who asks, was judged before.
func (c *cluster) dialAPI(ctx context.Context, _, _ string) (net.Conn, error) {
	return c.dialer.DialUnder(ctx, ownAPI{}, c.api.Address)
}

// ownAPI is a reach.Judge that allows what it is asked.
type ownAPI struct{}

// Check implements reach.Judge.
func (ownAPI) Check(wire.Target) policy.Decision { return policy.Decision{Allowed: true} }

// CheckAddr implements reach.Judge.
func (ownAPI) CheckAddr(wire.Target, netip.AddrPort) policy.Decision {
	return policy.Decision{Allowed: true}
}

// Kubernetes implements reach.Judge.
func (ownAPI) Kubernetes() *policy.KubernetesAPI { return nil }

func (c *cluster) dialService(ctx context.Context) (net.Conn, error) {
	q := requestOf(ctx)
	return c.judge.Dial(ctx, q.who, q.service.target)
}

func (c *cluster) dialServiceTLS(ctx context.Context, roots *x509.CertPool) (net.Conn, error) {
	conn, err := c.dialService(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{
		RootCAs: roots, ServerName: requestOf(ctx).service.target.Host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// failure says what went wrong on the way to the API server, or to a service.
func failure(err error, s *service) *wire.Failure {
	what, flag := "the API server", "--kubernetes-ca-file"
	if s != nil {
		what, flag = "service "+s.String(), "--service-ca-file"
	}
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		return f
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "the certificate of %s is not good: %v", what, plain(err)).WithCause(err).
			WithHint("the agent's owner names what verifies it with %s", flag)
	}
	if errors.Is(err, context.Canceled) {
		return wire.Fail(wire.LegClient, wire.CodeCanceled, "the caller gave up").WithCause(err)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return wire.Fail(wire.LegTarget, wire.CodeTimeout, "%s did not answer in time", what).WithCause(err)
	}
	return wire.Fail(wire.LegTarget, wire.CodeReset, "%s broke the connection: %v", what, plain(err)).WithCause(err)
}

// plain returns an error without the URL that http.Client puts before it.
func plain(err error) string {
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return v.Err.Error()
	}
	return err.Error()
}
