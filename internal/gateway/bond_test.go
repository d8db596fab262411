package gateway

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/assertion"
)

// secured is a connection whose ends have a secret, as TLS gives it.
type secured struct {
	net.Conn
	bond *assertion.Bond
}

// Bond implements assertion.Bonded.
func (s *secured) Bond() *assertion.Bond { return s.bond }

// secureHub has a bond on each connection to the agent, all with one secret.
type secureHub struct {
	*world
	bond func() *assertion.Bond
}

// Dial implements Hub.
func (h secureHub) Dial(ctx context.Context, organization, cluster string) (net.Conn, func(func()), error) {
	conn, leaving, err := h.world.Dial(ctx, organization, cluster)
	return &secured{conn, h.bond()}, leaving, err
}

// TestBond holds that the hub signs for a connection once, and again when the agent wants
// it; and that no client learns of it.
func TestBond(t *testing.T) {
	t.Parallel()
	bond := func() *assertion.Bond {
		b, err := assertion.NewBond(func(label string, n int) ([]byte, error) {
			return hkdf.Key(sha256.New, []byte("secret"), nil, label, n)
		})
		if err != nil {
			t.Error(err)
		}
		return b
	}
	w := newWorld(t, func(c *Config) { c.Hub = secureHub{c.Hub.(*world), bond} })
	var its atomic.Pointer[assertion.Bond]
	its.Store(bond())
	var signed atomic.Int64
	w.agent.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		text := r.Header.Get(assertion.Header)
		if strings.HasPrefix(text, "eyJ") {
			signed.Add(1)
		}
		claims, answer, err := w.verifier.VerifyOver(its.Load(), text, r.Method, r.RequestURI, time.Now())
		if answer != "" {
			rw.Header().Set(assertion.HeaderBond, answer)
		}
		if err != nil || claims.Impersonate.User != "ann" {
			rw.WriteHeader(http.StatusTeapot)
		}
	})
	get := func() int {
		answer, _ := w.do(w.request("ann", http.MethodGet, "/plant/api", nil))
		if answer.Header.Get(assertion.HeaderBond) != "" {
			t.Errorf("the client is told %v", answer.Header)
		}
		return answer.StatusCode
	}
	for range 5 {
		if code := get(); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	if n := signed.Load(); n != 1 {
		t.Errorf("signed %d times", n)
	}
	its.Store(bond()) // the agent has forgotten
	for i, want := range []int{http.StatusTeapot, http.StatusOK, http.StatusOK} {
		if code := get(); code != want {
			t.Errorf("%d. after: %d", i+1, code)
		}
	}
	if n := signed.Load(); n != 2 {
		t.Errorf("signed %d times in all", n)
	}
}
