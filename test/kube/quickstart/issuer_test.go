//go:build linux

package quickstart_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/pki"
)

func (w *world) insideIssuer() string { return "https://" + net.JoinHostPort(w.hubHost, issuerPort) }

// prepareIssuer applies what the guide has for an issuer in Kubernetes, with what it is to find: its
// settings, the keys of the cluster's service accounts, and a certificate. It returns how the private cluster's
// API server is told to trust it.
func (w *world) prepareIssuer(t *testing.T) (trust string) {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.New(filepath.Join(dir, "ca"), "issuer")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue("tls", pki.Subject{Name: "issuer", Hosts: []string{w.hubHost}})
	if err != nil {
		t.Fatal(err)
	}
	settings := identityYAML(t, "callers:", "https://id.example.org", w.insideIssuer(), "account: acme", "account: default")
	var kept []string
	for line := range strings.Lines(settings) {
		if !strings.HasPrefix(line, "data:") && !strings.HasPrefix(line, "listen:") { // as the guide says
			kept = append(kept, line)
		}
	}
	for name, text := range map[string]string{
		"issuer.yaml": strings.Join(kept, ""), "prod-1-keys.json": kubectl(t, w.pair.A, "get", "--raw", "/openid/v1/jwks"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, w.pair.A, "create", "configmap", "postern-issuer", "-n", "postern-system", "--from-file="+filepath.Join(dir, "issuer.yaml"), "--from-file="+filepath.Join(dir, "prod-1-keys.json"))
	kubectl(t, w.pair.A, "create", "secret", "tls", "postern-issuer-tls", "-n", "postern-system", "--cert="+pair.CertFile, "--key="+pair.KeyFile)
	kubectl(t, w.pair.A, "create", "configmap", "issuer-ca", "-n", "postern-system", "--from-file=ca.crt="+authority.CertFile())
	w.apply(t, identityYAML(t, "name: postern-issuer, namespace: postern-system", "postern:v0.1.0", "postern:"+version))
	ca := strings.ReplaceAll(strings.TrimSpace(string(authority.CertPEM())), "\n", "\n      ")
	return identityYAML(t, "kind: AuthenticationConfiguration", "https://id.example.org", w.insideIssuer(), "# …", ca)
}

// issuerInside has a provider reach the private cluster with a token of the issuer inside, which the operator
// asked for as its service account. The private cluster trusts that issuer and no other by now.
func (w *world) issuerInside(t *testing.T) {
	w.apply(t, identifiedObjects)
	kubectl(t, w.pair.A, "rollout", "status", "deployment/identified", "-n", "crossplane-system", "--timeout=50s")
	// The Secret may be there with a token of the issuer before, whose key this one does not show: the
	// operator notices that at its next look at the keys.
	var token string
	eventually(t, "the provider's token is of the issuer inside", 2*time.Minute, func(context.Context) error {
		token = w.identityToken(t)
		var says struct{ Iss, Sub string }
		_, claims, _ := strings.Cut(token, ".")
		claims, _, _ = strings.Cut(claims, ".")
		text, err := base64.RawURLEncoding.DecodeString(claims)
		if err == nil {
			err = json.Unmarshal(text, &says)
		}
		if err == nil && (says.Iss != w.insideIssuer() || says.Sub != "mcp:default/prod-1:provider:provider-kubernetes") {
			err = fmt.Errorf("it says %+v", says)
		}
		return err
	})
	sum := sha256.Sum256([]byte(token))
	shown := hex.EncodeToString(sum[:4]) // as the provider tells it
	w.looks(t, "the provider may what its role says", func(l looked) bool { return l.token == shown && allowed(l) })
	// Both pods of the issuer have the one key of the Secret, as a command in either tells.
	for pod := range strings.FieldsSeq(kubectl(t, w.pair.A, "get", "pods", "-n", "postern-system", "-l", "app=postern-issuer", "-o", "name")) {
		out := kubectl(t, w.pair.A, "exec", pod, "-n", "postern-system", "--", "postern", "issuer", "keys", "--keys-secret", "postern-issuer-keys", "-o", "json")
		var keys []struct{ ID string }
		if err := json.Unmarshal([]byte(out), &keys); err != nil || len(keys) != 1 {
			t.Errorf("%s has the keys %s, %v", pod, out, err)
		}
	}
	kubectl(t, w.pair.A, "delete", "deployment", "identified", "-n", "crossplane-system", "--wait")
}
