// Package podtest is a pod and its API server for tests: it keeps Secrets.
package podtest

import (
	"encoding/json"
	"encoding/pem"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"postern.dev/postern/internal/podcluster"
)

// Namespace is the pod's.
const Namespace = "postern-system"

const token = "the-service-account's"

// API is an API server. It is safe for concurrent use.
type API struct {
	// Cluster is what a process in the pod knows of it.
	Cluster *podcluster.Cluster

	mu      sync.Mutex
	version int
	secrets map[string]secret
	refuse  int            // status of every answer; 0: none is refused
	before  func(*API)     // called once, before the next change
	asked   map[string]int // by method
}

type secret struct {
	Metadata struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels,omitempty"`
	} `json:"metadata"`
	Data map[string][]byte `json:"data,omitempty"`
}

// New starts an API server, which ends with the test.
func New(t testing.TB) *API {
	t.Helper()
	a := &API{secrets: make(map[string]secret), asked: make(map[string]int)}
	server := httptest.NewTLSServer(a)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, content := range map[string]string{"ca.crt": string(ca), "token": token + "\n", "namespace": Namespace} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a.Cluster = podcluster.New(func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
	}, dir)
	t.Cleanup(a.Cluster.Close)
	return a
}

// Refuse has every answer be of a status; 0 ends that.
func (a *API) Refuse(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = status
}

// BeforeChange has f called once, before the next change is looked at: somebody is quicker.
func (a *API) BeforeChange(f func(*API)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = f
}

// Data returns what a Secret holds; nil if there is none.
func (a *API) Data(name string) map[string][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.secrets[Namespace+"/"+name].Data)
}

// Put has a Secret hold something.
func (a *API) Put(name string, data map[string][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.secrets[Namespace+"/"+name]
	s.Metadata.Name, s.Metadata.Namespace, s.Data = name, Namespace, data
	a.keep(s)
}

// Asked returns how many requests there were of a method.
func (a *API) Asked(method string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[method]
}

func (a *API) keep(s secret) secret {
	a.version++
	s.Metadata.ResourceVersion = strconv.Itoa(a.version)
	a.secrets[s.Metadata.Namespace+"/"+s.Metadata.Name] = s
	return s
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	before := a.before
	if r.Method == http.MethodGet {
		before = nil
	}
	if before != nil {
		a.before = nil
		a.mu.Unlock()
		before(a)
		a.mu.Lock()
	}
	defer a.mu.Unlock()
	a.asked[r.Method]++
	s, status := a.answer(r)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(s)
}

func (a *API) answer(r *http.Request) (secret, int) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/"), "/")
	if a.refuse != 0 {
		return secret{}, a.refuse
	}
	if r.Header.Get("Authorization") != "Bearer "+token || len(parts) < 2 || parts[1] != "secrets" {
		return secret{}, http.StatusUnauthorized
	}
	var given secret
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&given); err != nil {
			return secret{}, http.StatusBadRequest
		}
	}
	name := given.Metadata.Name
	if len(parts) == 3 {
		name = parts[2]
	}
	have, there := a.secrets[parts[0]+"/"+name]
	switch r.Method {
	case http.MethodGet:
		if !there {
			return secret{}, http.StatusNotFound
		}
		return have, http.StatusOK
	case http.MethodPost:
		if there {
			return secret{}, http.StatusConflict
		}
		return a.keep(given), http.StatusCreated
	case http.MethodPatch:
		if !there {
			return secret{}, http.StatusNotFound
		}
		if given.Metadata.ResourceVersion != have.Metadata.ResourceVersion {
			return secret{}, http.StatusConflict
		}
		data := maps.Clone(have.Data)
		if data == nil {
			data = make(map[string][]byte)
		}
		maps.Copy(data, given.Data)
		have.Data = data
		return a.keep(have), http.StatusOK
	default:
		return secret{}, http.StatusMethodNotAllowed
	}
}
