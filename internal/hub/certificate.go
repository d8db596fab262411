package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/config"
)

// The hub's own certificate, and how often files are looked at for a new one.
const (
	servingTTL   = 90 * 24 * time.Hour
	servingRenew = 60 * 24 * time.Hour
	lookInterval = 5 * time.Second
)

// serving is the certificate that the one port presents: the hub's own, issued
// anew well before it expires, or one of a public CA from files, read again when
// they change.
type serving struct {
	current atomic.Pointer[tls.Certificate]
	renew   func() (*tls.Certificate, error)
	stamp   func() string // changes when renew would give another certificate
	log     *slog.Logger

	mu   sync.Mutex
	seen string // guarded by mu
}

// newServing makes or reads the first certificate.
func newServing(cfg config.Hub, state *State, log *slog.Logger) (*serving, error) {
	s := &serving{log: log}
	if cfg.TLSCertFile != "" {
		s.stamp = func() string { return fileStamp(cfg.TLSCertFile) + fileStamp(cfg.TLSKeyFile) }
		s.renew = func() (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(cfg.TLSCertFile, cfg.TLSKeyFile)
			if err != nil {
				return nil, fmt.Errorf("--tls-cert-file and --tls-key-file: %w", err)
			}
			return &c, nil
		}
	} else {
		hosts := servingHosts(cfg)
		s.stamp = func() string { return fmt.Sprint(time.Now().Truncate(servingRenew), state.Trust().Generation) }
		s.renew = func() (*tls.Certificate, error) {
			c, err := state.Trust().IssueServer(state.Node(), hosts, servingTTL, time.Now())
			return &c, err
		}
	}
	s.seen = s.stamp()
	c, err := s.renew()
	if err != nil {
		return nil, err
	}
	s.current.Store(c)
	return s, nil
}

// certificate returns what to present now.
func (s *serving) certificate() (*tls.Certificate, error) { return s.current.Load(), nil }

// run keeps the certificate current until ctx ends. A new one that cannot be used
// leaves the old one in place.
func (s *serving) run(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.look()
	}
}

// look makes the certificate current.
func (s *serving) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := s.stamp()
	if stamp == s.seen {
		return
	}
	c, err := s.renew()
	if err != nil {
		s.log.Error("the old certificate stays in use: the new one cannot be used", "error", err)
		return // the files may be half written: run looks again
	}
	s.seen = stamp
	s.current.Store(c)
	s.log.Info("presenting a new certificate")
}

func fileStamp(name string) string {
	st, err := os.Stat(name)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size(), ";")
}

// servingHosts are the names in the hub's own certificate, for clients that check
// them; parties of Postern check the hub's role instead.
func servingHosts(cfg config.Hub) []string {
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, cfg.GatewayNames...)
	host, _, err := net.SplitHostPort(cfg.Listen)
	if ip := net.ParseIP(host); err == nil && host != "" && (ip == nil || !ip.IsUnspecified() && !ip.IsLoopback()) {
		hosts = append(hosts, host)
	}
	if err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		addrs, _ := net.InterfaceAddrs() // without them, names have to be given
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				hosts = append(hosts, n.IP.String())
			}
		}
		if name, err := os.Hostname(); err == nil {
			hosts = append(hosts, name)
		}
	}
	return append(hosts, cfg.Names...)
}
