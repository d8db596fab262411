package pki

import (
	"encoding/json"
	"fmt"
	"os"
)

// Kubeconfig says how a client reaches a cluster and who it is: by a certificate or by a token.
type Kubeconfig struct {
	// Server is the API server's URL.
	Server string
	// ProxyURL is the HTTP or SOCKS5 proxy to go through, "" for none.
	ProxyURL string
	// CA is the PEM of the authority that the server is verified with.
	CA []byte
	// Client is the client's certificate, if Token is empty.
	Client Pair
	// Token is a bearer token.
	Token string
	// Namespace is the default namespace, "" for the default one.
	Namespace string
}

// entry is a kubeconfig's list of one named thing.
func entry(field string, value any) []map[string]any {
	return []map[string]any{{"name": "test", field: value}}
}

// JSON is the kubeconfig, in JSON, which is YAML too.
func (k Kubeconfig) JSON() ([]byte, error) {
	cluster := map[string]any{"server": k.Server, "certificate-authority-data": k.CA}
	if k.ProxyURL != "" {
		cluster["proxy-url"] = k.ProxyURL
	}
	user := map[string]any{"token": k.Token}
	if k.Token == "" {
		user = map[string]any{"client-certificate-data": k.Client.CertPEM, "client-key-data": k.Client.KeyPEM}
	}
	context := map[string]any{"cluster": "test", "user": "test"}
	if k.Namespace != "" {
		context["namespace"] = k.Namespace
	}
	return json.MarshalIndent(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        entry("cluster", cluster),
		"users":           entry("user", user),
		"contexts":        entry("context", context),
		"current-context": "test",
	}, "", "  ")
}

// WriteFile writes the kubeconfig for its owner alone.
func (k Kubeconfig) WriteFile(name string) error {
	text, err := k.JSON()
	if err != nil {
		return fmt.Errorf("encode the kubeconfig %s: %w", name, err)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return nil
}
