package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/registry"
)

// minWebhookSecret is the shortest secret that signs what is posted, in characters.
const minWebhookSecret = 16

// auditSink is a sink of the settings.
type auditSink struct {
	name  string
	place string // where it leads
	sink  audit.Sink
}

// auditSinks makes the sinks of the settings.
func auditSinks(cfg config.Audit, node string) ([]auditSink, error) {
	var all []auditSink
	if cfg.AuditFile != "" {
		all = append(all, auditSink{"file", cfg.AuditFile, &audit.FileSink{Path: cfg.AuditFile}})
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if cfg.AuditWebhookURL != "" {
		secret, err := os.ReadFile(cfg.AuditWebhookSecretFile)
		if err != nil {
			return nil, fmt.Errorf("--audit-webhook-secret-file: %w", err)
		}
		if secret = bytes.TrimSpace(secret); len(secret) < minWebhookSecret {
			return nil, fmt.Errorf("--audit-webhook-secret-file: %d characters are too few for a secret: want %d at least", len(secret), minWebhookSecret)
		}
		trust, err := auditTLS("--audit-webhook-ca-file", cfg.AuditWebhookCAFile)
		if err != nil {
			return nil, err
		}
		all = append(all, auditSink{"webhook", cfg.AuditWebhookURL, &audit.WebhookSink{
			URL: cfg.AuditWebhookURL, Secret: secret, Now: time.Now,
			Client: &http.Client{
				Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: trust, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				Timeout:       30 * time.Second,
			},
		}})
	}
	if cfg.AuditSyslog != "" {
		trust, err := auditTLS("--audit-syslog-ca-file", cfg.AuditSyslogCAFile)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(cfg.AuditSyslog)
		if err != nil {
			return nil, fmt.Errorf("--audit-syslog: %w", err)
		}
		trust.ServerName = host
		all = append(all, auditSink{"syslog", cfg.AuditSyslog, &audit.SyslogSink{
			Address: cfg.AuditSyslog, TLS: trust, Hostname: node, Dial: dialer.DialContext,
		}})
	}
	return all, nil
}

func auditTLS(setting, file string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if file == "" {
		return cfg, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s holds no certificate", setting, file)
	}
	return cfg, nil
}

// export brings the log to the sinks, until ctx ends.
func (l *auditLog) export(ctx context.Context, sinks []auditSink, cursors audit.Cursors, metrics *observe.Audit) *sync.WaitGroup {
	var wg sync.WaitGroup
	for _, one := range sinks {
		place := sha256.Sum256([]byte(one.place))
		e := audit.NewExporter(audit.ExporterConfig{
			Name: one.name, Cursor: one.name + "-" + hex.EncodeToString(place[:6]), Sink: one.sink,
			Journal: l.journal, Cursors: cursors, Changed: l.Changed, Metrics: metrics, Log: l.log,
		})
		wg.Go(func() { e.Run(ctx) })
	}
	return &wg
}

// auditCursors keeps the places of sinks in the bus's store.
type auditCursors struct{ kv *embedded.KV }

// LoadCursor implements audit.Cursors.
func (c auditCursors) LoadCursor(ctx context.Context, name string) (uint64, error) {
	b, _, err := c.kv.Get(ctx, name)
	if errors.Is(err, registry.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// SaveCursor implements audit.Cursors.
func (c auditCursors) SaveCursor(ctx context.Context, name string, position uint64) error {
	value := strconv.AppendUint(nil, position, 10)
	_, revision, err := c.kv.Get(ctx, name)
	if errors.Is(err, registry.ErrNotFound) {
		_, err = c.kv.Create(ctx, name, value)
		return err
	}
	if err != nil {
		return err
	}
	_, err = c.kv.Update(ctx, name, value, revision)
	return err
}
