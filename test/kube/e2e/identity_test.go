//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"

	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/proc"
)

const (
	identityGuide    = "docs/guide/identity-tokens.md"
	identityAudience = "private-cluster"
	identitySubject  = "mcp:default/prod-1:provider:provider-kubernetes"
)

// TestIdentityTokens has a real API server trust the hub's issuer, by the configuration in the
// guide: a provider's token lists objects there under RBAC of its own, and stops when the key is
// withdrawn. It goes on beside TestKube.
func TestIdentityTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := newOutside(t, filepath.Join(dir, "postern"), freeAddr(t))
	url := "https://" + w.addr
	w.hub = w.startHub(t, "--issuer-url", url)
	ca, err := os.ReadFile(w.caFile())
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "authentication.yaml")
	text := blockOf(t, identityGuide, "kind: AuthenticationConfiguration", map[string]string{
		"https://id.example.org": url,
		"      # …":              "      " + strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n      "),
	})
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api := apiserver.StartT(t, "--authentication-config", config)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n--- hub\n%s", api.Logs(8), w.hub.Tail(30))
		}
	})

	w.control(t, "robot", "create", "operator", "--identity-for", "prod-1")
	robot := filepath.Join(dir, "operator.json")
	w.control(t, "robot", "token", "create", "operator", "one", "-f", robot)
	token := func(file string) string {
		t.Helper()
		w.control(t, "issuer", "token", "--control-plane", "prod-1", "--provider", "provider-kubernetes", "--audience", identityAudience,
			"--token-file", robot, "--file", file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := filepath.Join(dir, "first.token")
	firstToken := token(first)

	for _, args := range [][]string{
		{"create", "role", "provider", "-n", "default", "--resource=configmaps", "--verb=list"},
		{"create", "rolebinding", "provider", "-n", "default", "--role=provider", "--user=identity:" + identitySubject},
	} {
		if _, err := api.Kubectl(limit(t, quick), "", args...); err != nil {
			t.Fatal(err)
		}
	}
	// kubectl as the provider: it knows the file of a token and nothing else.
	as := func(ctx context.Context, file string, args ...string) (string, error) {
		kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
		content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],`+
			`"clusters":[{"name":"a","cluster":{"server":"https://%s","certificate-authority":%q}}],"users":[{"name":"a","user":{"tokenFile":%q}}]}`,
			api.Addr(), api.CAFile(), file)
		if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
			return "", err
		}
		return api.Kubectl(ctx, "", append([]string{"--kubeconfig", kubeconfig}, args...)...)
	}
	until := func(what string, check func(context.Context) error) {
		t.Helper()
		if err := proc.Wait(limit(t, 2*quick), what, check, w.hub); err != nil {
			t.Fatal(err)
		}
	}
	works := func(file string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := as(ctx, file, "get", "configmaps", "-n", "default")
			return err
		}
	}
	until("the API server knows the issuer's keys, and the provider", works(first))
	if out, err := as(limit(t, quick), first, "get", "secrets", "-n", "default"); err == nil || !strings.Contains(out, `User "identity:`+identitySubject+`" cannot list`) {
		t.Errorf("more than its role: %v\n%s", err, out)
	}

	// Another relying party.
	client := identityClient(t, w.caFile(), url)
	verify := func(token string) error {
		provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), client), url)
		if err != nil {
			return err
		}
		id, err := provider.Verifier(&oidc.Config{ClientID: identityAudience}).Verify(oidc.ClientContext(t.Context(), client), token)
		if err == nil && id.Subject != identitySubject {
			err = fmt.Errorf("the subject is %q", id.Subject)
		}
		return err
	}
	if err := verify(firstToken); err != nil {
		t.Error(err)
	}

	// The key is withdrawn. The next token makes the API server ask for the keys.
	var keys []struct{ ID, Phase string }
	if err := json.Unmarshal([]byte(w.control(t, "issuer", "keys", "-o", "json")), &keys); err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	w.control(t, "issuer", "withdraw", keys[0].ID)
	second := filepath.Join(dir, "second.token")
	secondToken := token(second)
	until("the API server takes a token of the next key", works(second))
	until("the API server refuses the token of the withdrawn key", func(ctx context.Context) error {
		if out, err := as(ctx, first, "get", "configmaps", "-n", "default"); err == nil || !strings.Contains(out, "Unauthorized") {
			return fmt.Errorf("it answers %w: %s", err, out)
		}
		return nil
	})
	if err := verify(firstToken); err == nil {
		t.Error("go-oidc takes a token of the withdrawn key")
	}
	if err := verify(secondToken); err != nil {
		t.Error(err)
	}
}

// identityClient is an HTTP client that trusts the hub.
func identityClient(t *testing.T, caFile, url string) *http.Client {
	t.Helper()
	d, err := uplink.New(uplink.Config{ConnectURL: url, CAFile: caFile, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.CloseIdle)
	return d.HTTPClient()
}
