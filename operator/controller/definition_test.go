package controller

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
)

// document is the Proxy as the documents of spaces.upbound.io have it.
const document = `apiVersion: spaces.upbound.io/v1alpha1
kind: Proxy
metadata:
  name: private-cluster
  namespace: default
spec:
  secretRef:
    name: robot-token
    key: token
  podSelector:
    matchLabels:
      pkg.crossplane.io/provider: provider-kubernetes
`

// kube returns a client of the shared cluster that reads from the API server.
func kube(t *testing.T) client.Client {
	t.Helper()
	known := runtime.NewScheme() // of this client's own: a scheme must not grow while others read it, and tests run side by side
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, upbound.AddToScheme} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(cluster.Config, client.Options{Scheme: known})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace makes a namespace of a test's own.
func namespace(t *testing.T, c client.Client) string {
	t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}
	if err := c.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return n.Name
}

// TestWhatTheAPIServerRefuses holds the messages of the definitions, of both groups.
func TestWhatTheAPIServerRefuses(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube(t))
	const empty = "podSelector must specify at least one of matchLabels or matchExpressions; an empty selector would match all pods unintentionally."
	for _, tt := range []struct{ name, old, new, want string }{
		{"as it stands", "", "", ""},
		{"expressions", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: Exists}]", ""},
		{"agentID", "secretRef:", "agentID: 550e8400-e29b-41d4-a716-446655440000\n  secretRef:", ""},
		{"agentId", "secretRef:", "agentId: 550e8400-e29b-41d4-a716-446655440000\n  secretRef:", ""},
		{"both spellings", "secretRef:", "agentId: a\n  agentID: a\n  secretRef:", ""},
		{"two agents", "secretRef:", "agentId: a\n  agentID: b\n  secretRef:", "agentID and agentId are two spellings of one field"},
		{"bad agent", "secretRef:", "agentID: My Agent\n  secretRef:", "an agent's ID has 1 to 63 characters of a-z"},
		{"empty selector", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "{}", empty},
		{"empty labels", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {}", empty},
		{"no expressions", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: []", empty},
		{"bad operator", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: Equals}]", "an operator of matchExpressions is In, NotIn, Exists or DoesNotExist."},
		{"no selector", "podSelector:\n    matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "", "spec.podSelector: Required value"},
		{"no secret", "secretRef:\n    name: robot-token\n    key: token\n", "description: x\n", "spec.secretRef: Required value"},
		{"no key", "    key: token\n", "", "spec.secretRef.key: Required value"},
		{"no secret's name", "    name: robot-token\n", "", "spec.secretRef.name: Required value"},
		{"empty key", "key: token", "key: ''", "spec.secretRef.key"},
		{"a token for a Secret's name", "name: robot-token", "name: eyJhbGciOi.J9_x", "the token itself does not stand here"},
		{"a path for a key", "key: token", "key: ../token", "a key of a Secret has characters"},
		{"unknown field", "secretRef:", "secretref: {}\n  secretRef:", `unknown field "spec.secretref"`},
		{"name with a dot", "private-cluster", "private.cluster", "a Proxy's name has at most 57 characters"},
		{"long name", "private-cluster", strings.Repeat("x", 58), "a Proxy's name has at most 57 characters"},
		{"connect URL", "secretRef:", "hub: {connectUrl: hub.example.org}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"password in the URL", "secretRef:", "hub: {connectUrl: 'tls://a:b@hub.example.org'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"organization", "secretRef:", "hub: {organization: Acme Inc}\n  secretRef:", "an organization's name has 1 to 63 characters"},
		{"blanks in the URL", "secretRef:", "hub: {connectUrl: 'tls://hub example'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"a private key", "secretRef:", "hub: {caBundle: '-----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY-----'}\n  secretRef:", "caBundle holds a private key"},
		{"CA", "secretRef:", "hub: {caBundle: /etc/ca.crt}\n  secretRef:", "caBundle is the text of certificates in PEM"},
	} {
		for _, group := range []string{"spaces.upbound.io", "postern.dev"} {
			want := tt.want
			if strings.Contains(tt.new, "hub:") && group == "spaces.upbound.io" {
				want = `unknown field "spec.hub"`
			}
			text := strings.Replace(strings.NewReplacer("spaces.upbound.io", group, "namespace: default", "namespace: "+ns).Replace(document), tt.old, tt.new, 1)
			t.Run(tt.name+" "+group, func(t *testing.T) {
				t.Parallel()
				_, err := cluster.Kubectl(t.Context(), text, "create", "--dry-run=server", "-f", "-")
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("error = %v\nwant    %q", err, want)
				}
			})
		}
	}
}

// TestColumns holds what kubectl shows, under every name of the resource.
func TestColumns(t *testing.T) {
	t.Parallel()
	c := kube(t)
	ns := namespace(t, c)
	for _, group := range []string{"spaces.upbound.io", "postern.dev"} {
		text := strings.NewReplacer("spaces.upbound.io", group, "namespace: default", "namespace: "+ns).Replace(document)
		if _, err := cluster.Kubectl(t.Context(), text, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		status := `{"status":{"phase":"Connected","agentID":"office","conditions":[{"type":"Ready","status":"True","reason":"Connected","message":"x","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
		if _, err := cluster.Kubectl(t.Context(), "", "patch", "-n", ns, "proxies."+group, "private-cluster", "--subresource=status", "--type=merge", "-p", status); err != nil {
			t.Fatal(err)
		}
		category := map[string]string{"spaces.upbound.io": "spaces", "postern.dev": "postern"}[group]
		for _, name := range []string{"proxies." + group, "proxy." + group, "px." + group, category} {
			out, err := cluster.Kubectl(t.Context(), "", "get", "-n", ns, name)
			if err != nil || !regexp.MustCompile(`NAME +PHASE +READY +AGE\n\S*private-cluster +Connected +True +\S+\n`).MatchString(out) {
				t.Errorf("get %s: %v\n%s", name, err, out)
			}
		}
		out, err := cluster.Kubectl(t.Context(), "", "get", "-n", ns, "proxies."+group, "-o", "wide")
		if err != nil || !regexp.MustCompile(`NAME +PHASE +AGENT ID +READY +AGE\n\S*private-cluster +Connected +office +True `).MatchString(out) {
			t.Errorf("%v\n%s", err, out)
		}
		bad := fmt.Sprintf(`{"status":{"phase":%q}}`, "Lost")
		if _, err := cluster.Kubectl(t.Context(), "", "patch", "-n", ns, "proxies."+group, "private-cluster", "--subresource=status", "--type=merge", "-p", bad); err == nil ||
			!strings.Contains(err.Error(), `"WaitingForProxy", "Connected", "Disconnected"`) {
			t.Errorf("phase Lost: %v", err)
		}
	}
}
