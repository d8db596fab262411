package controller

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	upbound "postern.dev/postern/operator/api/upbound/v1alpha1"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/kubetest"
	"postern.dev/postern/test/kube/documents"
)

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
	c := kube(t)
	ns := namespace(t, c)
	refused := map[string][]string{} // what was said, by group
	const empty = "podSelector must specify at least one of matchLabels or matchExpressions; an empty selector would match all pods unintentionally."
	for _, tt := range []struct{ name, old, new, want string }{
		{"as it stands", "", "", ""},
		{"expressions", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: Exists}]", ""},
		{"agentID", "secretRef:", "agentID: 550e8400-e29b-41d4-a716-446655440000\n  secretRef:", ""},
		{"agentId", "secretRef:", "agentId: 550e8400-e29b-41d4-a716-446655440000\n  secretRef:", ""},
		{"both spellings", "secretRef:", "agentId: a\n  agentID: a\n  secretRef:", ""},
		{"two agents", "secretRef:", "agentId: a\n  agentID: b\n  secretRef:", "agentID and agentId are two spellings of one field"},
		{"bad agent", "secretRef:", "agentID: My Agent\n  secretRef:", "an agent's ID has 1 to 63 characters of a-z"},
		{"bad agent, spelled otherwise", "secretRef:", "agentId: -a\n  secretRef:", "an agent's ID has 1 to 63 characters of a-z"},
		{"no agent", "secretRef:", "agentID: ''\n  secretRef:", "spec.agentID"},
		{"a long agent", "secretRef:", "agentID: " + strings.Repeat("a", 64) + "\n  secretRef:", "may not be more than 63 bytes"},
		{"a number for an agent", "secretRef:", "agentID: 7\n  secretRef:", "must be of type string"},
		{"a long description", "secretRef:", "description: " + strings.Repeat("x", 1025) + "\n  secretRef:", "may not be more than 1024 bytes"},
		{"a list for a description", "secretRef:", "description: [x]\n  secretRef:", "must be of type string"},
		{"empty selector", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "{}", empty},
		{"empty labels", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {}", empty},
		{"no expressions", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: []", empty},
		{"bad operator", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: Equals}]", "an operator of matchExpressions is In, NotIn, Exists or DoesNotExist."},
		{"labels with a domain and without value", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {a.example.org/b_C.d: '', x: y-Z.1_2}", ""},
		{"a label's value that is none", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {app: not a label}", "a label's value has up to 63 characters"},
		{"a label's value with a slash", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {app: registry/image}", "a label's value has up to 63 characters"},
		{"a long label", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {app: " + strings.Repeat("x", 64) + "}", "may not be more than 63 bytes"},
		{"a number for a label", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {app: 1}", "must be of type string"},
		{"a label's key that is none", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {my app: x}", "a key of matchLabels is a label's key"},
		{"two slashes in a key", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {a/b/c: x}", "a key of matchLabels is a label's key"},
		{"an empty key", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: {'': x}", "a key of matchLabels is a label's key"},
		{"a list for labels", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchLabels: [a]", "must be of type object"},
		{"a key of expressions that is none", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: my app, operator: Exists}]", "a key of matchExpressions is a label's key"},
		{"a value of expressions that is none", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: In, values: [my app]}]", "a label's value has up to 63 characters"},
		{"In without values", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: In}]", "the operators In and NotIn of matchExpressions need values"},
		{"NotIn without values", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: NotIn, values: []}]", "the operators In and NotIn of matchExpressions need values"},
		{"Exists with values", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a, operator: Exists, values: [b]}]", "the operators Exists and DoesNotExist of matchExpressions take no values"},
		{"an expression without a key", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{operator: Exists}]", "spec.podSelector.matchExpressions[0].key: Required value"},
		{"an expression without an operator", "matchLabels:\n      pkg.crossplane.io/provider: provider-kubernetes", "matchExpressions: [{key: a}]", "spec.podSelector.matchExpressions[0].operator: Required value"},
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
		{"a port that is none", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org:nats'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"no port behind the colon", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org:'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"a port that is too high", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org:65536'}\n  secretRef:", "the port of connectUrl is a number from 1 to 65535"},
		{"port 0", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org:0'}\n  secretRef:", "the port of connectUrl is a number from 1 to 65535"},
		{"no host", "secretRef:", "hub: {connectUrl: 'tls://:4222'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"no host before the path", "secretRef:", "hub: {connectUrl: 'wss:///x'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"a path", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org/x'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"an unbracketed address", "secretRef:", "hub: {connectUrl: 'tls://fd00::1:4222'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"another scheme", "secretRef:", "hub: {connectUrl: 'nats://hub.example.org'}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"an empty URL", "secretRef:", "hub: {connectUrl: ''}\n  secretRef:", "connectUrl is tls://HOST or tls://HOST:PORT"},
		{"an address", "secretRef:", "hub: {connectUrl: 'tls://192.0.2.7:4222'}\n  secretRef:", ""},
		{"an address of IPv6", "secretRef:", "hub: {connectUrl: 'tls://[fd00::1]:4222'}\n  secretRef:", ""},
		{"a slash at the end", "secretRef:", "hub: {connectUrl: 'https://hub.example.org/'}\n  secretRef:", ""},
		{"a WebSocket", "secretRef:", "hub: {connectUrl: 'wss://hub.example.org:8443/v1/connect'}\n  secretRef:", ""},
		{"the highest port", "secretRef:", "hub: {connectUrl: 'tls://hub.example.org:65535'}\n  secretRef:", ""},
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
			text := strings.Replace(strings.NewReplacer("spaces.upbound.io", group, "namespace: default", "namespace: "+ns).Replace(documents.Proxy), tt.old, tt.new, 1)
			t.Run(tt.name+" "+group, func(t *testing.T) {
				o := &unstructured.Unstructured{}
				if err := yaml.Unmarshal([]byte(text), o); err != nil {
					t.Fatal(err)
				}
				// As kubectl does with --dry-run=server.
				err := c.Create(t.Context(), o, client.DryRunAll, client.FieldValidation(metav1.FieldValidationStrict))
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("error = %v\nwant    %q", err, want)
				}
				if err != nil {
					refused[group] = append(refused[group], regexp.MustCompile(`\[\d+\]`).ReplaceAllString(err.Error(), "[]"))
				}
			})
		}
	}
	definitions, err := kubetest.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range definitions {
		for _, path := range leaves("spec", d.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]) {
			if !slices.ContainsFunc(refused[d.Spec.Group], func(text string) bool { return strings.Contains(text, path+":") }) {
				t.Errorf("no case above has a wrong %s in %s", path, d.Spec.Group)
			}
		}
	}
}

// leaves returns the paths of the fields of a schema that have none below them, as the API server writes them.
func leaves(path string, s apiextensionsv1.JSONSchemaProps) (all []string) {
	if s.Type == "array" {
		return leaves(path+"[]", *s.Items.Schema)
	}
	if s.Type != "object" || len(s.Properties) == 0 {
		return []string{path}
	}
	for name, below := range s.Properties {
		all = append(all, leaves(path+"."+name, below)...)
	}
	return all
}

// TestColumns holds what kubectl shows, under every name of the resource.
func TestColumns(t *testing.T) {
	t.Parallel()
	c := kube(t)
	ns := namespace(t, c)
	for _, group := range []string{"spaces.upbound.io", "postern.dev"} {
		text := strings.NewReplacer("spaces.upbound.io", group, "namespace: default", "namespace: "+ns).Replace(documents.Proxy)
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
