package hubtest_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/config"
)

// kube is an API server that remembers what came, and reviews tokens.
type kube struct {
	*httptest.Server
	dir string

	mu     sync.Mutex
	seen   []kubeRequest
	tokens map[string]string

	services map[string]string // that the agent may read, by path
}

type kubeRequest struct {
	Method, URI, User, Authorization string
	Groups                           []string
	Header                           http.Header
	Body                             string
	Trailer                          http.Header
	Length                           int64
	Encoding                         []string
}

func newKube(t *testing.T) *kube {
	t.Helper()
	k := &kube{dir: t.TempDir(), tokens: make(map[string]string)}
	k.Server = httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	k.EnableHTTP2 = true
	k.StartTLS()
	t.Cleanup(k.Close)
	writeFile(t, filepath.Join(k.dir, "token"), "agents-token")
	writeFile(t, filepath.Join(k.dir, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate().Raw})))
	return k
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// of makes an agent the cluster's.
func (k *kube) of(id string) func(*config.Agent) {
	return func(a *config.Agent) {
		a.AgentID, a.Gateway = id, true
		a.Kubernetes = config.Kubernetes{API: k.URL, TokenFile: filepath.Join(k.dir, "token"), CAFile: filepath.Join(k.dir, "ca.crt")}
	}
}

func (k *kube) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = []byte(err.Error())
	}
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		k.review(w, r, body)
		return
	}
	if r.Header.Get("Impersonate-User") == "" && r.Method == http.MethodGet && r.Header.Get("Authorization") == "Bearer agents-token" {
		text, ok := k.services[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = io.WriteString(w, text)
		return
	}
	one := kubeRequest{
		Method: r.Method, URI: r.RequestURI, User: r.Header.Get("Impersonate-User"), Groups: r.Header["Impersonate-Group"], Authorization: r.Header.Get("Authorization"),
		Header: r.Header.Clone(), Body: string(body), Trailer: r.Trailer, Length: r.ContentLength, Encoding: r.TransferEncoding,
	}
	k.mu.Lock()
	k.seen = append(k.seen, one)
	k.mu.Unlock()
	switch {
	case r.URL.Query().Has("watch"):
		_, _ = io.WriteString(w, "event\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case strings.HasSuffix(r.URL.Path, "/exec"):
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = brw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		_ = brw.Flush()
		_, _ = io.Copy(conn, brw) // an echo
	default:
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "hello "+one.User)
		w.Header().Set("X-Sum", "42")
	}
}

func (k *kube) review(w http.ResponseWriter, r *http.Request, body []byte) {
	var q struct{ Spec struct{ Token string } }
	_ = json.Unmarshal(body, &q)
	k.mu.Lock()
	user := k.tokens[q.Spec.Token]
	k.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	if r.Header.Get("Authorization") != "Bearer agents-token" || r.Header.Get("Impersonate-User") != "" {
		user = ""
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "status": map[string]any{
		"authenticated": user != "", "user": map[string]any{"username": user, "groups": []string{"system:serviceaccounts", "system:authenticated"}},
	}})
}

// last returns what came last, and how much came.
func (k *kube) last() (one kubeRequest, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n = len(k.seen); n > 0 {
		one = k.seen[n-1]
	}
	return one, n
}

// tokenIn returns the secret in a robot token's file.
func tokenIn(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var token struct{ Token string }
	if err := json.Unmarshal(text, &token); err != nil {
		t.Fatal(err)
	}
	return token.Token
}

// call asks the gateway with a token, and returns status and body.
func (w *world) call(token, path string) (int, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.uplink.BaseURL()+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := w.uplink.HTTPClient().Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}

// serves waits until a cluster answers through the gateway.
func (w *world) serves(token, cluster string) {
	w.t.Helper()
	eventually(w.t, patience, func() error {
		if code, body := w.call(token, "/"+cluster+"/version"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
}

// dial opens an HTTP/1.1 connection to the hub.
func (w *world) dial() (net.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.config.Listen, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn, bufio.NewReader(conn)
}
