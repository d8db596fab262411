package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// kubePlugin asks the credential plugin of somebody who has signed in for a token, as
// kubectl does, and shows it to the gateway: it knows who calls.
func kubePlugin(t *testing.T, hub *harness.Hub, p *person) {
	t.Helper()
	config := p.run("kubeconfig", "nowhere", "-a", "default", "--output", "-")
	server := "https://" + hub.Addr + "/default:nowhere"
	for _, want := range []string{"server: " + server + "\n", "certificate-authority-data: ", "- --context\n", "POSTERN_CONFIG_DIR"} {
		if !strings.Contains(config, want) {
			t.Errorf("the kubeconfig has no %q:\n%s", want, config)
		}
	}
	var answer struct {
		Status struct {
			Token   string    `json:"token"`
			Expires time.Time `json:"expirationTimestamp"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(p.run("credential", "kubernetes")), &answer); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(answer.Status.Expires); left <= 0 || left > time.Minute {
		t.Errorf("the token of a session of one minute is good for %v", left)
	}
	if strings.Contains(config, answer.Status.Token) {
		t.Error("the token is in the kubeconfig")
	}
	ca, err := os.ReadFile(hub.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true,
	}}
	for token, want := range map[string]int{answer.Status.Token: http.StatusNotFound, "": http.StatusUnauthorized} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server+"/api", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want || err != nil || !strings.Contains(string(body), `"kind":"Status"`) {
			t.Errorf("GET %s/api: %s, want %d, %v\n%s", server, res.Status, want, err, body)
		}
	}
}
