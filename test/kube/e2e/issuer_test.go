//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/issuer"
	health "postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/proc"
)

// TestIssuerAlone has issuers keep their keys in a Secret of a real API server, with the rights that the
// guide gives them and no others, and give tokens to a service account, by a token that the API server
// made for it as the kubelet has it made.
func TestIssuerAlone(t *testing.T) {
	t.Parallel()
	server := apiserver.StartT(t)
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		out, err := server.Kubectl(limit(t, quick), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl("", "create", "namespace", "postern-system")
	kubectl(blockOf(t, identityGuide, "name: postern-issuer, namespace: postern-system", nil), "apply", "-f", "-")
	kubectl("", "create", "serviceaccount", "postern-operator", "-n", "postern-system")

	// What the kubelet gives to a pod of the issuer.
	pod := t.TempDir()
	ca, err := os.ReadFile(server.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(pod, "keys.json")
	for name, content := range map[string]string{
		"token": kubectl("", "create", "token", "postern-issuer", "-n", "postern-system"), "ca.crt": string(ca), "namespace": "postern-system",
		"keys.json": kubectl("", "get", "--raw", "/openid/v1/jwks"),
	} {
		if err := os.WriteFile(filepath.Join(pod, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	cluster := podcluster.New(func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
	}, pod)
	t.Cleanup(cluster.Close)

	settings := config.DefaultStandaloneIssuer()
	settings.IssuerURL, settings.KeysSecret, settings.Listen = "https://id.example.org", "postern-issuer-keys", "127.0.0.1:0"
	settings.Callers = []config.IdentityCaller{{
		Name: "prod-1", Issuer: "https://kubernetes.default.svc.cluster.local", JWKSFile: keys, Audiences: []string{"postern-issuer"},
		Claims: []string{"sub=system:serviceaccount:postern-system:postern-operator"}, Account: "acme", ControlPlanes: []string{"prod-1"},
	}}
	first, second := startIssuer(t, settings, cluster), startIssuer(t, settings, cluster)
	shown := getText(t, first+"/.well-known/jwks")
	if other := getText(t, second+"/.well-known/jwks"); shown != other || !strings.Contains(shown, `"kid"`) {
		t.Errorf("one shows %s, and the other %s", shown, other)
	}
	if out := kubectl("", "get", "secret", "postern-issuer-keys", "-n", "postern-system", "-o", "jsonpath={.data}"); !strings.Contains(out, "keys.json") {
		t.Errorf("the Secret holds %.100s", out)
	}
	if _, err := cluster.Secret(t.Context(), "postern-system", "another"); err == nil || !strings.Contains(err.Error(), "RBAC") {
		t.Errorf("another Secret: %v", err)
	}

	ask := func(token, plane string) (api.IdentityToken, error) {
		c := &api.Client{BaseURL: second, HTTP: http.DefaultClient, Token: token}
		return c.CreateIdentityToken(limit(t, quick), "acme", api.CreateIdentityToken{ControlPlane: plane, Provider: "p", Audiences: []string{"a"}})
	}
	operator := kubectl("", "create", "token", "postern-operator", "-n", "postern-system", "--audience", "postern-issuer", "--duration", "1h")
	got, err := ask(operator, "prod-1")
	if err != nil || got.Subject != "mcp:acme/prod-1:provider:p" {
		t.Errorf("%+v, %v", got, err)
	}
	for what, refused := range map[string][2]string{
		"another control plane":   {operator, "prod-2"},
		"another service account": {kubectl("", "create", "token", "postern-issuer", "-n", "postern-system", "--audience", "postern-issuer"), "prod-1"},
		"another audience":        {kubectl("", "create", "token", "postern-operator", "-n", "postern-system"), "prod-1"},
	} {
		if got, err := ask(refused[0], refused[1]); err == nil {
			t.Errorf("%s gets a token of %s", what, got.Subject)
		}
	}

	// The key is withdrawn by a command in some pod, and both follow.
	var set struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal([]byte(shown), &set); err != nil || len(set.Keys) != 1 {
		t.Fatal(shown, err)
	}
	secret, err := issuer.NewSecret(cluster, "postern-issuer-keys")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.Withdraw(secret, time.Now(), set.Keys[0].Kid); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{first, second} {
		err := proc.Wait(limit(t, quick), "the key is gone", func(context.Context) error {
			if shown := getText(t, url+"/.well-known/jwks"); strings.Contains(shown, set.Keys[0].Kid) {
				return fmt.Errorf("%s shows %s", url, shown)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := ask(operator, "prod-1"); err != nil {
		t.Error(err)
	}
}

// startIssuer starts one that ends with the test, and returns where it serves.
func startIssuer(t *testing.T, settings config.StandaloneIssuer, cluster *podcluster.Cluster) string {
	t.Helper()
	started := make(chan string, 1)
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	server := issuer.NewServer(settings, issuer.Options{
		Health: health.NewHealth(), Log: slog.New(slog.DiscardHandler), Cluster: cluster, Started: func(a net.Addr) { started <- "http://" + a.String() },
	})
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case url := <-started:
		return url
	case err := <-ended:
		ended <- nil
		t.Fatalf("the issuer ended: %v", err)
		return ""
	}
}

// getText returns what is at a URL.
func getText(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(limit(t, quick), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, res.Status, err, text)
	}
	return string(text)
}
