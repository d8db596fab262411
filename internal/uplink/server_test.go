package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"

	"postern.dev/postern/internal/wire"
)

// TestServer: with what Server returns, a client that knows nothing of hubs verifies
// the certificate.
func TestServer(t *testing.T) {
	a := newAuthority(t)
	for name, tt := range map[string]struct {
		hosts    []string
		wantName string
	}{
		"its address":  {[]string{"127.0.0.1"}, ""},
		"another name": {[]string{"hub.example.org"}, "hub.example.org"},
		"no name":      {nil, "-"},
	} {
		conf := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{hubCertificate(t, a, tt.hosts...)}}
		addr := serveTLS(t, conf)
		for way, c := range map[string]Config{"file": {CAFile: caFile(t, a.CertificatePEM())}, "pin": {CAPin: a.Pin()}} {
			c.ConnectURL, c.Getenv = "https://"+addr, noEnv
			d, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			s, err := d.Server(t.Context())
			if tt.wantName == "-" {
				var f *wire.Failure
				if !errors.As(err, &f) || f.Leg != wire.LegTLS || f.Hint == "" {
					t.Errorf("%s, %s: %v", name, way, err)
				}
				continue
			}
			if err != nil || s.Name != tt.wantName {
				t.Errorf("%s, %s: %+v, %v", name, way, s, err)
				continue
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(s.CA) {
				t.Errorf("%s, %s: no certificate in %q", name, way, s.CA)
			}
			serverName := s.Name
			if serverName == "" {
				serverName = "127.0.0.1"
			}
			dialer := &tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName, NextProtos: []string{"h2"}}}
			conn, err := dialer.DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Errorf("%s, %s: an ordinary client: %v", name, way, err)
				continue
			}
			conn.Close()
		}
	}
	wrong, err := New(Config{ConnectURL: "https://" + serveTLS(t, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{hubCertificate(t, newAuthority(t), "127.0.0.1")},
	}), CAPin: a.Pin(), Getenv: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := wrong.Server(t.Context()); err == nil {
		t.Errorf("another hub: %+v", s)
	}
}
