package impersonate

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agentToken is the token of the agent's service account.
const agentToken = "the-agents-own-token"

// world is an agent's end of a gateway, with a hub before it and a cluster behind it.
type world struct {
	t      testing.TB
	server *Server
	hub    *http.Transport // each of its connections is one that the server is handed
	signer *assertion.Signer
	api    *httptest.Server
	dir    string
	config Config

	mu      sync.Mutex
	answer  http.HandlerFunc        // the API server's
	may     func(attributes) string // why somebody may not be another; empty: he may
	seen    []*http.Request         // by the API server, but reviews
	reviews []review
	judge   func(Visit) error
	dial    func(policy.Asker, wire.Target) (net.Conn, error)
	visits  []Visit
	left    int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "pods") }}
	w.api = httptest.NewUnstartedServer(http.HandlerFunc(w.serveAPI))
	w.api.EnableHTTP2 = true
	w.api.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	w.api.StartTLS()
	t.Cleanup(w.api.Close)
	w.write("token", agentToken+"\n")
	w.write("ca.crt", authority(w.api))

	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.signer, err = assertion.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	keys := []string{base64.StdEncoding.EncodeToString(public)}
	w.config = Config{
		API:      API{Address: target(t, w.api.Listener.Addr().String()), TokenFile: w.file("token"), CAFile: w.file("ca.crt")},
		Verifier: assertion.NewVerifier(func() []string { return keys }, "acme", "office"),
		Judge:    w, Log: slog.New(slog.DiscardHandler),
	}
	w.start()
	return w
}

// start starts the server, until the test ends.
func (w *world) start() {
	w.t.Helper()
	s, err := New(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = s
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	w.hub = &http.Transport{DisableCompression: true, ExpectContinueTimeout: time.Minute, DialContext: func(context.Context, string, string) (net.Conn, error) {
		mine, its := net.Pipe()
		wg.Go(func() { serve(s, its) })
		return mine, nil
	}}
	w.t.Cleanup(func() {
		w.hub.CloseIdleConnections()
		cancel()
		wg.Wait()
	})
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.file(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// authority returns what verifies a server.
func authority(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func target(t testing.TB, address string) wire.Target {
	t.Helper()
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	to, err := wire.TCP(ap.Addr().String(), ap.Port())
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// serveAPI is the cluster's API server.
func (w *world) serveAPI(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == wishPath {
		w.review(rw, r)
		return
	}
	w.mu.Lock()
	w.seen = append(w.seen, r)
	answer := w.answer
	w.mu.Unlock()
	answer(rw, r)
}

func (w *world) review(rw http.ResponseWriter, r *http.Request) {
	var asked review
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || r.Header.Get("Authorization") != "Bearer "+agentToken || r.Method != http.MethodPost {
		w.t.Errorf("a review comes as %s with %v: %v", r.Method, r.Header, err)
	}
	w.mu.Lock()
	w.reviews = append(w.reviews, asked)
	may := w.may
	w.mu.Unlock()
	why := may(asked.Spec.Resource)
	if why == "fail" {
		rw.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(rw, `{"kind":"Status","status":"Failure","message":"agent cannot create subjectaccessreviews"}`)
		return
	}
	rw.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(rw).Encode(map[string]any{"status": verdict{Allowed: why == "", Reason: why}})
}

// Admit implements Judge.
func (w *world) Admit(_ context.Context, v Visit) (func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.visits = append(w.visits, v)
	if w.judge != nil {
		if err := w.judge(v); err != nil {
			return nil, err
		}
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.left++
	}, nil
}

// Dial implements Judge.
func (w *world) Dial(_ context.Context, who policy.Asker, t wire.Target) (net.Conn, error) {
	return w.dial(who, t)
}

// requests returns what the API server has seen.
func (w *world) requests() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// ann is who asks, unless a test says otherwise.
func ann() assertion.Claims {
	return assertion.Claims{
		Organization: "acme", Agent: "office", Method: http.MethodGet, URI: "/api/v1/pods", Mode: assertion.ModeImpersonate,
		Principal: "user:ann@example.org", Groups: []string{"sre"},
		Impersonate: assertion.Identity{
			User: "ann@example.org", Groups: []string{"sre", "system:authenticated"},
			Extra: map[string][]string{"postern.dev/principal": {"user:ann@example.org"}},
		},
	}
}

// word returns the hub's for some claims.
func (w *world) word(c assertion.Claims) string {
	w.t.Helper()
	text, err := w.signer.Sign(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// request makes the hub's request for some claims.
func (w *world) request(c assertion.Claims, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), c.Method, "http://gateway/", body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.URL = exactly("http", "gateway", c.URI)
	r.Header.Set(assertion.Header, w.word(c))
	return r
}

// send sends a request and returns its answer with the whole body.
func (w *world) send(r *http.Request) (*http.Response, string) {
	w.t.Helper()
	answer, err := w.hub.RoundTrip(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer, string(body)
}

// raw sends bytes over a connection of their own and returns all answers until its
// end.
func (w *world) raw(text string) (codes []int) {
	w.t.Helper()
	mine, its := net.Pipe()
	defer mine.Close()
	var wg sync.WaitGroup
	wg.Go(func() { serve(w.server, its) })
	wg.Go(func() { _, _ = io.WriteString(mine, text) })
	defer wg.Wait()
	defer mine.Close()
	reader := bufio.NewReader(mine)
	for {
		answer, err := http.ReadResponse(reader, nil)
		if err != nil {
			return codes
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		codes = append(codes, answer.StatusCode)
		if answer.Close {
			return codes
		}
	}
}

// isStatus checks that an answer is a Status of Kubernetes whose message has a text.
func isStatus(t *testing.T, answer *http.Response, body string, code int, text string) {
	t.Helper()
	var s struct {
		Kind, Status, Message string
		Code                  int
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Kind != "Status" || s.Status != "Failure" || s.Code != code || answer.StatusCode != code ||
		!strings.Contains(s.Message, text) {
		t.Errorf("got %d %s; want a Status %d with %q", answer.StatusCode, body, code, text)
	}
}

// longAgo is a time of which no assertion may be.
func longAgo() time.Time { return time.Now().Add(-assertion.Life - assertion.Skew - time.Minute) }

// serve has a server answer what comes over a connection, until it ends.
func serve(s *Server, conn net.Conn) {
	ended := make(chan struct{})
	s.Take(conn, func() { close(ended) })
	<-ended
}
