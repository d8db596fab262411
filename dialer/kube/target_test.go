package kube

import (
	"testing"

	"k8s.io/client-go/rest"
)

// TestTunnelTargets: which target an agent is asked for, and whom the certificate has to
// be for.
func TestTunnelTargets(t *testing.T) {
	for _, tt := range []struct{ host, scheme, target, name, path string }{
		{"", "https", "kubernetes", "kubernetes.default.svc", ""},
		{"https://10.0.0.1:6443", "https", "tcp:10.0.0.1:6443", "10.0.0.1", ""},
		{"https://api.example.org", "https", "tcp:api.example.org:443", "api.example.org", ""},
		{"https://rancher.example.org/k8s/clusters/c-1/", "https", "tcp:rancher.example.org:443", "rancher.example.org", "/k8s/clusters/c-1"},
		{"[2001:db8::1]:6443", "https", "tcp:[2001:db8::1]:6443", "2001:db8::1", ""},
		{"http://127.0.0.1", "http", "tcp:127.0.0.1:80", "127.0.0.1", ""},
	} {
		scheme, target, name, path := targetOf(tt.host)
		if scheme != tt.scheme || target != tt.target || name != tt.name || path != tt.path {
			t.Errorf("%q: %s, %s, %s, %s", tt.host, scheme, target, name, path)
		}
	}
	own := Tunnel(nil, "office", &rest.Config{TLSClientConfig: rest.TLSClientConfig{ServerName: "kubernetes"}})
	if own.Host != "https://office.postern.invalid" || own.ServerName != "kubernetes" {
		t.Errorf("%s, %s", own.Host, own.ServerName)
	}
}
