package impersonate

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"postern.dev/postern/internal/assertion"
)

// secured is a connection whose ends have a secret, as TLS gives it.
type secured struct {
	net.Conn
	bond *assertion.Bond
}

// Bond implements assertion.Bonded.
func (s *secured) Bond() *assertion.Bond { return s.bond }

func newSecured(t *testing.T, conn net.Conn, secret string) *secured {
	t.Helper()
	bond, err := assertion.NewBond(func(label string, n int) ([]byte, error) { return hkdf.Key(sha256.New, []byte(secret), nil, label, n) })
	if err != nil {
		t.Fatal(err)
	}
	return &secured{conn, bond}
}

// secure has the server serve one connection with a bond, and returns the hub's end of
// it as a transport, and the hub's bond.
func (w *world) secure(t *testing.T, secret string) (*http.Transport, *assertion.Bond) {
	t.Helper()
	mine, its := net.Pipe()
	var serving sync.WaitGroup
	serving.Go(func() { serve(w.server, newSecured(t, its, secret)) })
	tr := &http.Transport{MaxConnsPerHost: 1, DialContext: func(context.Context, string, string) (net.Conn, error) { return mine, nil }}
	t.Cleanup(func() { tr.CloseIdleConnections(); _ = mine.Close(); serving.Wait() })
	return tr, newSecured(t, mine, secret).bond
}

// wordOver returns the hub's word for a connection.
func (w *world) wordOver(b *assertion.Bond) string {
	w.t.Helper()
	word, err := w.signer.Prepare(ann())
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := word.Over(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// TestBond holds that the hub signs once for a connection, and that what it does not sign
// is good for nothing over another one.
func TestBond(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hub, bond := w.secure(t, "one")
	ask := func(hub *http.Transport, text string) *http.Response {
		answer, err := hub.RoundTrip(withWord(w.request(ann(), nil), text))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body) // or the connection is not used again
		_ = answer.Body.Close()
		return answer
	}
	signed := 0
	for range 5 {
		text := w.wordOver(bond)
		if strings.HasPrefix(text, "eyJ") {
			signed++
		}
		answer := ask(hub, text)
		if answer.StatusCode != http.StatusOK {
			t.Fatalf("%s for %s", answer.Status, text)
		}
		bond.Heard(answer.Header[assertion.HeaderBond])
		if again := ask(hub, text); again.StatusCode != http.StatusBadGateway {
			t.Errorf("used twice: %s", again.Status)
		}
	}
	if signed != 1 {
		t.Errorf("signed %d times", signed)
	}
	before := len(w.requests())
	other, _ := w.secure(t, "other")
	answer := ask(other, w.wordOver(bond))
	if answer.StatusCode != http.StatusBadGateway || answer.Header.Get(assertion.HeaderBond) != "none" {
		t.Errorf("over another connection: %s, %v", answer.Status, answer.Header)
	}
	if answer := ask(w.hub, w.wordOver(bond)); answer.StatusCode != http.StatusBadGateway {
		t.Errorf("over one without TLS: %s", answer.Status)
	}
	if len(w.requests()) != before {
		t.Error("the cluster was asked")
	}
}
