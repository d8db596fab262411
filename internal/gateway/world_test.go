package gateway

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// world is a gateway with an agent's end behind it, of which tests say what it answers.
type world struct {
	t        *testing.T
	gateway  *Gateway
	url      string // of the gateway, h2 and HTTP/1.1
	addr     string
	verifier *assertion.Verifier
	agent    *httptest.Server
	client   *http.Client
	registry *observe.Registry
	records  records

	mu     sync.Mutex
	enter  func(Entry) (func(), error)
	handle http.HandlerFunc
	seen   []assertion.Claims
	dials  int
	failed int
}

type records struct {
	mu  sync.Mutex
	all []audit.Record
}

func (r *records) Record(one audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
}

// take returns what was recorded, and forgets it.
func (r *records) take() []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// users are people whose token is their name.
type users struct{ names Names }

func (users) Method() Method { return MethodHub }

func (u users) Authenticate(r *http.Request, _ kubeurl.URL) (Caller, error) {
	name, ok := strings.CutPrefix(Token(r), "token-of-")
	if !ok {
		return Caller{}, ErrNoCredentials
	}
	if name == "nobody" {
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token was revoked")
	}
	c := Caller{Principal: identity.Principal{Kind: identity.KindUser, Name: name}, Groups: []string{"sre", "system:masters"}, Item: "s1"}
	var err error
	c.Kubernetes, c.Dropped, err = u.names.User(name, c.Groups)
	return c, err
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := assertion.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, registry: observe.NewRegistry("hub", "test")}
	w.verifier = assertion.NewVerifier(func() []string { return []string{base64.StdEncoding.EncodeToString(public)} }, "acme", "plant")
	w.agent = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.agent.Close)
	names := Names{Reserved: []string{"system:", "cluster:"}}
	c := Config{
		Hub: w, Authenticators: []Authenticator{users{names}}, Signer: signer, Self: identity.Principal{Kind: identity.KindHub, Name: "node"}, Audit: &w.records, Flood: &w.records,
		Metrics: observe.NewGateway(w.registry), Log: slog.New(slog.DiscardHandler),
		Failed: func(*http.Request) time.Duration {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.failed++; w.failed > 5 {
				return time.Minute
			}
			return 0
		},
	}
	if change != nil {
		change(&c)
	}
	w.gateway = New(c)
	front := httptest.NewUnstartedServer(w.gateway)
	front.EnableHTTP2 = true
	front.StartTLS()
	w.url, w.addr, w.client = front.URL, front.Listener.Addr().String(), front.Client()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		w.gateway.Close(ctx)
		w.client.CloseIdleConnections()
		front.Close()
	})
	return w
}

// serve is the agent's end.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	claims, err := w.verifier.Verify(r.Header.Get(assertion.Header), r.Method, r.RequestURI, time.Now())
	if err != nil {
		http.Error(rw, err.Error(), http.StatusTeapot)
		return
	}
	w.mu.Lock()
	w.seen = append(w.seen, claims)
	handle := w.handle
	w.mu.Unlock()
	if handle == nil {
		_, _ = io.WriteString(rw, "hello "+claims.Impersonate.User)
		return
	}
	handle(rw, r)
}

// Find implements Hub.
func (w *world) Find(_ context.Context, _ Caller, u kubeurl.URL) (string, error) {
	if u.Cluster != "plant" && u.Cluster != "away" || u.Organization == "other" {
		return "", wire.Fail(wire.LegHub, wire.CodeNameNotFound, "there is no cluster %s", u.Cluster)
	}
	return "acme", nil
}

// Enter implements Hub.
func (w *world) Enter(_ context.Context, e Entry) (func(), error) {
	w.mu.Lock()
	enter := w.enter
	w.mu.Unlock()
	if enter == nil {
		return func() {}, nil
	}
	return enter(e)
}

// Dial implements Hub.
func (w *world) Dial(ctx context.Context, _, cluster string) (net.Conn, func(func()), error) {
	if cluster == "away" {
		return nil, nil, wire.Fail(wire.LegAgent, wire.CodeNoAgent, "no replica of agent away is connected")
	}
	w.mu.Lock()
	w.dials++
	w.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", w.agent.Listener.Addr().String())
	return conn, nil, err
}

// last returns what the agent was told last.
func (w *world) last() assertion.Claims {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		return assertion.Claims{}
	}
	return w.seen[len(w.seen)-1]
}

func (w *world) set(handle http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handle = handle
}

// request returns a request of a user.
func (w *world) request(user, method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if user != "" {
		r.Header.Set("Authorization", "Bearer token-of-"+user)
	}
	return r
}

// do sends a request and returns the answer with its body.
func (w *world) do(r *http.Request) (*http.Response, string) {
	w.t.Helper()
	res, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, string(body)
}

// raw opens an HTTP/1.1 connection to the gateway.
func (w *world) raw() (*tls.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn, bufio.NewReader(conn)
}

type status struct {
	Kind, Status, Reason, Message string
	Code                          int
}

func statusIn(t *testing.T, body string) status {
	t.Helper()
	var s status
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Kind != "Status" || s.Status != "Failure" {
		t.Errorf("not a Status: %q", body)
	}
	return s
}

// metric returns the sum of a metric's values that have all of some labels.
func (w *world) metric(name string, labels ...string) (sum float64) {
	w.t.Helper()
	families, err := w.registry.Gatherer().Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			missing := len(labels)
			for _, l := range m.GetLabel() {
				for _, want := range labels {
					if l.GetValue() == want {
						missing--
					}
				}
			}
			if missing == 0 {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}
