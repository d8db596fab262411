package config

import (
	"strings"
	"testing"
)

func TestKubernetesOfAgent(t *testing.T) {
	base := []string{"--connect-url=tls://h", "--agent-id=a", "--organization=o", "--ca-file=ca"}
	pod := map[string]string{"POSTERN_TOKEN": "t", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
	with := func(flags ...string) []string { return append(append([]string(nil), base...), flags...) }

	a, _, err := load(t, with("--gateway=true"), pod, "")
	if err != nil || a.Kubernetes != (Kubernetes{API: "https://10.96.0.1:443", TokenFile: podTokenFile, CAFile: podCAFile, OfPod: true}) {
		t.Errorf("in a pod: %+v, %v", a.Kubernetes, err)
	}
	// The pod's token is for its own API server.
	if _, _, err := load(t, with("--gateway=true", "--kubernetes-api=https://other"), pod, ""); err == nil || !strings.Contains(err.Error(), "kubernetes-token-file") {
		t.Errorf("another API server in a pod: %v", err)
	}
	if a, _, err := load(t, base, pod, ""); err != nil || a.Kubernetes != (Kubernetes{}) {
		t.Errorf("without the gateway: %+v, %v", a.Kubernetes, err)
	}
	outside := map[string]string{"POSTERN_TOKEN": "t"}
	if _, _, err := load(t, with("--gateway=true"), outside, ""); err == nil || !strings.Contains(err.Error(), "kubernetes-api") {
		t.Errorf("outside of a pod: %v", err)
	}
	for _, bad := range []string{"http://api", "api:6443", "https://", "https://u:p@api", "https://api/path", "https://api?x", "https://api:0", "https://api:x", "https://a b"} {
		if _, _, err := load(t, with("--gateway=true", "--kubernetes-token-file=t", "--kubernetes-api="+bad), outside, ""); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	a, _, err = load(t, with("--gateway=true", "--kubernetes-token-file=t", "--kubernetes-api=https://[2001:db8::1]:6443/"), outside, "")
	if err != nil {
		t.Fatal(err)
	}
	if at, err := a.Kubernetes.Address(); err != nil || at.Address() != "[2001:db8::1]:6443" {
		t.Errorf("got %s, %v", at, err)
	}
	if _, _, err := load(t, with("--allow=gateway"), outside, ""); err == nil || !strings.Contains(err.Error(), "switch it on") {
		t.Errorf("a rule that allows it: %v", err)
	}
}

// TestGatewayOfOrganizations: the gateway belongs to one entry, as all that allows does.
func TestGatewayOfOrganizations(t *testing.T) {
	const file = `connectUrl: tls://h
agentId: a
caFile: ca
kubernetesApi: https://api:6443
kubernetesTokenFile: token
organizations:
- {organization: o, tokenFile: t, gateway: true}
- {organization: p, tokenFile: u}
`
	a, _, err := load(t, nil, nil, file)
	if err != nil {
		t.Fatal(err)
	}
	each := a.Each()
	if !each[0].Gateway || each[1].Gateway || each[0].Kubernetes.API != "https://api:6443" {
		t.Errorf("got %v and %v", each[0].Gateway, each[1].Gateway)
	}
	if _, _, err := load(t, []string{"--gateway=true"}, nil, file); err == nil || !strings.Contains(err.Error(), "gateway") {
		t.Errorf("a common one: %v", err)
	}
}
