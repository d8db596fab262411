package hubtest_test

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// cluster is an API server, as far as a gateway is concerned.
type cluster struct {
	*httptest.Server
	dir    string
	events chan string // sent to who watches
}

// newCluster starts an API server that tells each caller who he is.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), events: make(chan string)}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %v %s\n", r.Header.Get("Authorization"), r.Header.Get("Impersonate-User"), r.Header["Impersonate-Group"], r.RequestURI)
		for r.URL.Query().Has("watch") {
			_ = http.NewResponseController(w).Flush()
			select {
			case e := <-c.events:
				_, _ = io.WriteString(w, e+"\n")
			case <-r.Context().Done():
				return
			}
		}
	}))
	c.EnableHTTP2 = true
	c.StartTLS()
	t.Cleanup(c.Close)
	for name, text := range map[string]string{
		"token": "agents-token", "ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// settings makes an agent the cluster's.
func (c *cluster) settings(a *config.Agent) {
	a.Gateway = true
	a.Kubernetes = config.Kubernetes{API: c.URL, TokenFile: filepath.Join(c.dir, "token"), CAFile: filepath.Join(c.dir, "ca.crt")}
}

// ask asks the gateway as the world's robot. The caller closes the body.
func (w *world) ask(t *testing.T, path string, header http.Header) *http.Response {
	t.Helper()
	text, err := os.ReadFile(w.token)
	if err != nil {
		t.Fatal(err)
	}
	var token struct{ Token string }
	if err := json.Unmarshal(text, &token); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.uplink.BaseURL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	r.Header.Set("Authorization", "Bearer "+token.Token)
	answer, err := w.uplink.HTTPClient().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// get asks the gateway and returns the whole answer.
func (w *world) get(t *testing.T, path string, header http.Header) (int, string) {
	t.Helper()
	answer := w.ask(t, path, header)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// TestGateway goes all the way from the hub's URL to a cluster's API server: who has a
// grant is seen there as himself, who has none is not let in, and what runs ends when
// the grant does.
func TestGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := newCluster(t)
	a := w.agent("a", c.settings)
	path := "/" + agentID + "/api/v1/nodes/a%2Fb?limit=1"

	eventually(t, patience, func() error {
		if r := w.replica("a"); !r.Gateway {
			return fmt.Errorf("the hub does not know that the agent is a cluster: %+v", r)
		}
		return nil
	})
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, "default-robots"); err != nil {
		t.Fatal(err)
	}
	if code, body := w.get(t, path, nil); code != http.StatusForbidden || !strings.Contains(body, "--target gateway") {
		t.Errorf("without a grant: %d %s", code, body)
	}
	grant, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{To: "robot:machines", Agent: agentID, Targets: []string{"gateway"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "Bearer agents-token postern:robot:machines [postern:robots system:authenticated] /api/v1/nodes/a%2Fb?limit=1\n"
	eventually(t, patience, func() error {
		if code, body := w.get(t, path, http.Header{"X-Remote-User": {"root"}}); code != http.StatusOK || body != want {
			return fmt.Errorf("got %d %s", code, body)
		}
		return nil
	})

	watch := w.ask(t, "/"+agentID+"/api/v1/pods?watch=1", nil)
	defer watch.Body.Close()
	lines := bufio.NewReader(watch.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c.events <- "added"
	if line, err := lines.ReadString('\n'); err != nil || line != "added\n" {
		t.Fatalf("the event comes as %q, %v", line, err)
	}
	begin := time.Now()
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, grant.ID); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(lines); err == nil {
		t.Errorf("the watch ends well, after %q", rest)
	}
	t.Logf("cut within %s", time.Since(begin))

	// A drain does not wait for connections that nobody uses.
	if err := a.stop(); err != nil {
		t.Error(err)
	}
}

// TestGatewayIsForTheHub: nobody gets to the agent's end of the gateway, not by the hub
// either, if the owner has not switched it on.
func TestGatewayIsForTheHub(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := newCluster(t)
	w.agent("a", c.settings)
	if _, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{To: "robot:machines", Agent: "*", Targets: []string{"gateway"}}); err != nil {
		t.Fatal(err)
	}
	w.agent("off", func(a *config.Agent) { a.AgentID = "off" })
	eventually(t, patience, func() error {
		code, body := w.get(t, "/off/api", nil)
		if code != http.StatusForbidden || !strings.Contains(body, "has not switched the gateway on") {
			return fmt.Errorf("got %d %s", code, body)
		}
		return nil
	})
}
