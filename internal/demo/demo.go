// Package demo is a small private network for `postern dev`: a web page, a
// database and an API server, all on loopback, all read-only, and honest about
// what they are. It is for the first minutes of somebody who has nothing else to
// reach yet.
package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Network is the demo's services. Make one with Listen and run it.
type Network struct {
	Web        net.Addr // plain HTTP
	Kubernetes net.Addr // HTTPS, with a certificate that CA has issued
	Database   net.Addr // the protocol of PostgreSQL
	CA         []byte   // PEM

	log       *slog.Logger
	listeners [3]net.Listener // web, Kubernetes, database
}

// Listen opens the services on free ports of 127.0.0.1. The certificate of the
// Kubernetes API is valid for the given host names. Close or Run closes them.
func Listen(ctx context.Context, hosts []string, log *slog.Logger) (*Network, error) {
	cert, ca, err := certificate(hosts, time.Now())
	if err != nil {
		return nil, fmt.Errorf("make certificate of the demo: %w", err)
	}
	n := &Network{CA: ca, log: log}
	var lc net.ListenConfig
	for i := range n.listeners {
		if n.listeners[i], err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			n.Close()
			return nil, fmt.Errorf("listen for the demo: %w", err)
		}
	}
	n.Web, n.Kubernetes, n.Database = n.listeners[0].Addr(), n.listeners[1].Addr(), n.listeners[2].Addr()
	n.listeners[1] = tls.NewListener(n.listeners[1], &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"},
	})
	return n, nil
}

// Close closes the listeners.
func (n *Network) Close() {
	for _, l := range n.listeners {
		if l != nil {
			_ = l.Close()
		}
	}
}

// Run serves until ctx ends.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.serveHTTP(ctx, n.listeners[0], page()) })
	g.Go(func() error { return n.serveHTTP(ctx, n.listeners[1], apiServer(time.Now())) })
	g.Go(func() error { return n.serveDatabase(ctx, n.listeners[2]) })
	return g.Wait()
}

func (n *Network) serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the demo: %w", err)
	}
	return nil
}

// page is a web page that tells what the visitor has just done.
func page() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "Hello from the private network.\n\n"+ //nolint:gosec // plain text, and quoted
			"You asked for %q. A proxy took the request, an agent opened the connection to\n"+
			"this server, and it came from %s.\n", r.Host, r.RemoteAddr)
	})
	return mux
}
