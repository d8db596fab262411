package enroll_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeHub answers token exchanges without a network, so that it works in a
// synctest bubble.
type fakeHub struct {
	t         *testing.T
	authority *identity.Authority
	ttl       time.Duration
	ahead     time.Duration // how far its clock is ahead

	mu     sync.Mutex
	fail   func() (status int, code string) // status 0: the connection breaks
	header http.Header
	forms  []map[string]string
	alter  func(*api.TokenResponse)
}

func newFakeHub(t *testing.T, ttl time.Duration) *fakeHub {
	t.Helper()
	a, err := identity.NewAuthority("hub.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &fakeHub{t: t, authority: a, ttl: ttl, header: http.Header{}}
}

func (h *fakeHub) BaseURL() string          { return "https://hub.test" }
func (h *fakeHub) HTTPClient() *http.Client { return &http.Client{Transport: h} }

func (h *fakeHub) set(f func(h *fakeHub)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
}

func (h *fakeHub) requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.forms)
}

func (h *fakeHub) RoundTrip(req *http.Request) (*http.Response, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := req.ParseForm(); err != nil {
		return nil, err
	}
	form := map[string]string{}
	for k := range req.PostForm {
		form[k] = req.PostForm.Get(k)
	}
	if req.URL.Path != api.PathVersion {
		h.forms = append(h.forms, form)
	}
	w := httptest.NewRecorder()
	w.Header().Set("Date", time.Now().Add(h.ahead).UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Type", api.TypeJSON)
	maps.Copy(w.Header(), h.header)
	if req.URL.Path == api.PathVersion {
		_ = json.NewEncoder(w).Encode(api.HubVersion{TrustDomain: "hub.test"})
		return w.Result(), nil
	}
	if h.fail != nil {
		status, code := h.fail()
		if status == 0 {
			return nil, errors.New("connection broke")
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(api.TokenError{Code: code, Description: "no: " + code, Hint: "do something"})
		return w.Result(), nil
	}
	_ = json.NewEncoder(w).Encode(h.answer(form))
	return w.Result(), nil
}

func (h *fakeHub) answer(form map[string]string) *api.TokenResponse {
	pub, err := identity.ParseRequest([]byte(form["csr"]))
	if err != nil {
		h.t.Error(err)
	}
	id := identity.ID{
		TrustDomain: "hub.test", Organization: form["audience"], Role: identity.Role(form["role"]),
		Name: form["name"], Replica: form["replica"],
	}
	chain, err := h.authority.IssueParty(id, pub, identity.Holder{}, h.ttl, time.Now().Add(h.ahead))
	if err != nil {
		h.t.Error(err)
	}
	res := &api.TokenResponse{
		AccessToken: string(chain), IssuedTokenType: api.TokenTypeCredentials, TokenType: "N_A", ExpiresIn: int64(h.ttl / time.Second),
		CABundle: string(h.authority.CertificatePEM()), BusToken: "bus:" + form["bus_key"], TrustDomain: "hub.test",
	}
	if h.alter != nil {
		h.alter(res)
	}
	return res
}

const token = "aaaa.bbbb.cccc"

func request() enroll.Request {
	n := 0
	return enroll.Request{
		Organization: "acme", Role: identity.RoleAgent, Name: "edge", Replica: "r1", Version: "test",
		Secret: &enroll.RobotToken{Value: token},
		NewBusKey: func() (string, []byte, error) {
			if n++; n > 1 {
				return "", nil, errors.New("a second bus key")
			}
			return "UPUBLIC", []byte("seed"), nil
		},
	}
}

// logBuffer is a log that a test can read while others write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func logger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
