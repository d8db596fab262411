package hub

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
)

const (
	servingLife  = 30 * 24 * time.Hour // of a certificate that the hub issues to itself
	servingRenew = servingLife / 3     // left of its life when the next is issued
	reloadEvery  = 10 * time.Second    // how often given files are looked at
)

// ServingOptions say which certificate a hub presents on its one port.
type ServingOptions struct {
	Authority *identity.Authority
	Node      string   // name of the hub node
	Hosts     []string // DNS names and IP addresses under which it is reached

	// CertFile and KeyFile name a chain and its key in PEM, of a public authority,
	// to present in place of a certificate of ours. They are read again when they
	// change. Both or none.
	CertFile string
	KeyFile  string

	Log *slog.Logger     // nil: none
	Now func() time.Time // nil: time.Now
}

// Serving holds the certificate that a hub presents, and renews it. It is safe
// for concurrent use.
type Serving struct {
	o ServingOptions

	mu      sync.Mutex
	current *tls.Certificate
	checked time.Time // when the files were looked at
	stamp   string    // what they looked like
}

// NewServing issues or reads the first certificate.
func NewServing(o ServingOptions) (*Serving, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Serving{o: o}
	if o.CertFile == "" {
		return s, s.issue()
	}
	s.checked = o.Now()
	s.stamp = s.fileStamp()
	return s, s.read()
}

// Certificate returns the certificate to present now.
func (s *Serving) Certificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	var err error
	switch {
	case s.o.CertFile == "" && s.current.Leaf.NotAfter.Sub(now) < servingRenew:
		err = s.issue()
	case s.o.CertFile != "" && now.Sub(s.checked) >= reloadEvery:
		s.checked = now
		if stamp := s.fileStamp(); stamp != s.stamp {
			// The two files may be changed one after the other: a pair that does
			// not fit is tried again until it does.
			if err = s.read(); err == nil {
				s.stamp = stamp
				s.o.Log.Info("certificate reloaded", "file", s.o.CertFile, "expires", s.current.Leaf.NotAfter)
			}
		}
	}
	if err != nil {
		s.o.Log.Warn("certificate not renewed; the old one stays", "error", err, "expires", s.current.Leaf.NotAfter)
	}
	return s.current
}

// GetCertificate is for a tls.Config.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Certificate(), nil
}

func (s *Serving) issue() error {
	cert, err := s.o.Authority.IssueServer(s.o.Node, s.o.Hosts, servingLife, s.o.Now())
	if err != nil {
		return err
	}
	s.current = &cert
	return nil
}

func (s *Serving) read() error {
	cert, err := tls.LoadX509KeyPair(s.o.CertFile, s.o.KeyFile)
	if err != nil {
		return fmt.Errorf("load certificate %s with key %s: %w", s.o.CertFile, s.o.KeyFile, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("load certificate %s: %w", s.o.CertFile, err)
		}
	}
	if s.o.Now().After(cert.Leaf.NotAfter) {
		return fmt.Errorf("load certificate %s: it expired at %s", s.o.CertFile, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	s.current = &cert
	return nil
}

// fileStamp returns something that changes when the files do. Tools that renew
// certificates replace files or links to them, so a time alone is not enough.
func (s *Serving) fileStamp() string {
	stamp := ""
	for _, name := range []string{s.o.CertFile, s.o.KeyFile} {
		if info, err := os.Stat(name); err == nil {
			stamp += fmt.Sprintf("%d %d;", info.ModTime().UnixNano(), info.Size())
		}
	}
	return stamp
}

// NewHTTPServer returns the server for a hub's HTTPS handlers, with limits
// against clients that dawdle. Handlers limit the time of bodies themselves,
// because some answer for hours.
func NewHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}
