package config

import (
	"strings"
	"testing"
)

// TestHubProxy checks which places of a hub's own proxy an operator takes.
func TestHubProxy(t *testing.T) {
	t.Parallel()
	const secret = "postern/passwords"
	for _, tt := range []struct{ service, secret, connect, host, want string }{
		{"", "", "", "", ""},
		{"hub.postern:3128", secret, "tls://hub", "hub.postern.svc.cluster.local", ""},
		{"hub.postern.svc:3128", secret, "tls://hub", "hub.postern.svc.cluster.local", ""},
		{"hub.postern.svc.example.org:3128", secret, "tls://hub", "hub.postern.svc.example.org", ""},
		{"hub.postern:3128", "", "tls://hub", "hub.postern.svc.cluster.local", "belong together"},
		{"", secret, "tls://hub", "", "belong together"},
		{"hub.postern:3128", secret, "", "hub.postern.svc.cluster.local", "--connect-url"},
		{"hub:3128", secret, "tls://hub", "", "is not a Service"},
		{"hub.postern", secret, "tls://hub", "", "is not a Service"},
		{"hub.postern:0", secret, "tls://hub", "", "is not a Service"},
		{"hub.postern:x", secret, "tls://hub", "", "is not a Service"},
		{"hub.postern.example.org:1", secret, "tls://hub", "", "is not a Service"},
		{"a b.postern:1", secret, "tls://hub", "a b.postern.svc.cluster.local", "hub-proxy-service"},
		{"hub.postern:3128", "passwords", "tls://hub", "hub.postern.svc.cluster.local", "place of a Secret"},
		{"hub.postern:3128", "a/b/c", "tls://hub", "hub.postern.svc.cluster.local", "place of a Secret"},
		{"hub.postern:3128", "A/b", "tls://hub", "hub.postern.svc.cluster.local", "namespace"},
	} {
		o := DefaultOperator()
		o.ConnectURL, o.Namespace, o.Pods.Image = tt.connect, "x", "y"
		o.HubProxy = HubProxy{Service: tt.service, Credentials: tt.secret}
		if host, port := o.HubProxy.Address(); host != tt.host || (port == 0) != (host == "") {
			t.Errorf("%+v: %s %d", tt, host, port)
		}
		err := Bind(&o).Load(environment(nil, nil))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
