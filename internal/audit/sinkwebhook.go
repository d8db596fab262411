package audit

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Headers of what a WebhookSink posts.
const (
	HeaderSignature = "Postern-Signature" // t=UNIXTIME,v1=HEX
	HeaderBatch     = "Postern-Batch"     // names the batch: the same when it comes again
)

// WebhookSink posts entries as JSON lines to an HTTPS server. The header
// Postern-Signature has the time and the HMAC-SHA-256, by the shared secret, of the time,
// a dot and the body. Any answer of 2xx means that the receiver has the batch.
type WebhookSink struct {
	URL    string
	Secret []byte
	Client *http.Client // follows no redirects; its TLS verifies the receiver
	Now    func() time.Time
}

// Deliver implements Sink.
func (s *WebhookSink) Deliver(ctx context.Context, b Batch) error {
	body := append(bytes.Join(b.Lines, []byte("\n")), '\n')
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post audit records: %w", err)
	}
	id := sha256.Sum256(body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("User-Agent", "postern-hub")
	req.Header.Set(HeaderBatch, hex.EncodeToString(id[:16]))
	req.Header.Set(HeaderSignature, Sign(s.Secret, s.Now(), body))
	res, err := s.Client.Do(req)
	if err != nil {
		return fmt.Errorf("post audit records: %w", err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("post audit records: the receiver answers %s", res.Status)
	}
	return nil
}

// Close implements Sink.
func (s *WebhookSink) Close() error {
	s.Client.CloseIdleConnections()
	return nil
}

// Sign returns the value of HeaderSignature.
func Sign(secret []byte, t time.Time, body []byte) string {
	stamp := strconv.FormatInt(t.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return "t=" + stamp + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
