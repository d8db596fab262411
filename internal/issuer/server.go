package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/podcluster"
)

// Limits of the server. Whoever reaches it may read two small documents.
const (
	maxConnections = 4096
	maxBody        = 16 << 10 // bytes of a request
	requestTime    = 15 * time.Second
	idleTime       = time.Minute
	stopTime       = 5 * time.Second // for requests under way at the end
	certificateAge = 5 * time.Second // before the files are looked at again
)

// Options is what a Server needs beside its settings.
type Options struct {
	Registry *observe.Registry   // nil: nothing is counted
	Health   *observe.Health     // required: it is served too
	Getenv   func(string) string // for HTTPS_PROXY and NO_PROXY on the way to issuers; nil for none
	Log      *slog.Logger

	// Cluster is where --issuer-keys-secret is; nil: the cluster of the pod that Getenv tells of.
	Cluster *podcluster.Cluster

	// Started, if not nil, is called once when the server serves.
	Started func(addr net.Addr)
}

// Server is an issuer as a process of its own: it serves the issuer's documents, and
// gives tokens to the workloads that its settings name. Make one with NewServer and run
// it once.
type Server struct {
	cfg config.StandaloneIssuer
	opt Options
	log *slog.Logger
}

// NewServer prepares a server. Nothing is touched before Run.
func NewServer(cfg config.StandaloneIssuer, opt Options) *Server {
	return &Server{cfg: cfg, opt: opt, log: opt.Log}
}

// Run serves until ctx ends. It returns nil after a stop that was asked for.
func (s *Server) Run(ctx context.Context) error {
	callers, err := newCallers(s.cfg.Callers)
	if err != nil {
		return err
	}
	certificate, err := newCertificate(s.cfg.TLSCertFile, s.cfg.TLSKeyFile, s.log)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer func() { _ = ln.Close() }()
	cluster := s.opt.Cluster
	if cluster == nil {
		cluster = podcluster.New(s.opt.Getenv, podcluster.Dir)
		defer cluster.Close()
	}
	keys, err := OpenKeys(Place{Mounted: s.cfg.KeysDir, Secret: s.cfg.KeysSecret, Own: s.cfg.Data, Cluster: cluster})
	if err != nil {
		return err
	}
	var metrics *observe.Issuer
	if s.opt.Registry != nil {
		metrics = observe.NewIssuer(s.opt.Registry)
	}
	i, err := Open(Config{
		URL: s.cfg.IssuerURL, Keys: keys, Schedule: Schedule{Age: s.cfg.KeyAge, Ahead: s.cfg.KeyAhead}, Type: KeyType(s.cfg.KeyType),
		Metrics: metrics, Log: s.log,
	})
	if err != nil {
		return err
	}
	verifier := oidc.NewVerifier(oidc.Options{Getenv: s.opt.Getenv})
	defer verifier.Close()
	desk := newDesk(i, callers, verifier, s.log, time.Now)
	s.opt.Health.Register("keys", func(context.Context) error { _, err := keys.Load(); return err })
	return s.serve(ctx, ln, certificate, i, desk)
}

// serve faces the network until ctx ends.
func (s *Server) serve(ctx context.Context, ln net.Listener, certificate *certificate, i *Issuer, desk *desk) error {
	addr := ln.Addr()
	ln = netutil.LimitListener(ln, maxConnections)
	if certificate != nil {
		ln = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: certificate.get})
	}
	server := &http.Server{
		Handler: s.handler(i, desk), ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: 2 * requestTime, IdleTimeout: idleTime,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	var bg sync.WaitGroup
	defer bg.Wait()
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	bg.Go(func() { i.Run(work) })
	done := make(chan error, 1)
	bg.Go(func() { done <- server.Serve(ln) })
	k, _ := i.view.Load().ring.Signing()
	s.log.Info("ready", "listen", addr.String(), "issuer", i.URL(), "key", k.ID, "callers", len(desk.callers))
	if s.opt.Started != nil {
		s.opt.Started(addr)
	}
	select {
	case err := <-done:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	past, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := server.Shutdown(past); err != nil {
		_ = server.Close() // cuts what did not finish in time
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// handler returns what is served: the documents, the tokens at the path that a hub has
// for them, below the issuer's URL too, and health.
func (s *Server) handler(i *Issuer, d *desk) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathOrganizations+"/{org}/identity-tokens", d.serve)
	if i.path != "" {
		mux.HandleFunc("POST "+i.path+api.PathOrganizations+"/{org}/identity-tokens", d.serve)
	}
	mux.Handle("GET "+api.PathHealth, s.opt.Health.Handler())
	mux.Handle("GET "+api.PathReady, s.opt.Health.Handler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.Owns(r) {
			i.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

// certificate is what the server presents, read again when its files change. A new one
// that cannot be used leaves the old one in place.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	seen    string
	current *tls.Certificate
}

// newCertificate reads the first one; nil without files.
func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	if certFile == "" {
		return nil, nil //nolint:nilnil // plain HTTP
	}
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) read() error {
	stamp := stampOf(c.certFile) + stampOf(c.keyFile)
	if stamp == c.seen {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("--tls-cert-file and --tls-key-file: %w", err)
	}
	c.seen, c.current = stamp, &pair
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) > certificateAge {
		c.looked = now
		if err := c.read(); err != nil {
			c.log.Error("the old certificate stays in use: the new one cannot be used", "error", err)
		}
	}
	return c.current, nil
}
