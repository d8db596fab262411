package install_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"postern.dev/postern/internal/install"
)

// TestRefusals gives each chart values that cannot be meant, and wants a sentence that says what to do.
func TestRefusals(t *testing.T) {
	const agent = "agent.connectUrl=tls://h,agent.organization=o,agent.agentId=a"
	const secret = "is not the name of a Secret"
	tests := []struct{ chart, set, want string }{
		{"private-network-agent", "replicas=1", "agent.connectUrl is not set"},
		{"private-network-agent", "agent.connectUrl=tls://h", "agent.organization is not set"},
		{"private-network-agent", "agent.connectUrl=tls://h,agent.organization=o", "agent.agentId is not set"},
		{"private-network-agent", agent, "kubectl create secret generic"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.joinSecret=j", "in one way who it is"},
		{"private-network-agent", agent + ",agent.tokenSecret=eyJhbGciOiJFZERTQSJ9.e30.x", secret},
		{"private-network-agent", agent + ",agent.joinSecret=postern-join-1-ABC", secret},
		{"private-network-agent", agent + ",agent.joinSecret=j", "--set replicas=1"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.connectUrl=hub.example.org", "write tls://HOST"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.connectUrl=tls://user:pass@h", "credentials belong in a Secret"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.httpProxy.url=http://u:p@proxy:3128", "put the URL into a Secret"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.ca.pem=-----BEGIN PRIVATE KEY-----", "take the key out of your values"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.ca.secret=a,agent.ca.configMap=b", "more than one of agent.ca.pem"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.conectUrl=x", "agent: additional properties 'conectUrl' not allowed"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,replicas=two", "replicas: got string, want integer"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent=x", "agent"},
		{"private-network-agent", agent + ",agent.organizations[0].organization=x", "agent.organization cannot be given together"},
		{"private-network-agent", "agent.connectUrl=tls://h,agent.agentId=a,agent.organizations[0].organization=x", "agent.organizations[0] says in 0 ways"},
		{"private-network-agent", "agent.connectUrl=tls://h,agent.organizations[0].organization=x,agent.organizations[0].tokenSecret=t", "agent.organizations[0].agentId"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.agentId=My Agent", `agent.agentId "My Agent" is not a name`},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.organization=-o", `agent.organization "-o" is not a name`},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.connectUrl=tls://h:99999", `agent.connectUrl "tls://h:99999": a port is a number`},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.connectUrl=tls://[::1]:0", "a port is a number"},
		{"private-network-agent", agent + ",agent.tokenSecret=t,agent.connectUrl=tls://h:nats", "a port is a number"},
		{"private-network-agent", "agent.agentId=a,agent.organizations[0].organization=X,agent.organizations[0].tokenSecret=t,agent.organizations[0].connectUrl=tls://h", `agent.organizations[0].organization "X" is not a name`},
		{"postern-hub", "replicas=2", "hubs do not form clusters yet"},
		{"postern-hub", "replicas=-1", "replicas: minimum"},
		{"postern-hub", "adminToken=x", "additional properties 'adminToken' not allowed"},
		{"postern-hub", "tls.secret=a,tls.certManager.enabled=true", "both given"},
		{"postern-hub", "tls.certManager.enabled=true", "issuerRef.name is not set"},
		{"postern-hub", "signIn.issuerURL=https://i", "signIn.clientID is not set"},
		{"postern-hub", "audit.webhook.url=https://i", "audit.webhook.secret is not set"},
		{"postern-hub", "hub.busKeySecret=AAAA+/=", secret},
		{"postern-hub", "gateway.listener.tlsSecret=a", "gateway.listener.enabled=true"},
		{"postern-operator", "hub.connectUrl=hub", "write tls://HOST"},
		{"postern-operator", "hub.connectUrl=tls://h:0", "a port is a number"},
		{"postern-operator", "hub.organization=Acme", `hub.organization "Acme" is not a name`},
		{"postern-operator", "proxy.resources.limits.memory=lots", "proxy.resources.limits.memory"},
		{"postern-operator", "proxy.replicas=0", "proxy.replicas"},
		{"postern-operator", "hub.ca.pem=BEGIN EC PRIVATE KEY", "take the key out of your values"},
		{"postern-operator", "hub.ca.secret=a,hub.ca.configMap=b", "more than one of hub.ca.pem"},
		{"postern-operator", "test.tokenSecret=t", "hub.connectUrl is not"},
		{"postern-operator", "test.tokenSecret=eyJ.x_", secret},
		{"postern-operator", "identity.controlPlane=a", "identity.url is not set"},
		{"postern-operator", "identity.controlPlane=a,hub.connectUrl=tls://h", "give identity.tokenSecret"},
		{"postern-operator", "identity.tokenSecret=a", "identity.controlPlane is not set"},
		{"postern-operator", "webhook.failurePolicy=ignore", "webhook.failurePolicy: value must be one of"},
		{"postern-hub", "service.type=Ingress", "service.type: value must be one of"},
	}
	for _, tt := range tests {
		t.Run(tt.chart+" "+tt.set, func(t *testing.T) {
			var v install.Values
			if err := v.Set(tt.set); err != nil {
				t.Fatal(err)
			}
			_, err := load(t, tt.chart).Render(install.Release{Name: "demo", Namespace: "postern"}, v)
			refusal, ok := errors.AsType[*install.RefusedError](err)
			if !ok || !strings.Contains(refusal.Error(), tt.want) {
				t.Fatalf("got %v, want a refusal with %q", err, tt.want)
			}
			for _, given := range []string{"eyJ", "postern-join-1-ABC", "AAAA+", "u:p@"} {
				if strings.Contains(err.Error(), given) {
					t.Errorf("the refusal repeats the secret: %v", err)
				}
			}
		})
	}
}

func TestNamesOfReleases(t *testing.T) {
	chart := load(t, "postern-hub")
	for _, r := range []install.Release{
		{Namespace: "n"},
		{Name: "r"},
		{Name: "Capital", Namespace: "n"},
		{Name: "-r", Namespace: "n"},
		{Name: strings.Repeat("r", 54), Namespace: "n"},
		{Name: "r", Namespace: "a\nkind: Secret"},
	} {
		_, err := chart.Render(r, install.Values{})
		if _, ok := errors.AsType[*install.RefusedError](err); !ok {
			t.Errorf("%+v: got %v, want a refusal", r, err)
		}
	}
}

// small returns a chart of one template.
func small(t *testing.T, template string) *install.Chart {
	t.Helper()
	chart, err := install.Load(fstest.MapFS{
		"Chart.yaml":            {Data: []byte("apiVersion: v2\nname: small\nversion: 1.0.0\n")},
		"values.yaml":           {Data: []byte("a: b\n")},
		"values.schema.json":    {Data: []byte(`{"type": "object"}`)},
		"templates/a.yaml":      {Data: []byte(template)},
		"templates/_parts.tpl":  {Data: []byte(`{{ define "round" }}{{ include "round" . }}{{ end }}`)},
		"templates/NOTES.txt":   {Data: []byte("note {{ .Values.a }}")},
		"templates/empty.yaml":  {Data: []byte("{{- if false }}x{{ end }}\n")},
		"templates/second.yaml": {Data: []byte("kind: Namespace\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return chart
}

// TestTemplates renders templates with what the charts use of Helm, and what they must not do.
func TestTemplates(t *testing.T) {
	tests := []struct{ template, want, problem string }{
		{template: `kind: {{ .Values.missing }}{{ .Values.a }}`, want: "kind: b\n"},
		{template: `kind: {{ tpl "{{ .Values.a }}" . }}`, want: "kind: b\n"},
		{template: `kind: {{ required "say kind" .Values.kind }}`, problem: "say kind"},
		{template: `kind: {{ .Capabilities.APIVersions.Has "v1" }} {{ .Release.Revision }} {{ .Template.Name }}`, want: "kind: false 1 small/templates/a.yaml\n"},
		{template: `kind: {{ lookup "v1" "Secret" "" "" | len }}`, want: "kind: 0\n"},
		{template: `{{ include "round" . }}`, problem: "100 deep"},
		{template: `kind: {{ env "HOME" }}`, problem: `"env" not defined`},
		{template: `kind: {{ now }}`, problem: `"now" not defined`},
		{template: `kind: {{ genPrivateKey "rsa" }}`, problem: `"genPrivateKey" not defined`},
		{template: "kind: [", problem: "small/templates/a.yaml is not YAML"},
	}
	for _, tt := range tests {
		got, err := small(t, tt.template).Render(install.Release{Name: "r", Namespace: "n"}, install.Values{})
		switch {
		case tt.problem != "":
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%s: got %v, want an error with %q", tt.template, err, tt.problem)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.template, err)
		case !strings.Contains(got.Manifests, tt.want) || got.Notes != "note b\n":
			t.Errorf("%s: got %q and %q, want %q", tt.template, got.Manifests, got.Notes, tt.want)
		}
	}
}

// TestRenderTogether renders one chart several times at once, for the race detector.
func TestRenderTogether(t *testing.T) {
	chart := load(t, "postern-hub")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := chart.Render(install.Release{Name: "r", Namespace: "n"}, install.Values{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}
