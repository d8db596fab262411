//go:build linux

package guides_test

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// TestCrossplane runs Crossplane's provider-kubernetes in a control plane. It makes a ConfigMap in
// the private cluster by the gateway's URL, and one as in the quick start: it knows nothing but the
// variables that pods are given, and the name that the API server has inside.
func TestCrossplane(t *testing.T) {
	built := need(t, tools.ProviderKubernetes())
	w := newWorld(t)
	control := apiserver.StartT(t)
	prepareCrossplane(t, control, built)

	t.Run("gateway", func(t *testing.T) {
		kubectl(t, control, fluxKubeconfig(t, w, "namespace: flux-system", "namespace: crossplane-system"), "apply", "-f", "-")
		// The guide configures both providers; of these, only one has its definitions here.
		config, _, _ := strings.Cut(example(t, "many-clusters.md", "kind: ProviderConfig"), "---\n")
		kubectl(t, control, config, "apply", "-f", "-")
		provider := startProvider(t, w, control, built)
		makeObject(t, w, control, provider, "from-gateway", office)
		w.recorded(t, "request", "from-gateway")
		provider.Stop(quick)
	})
	t.Run("quick start", func(t *testing.T) {
		quickStartKubeconfig(t, w, control)
		kubectl(t, control, example(t, "quick-start-kubernetes.md", "kind: ProviderConfig"), "apply", "-f", "-")
		way := "http://" + office + ":@" + w.proxyAddr
		provider := startProvider(t, w, control, built, "HTTP_PROXY="+way, "HTTPS_PROXY="+way, "http_proxy="+way, "https_proxy="+way,
			"NO_PROXY=127.0.0.1,localhost", "no_proxy=127.0.0.1,localhost")
		makeObject(t, w, control, provider, "test-configmap", "private-cluster")
		if out := kubectl(t, w.api, "", "get", "configmap", "test-configmap", "-n", "default", "-o", "jsonpath={.data.message}"); out != "Hello from the control plane" {
			t.Errorf("the ConfigMap says %q", out)
		}
		kubectl(t, control, "", "delete", "objects.kubernetes.crossplane.io", "test-configmap", "--timeout=60s")
		if out, err := w.api.Kubectl(limit(t, quick), "", "get", "configmap", "test-configmap", "-n", "default"); err == nil {
			t.Errorf("the ConfigMap is still there after its Object was deleted: %s", out)
		}
		provider.Stop(quick)
		w.recorded(t, "stream", apiName) // a stream is recorded when it ends
	})
}

// prepareCrossplane makes the definitions of the provider, and the namespace of Crossplane.
func prepareCrossplane(t *testing.T, control *apiserver.Server, built tools.Built) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(built.Source, "package", "crds", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the definitions of provider-kubernetes: %v, %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// Crossplane's package manager says where the webhook is that knows the old version.
		definition := string(text)
		if before, rest, found := strings.Cut(definition, "  conversion:\n"); found {
			_, rest, _ = strings.Cut(rest, "  group:")
			definition = before + "  group:" + rest
		}
		kubectl(t, control, definition, "create", "-f", "-")
	}
	kubectl(t, control, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	kubectl(t, control, "", "create", "namespace", "crossplane-system")
}

// quickStartKubeconfig follows step 2 of the quick start, with the token and the CA that step 1
// finds in a cluster that has controllers.
func quickStartKubeconfig(t *testing.T, w *world, control *apiserver.Server) {
	t.Helper()
	kubectl(t, w.api, "", "create", "serviceaccount", "provider-kubernetes", "-n", "default")
	kubectl(t, w.api, "", "create", "clusterrolebinding", "provider-kubernetes-binding", "--clusterrole=cluster-admin", "--serviceaccount=default:provider-kubernetes")
	token := kubectl(t, w.api, "", "create", "token", "provider-kubernetes", "-n", "default", "--duration=1h")
	ca, err := os.ReadFile(w.api.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(control.Admin())
	if err != nil {
		t.Fatal(err)
	}
	step := example(t, "quick-start-kubernetes.md", "server: https://kubernetes.default.svc.cluster.local", "kubectl create namespace crossplane-system\n", "")
	w.shell(t, "export KUBECONFIG="+w.write(t, "control-plane.kubeconfig", string(config))+"\nkubectl config rename-context test control-plane\n"+
		"TOKEN="+strings.TrimSpace(token)+"\nCLUSTER_CA_DATA="+base64.StdEncoding.EncodeToString(ca)+"\n"+step)
}

// startProvider starts the provider in the control plane, with the variables that its pod is given.
func startProvider(t *testing.T, w *world, control *apiserver.Server, built tools.Built, env ...string) *proc.Process {
	t.Helper()
	authority, err := pki.New(filepath.Join(t.TempDir(), "pki"), "webhook")
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.Issue("tls", pki.Subject{Name: "provider", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, webhook, _ := strings.Cut(freeAddr(t), ":")
	cmd := exec.Command(built.Path, "--debug", "--poll", "5s", "--metrics-bind-address", freeAddr(t), "--health-probe-bind-addr", freeAddr(t), "--webhook-port", webhook)
	cmd.Env = append(env, "KUBECONFIG="+control.Admin(), "TLS_SERVER_CERTS_DIR="+filepath.Dir(serving.CertFile))
	return w.start(t, "provider-kubernetes-"+strings.ReplaceAll(t.Name(), "/", "-"), cmd)
}

// makeObject makes the quick start's Object under another name and waits until it is ready.
func makeObject(t *testing.T, w *world, control *apiserver.Server, provider *proc.Process, name, config string) {
	t.Helper()
	object := example(t, "quick-start-kubernetes.md", "kind: Object", "providerConfigRef: {name: private-cluster}", "providerConfigRef: {name: "+config+"}", "test-configmap", name)
	kubectl(t, control, object, "apply", "-f", "-")
	w.await(t, "the Object is ready", func(ctx context.Context) error {
		out, err := control.Kubectl(ctx, "", "get", "objects.kubernetes.crossplane.io", name, "-o",
			`jsonpath={.status.conditions[?(@.type=="Synced")].status}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{.status.conditions}`)
		if err == nil && !strings.HasPrefix(out, "TrueTrue\n") {
			err = errors.New(out)
		}
		return err
	}, provider)
	w.configMap(t, name)
}

// fluxKubeconfig is the guide's Secret with a kubeconfig of the gateway, which several programs read.
func fluxKubeconfig(t *testing.T, w *world, pairs ...string) string {
	t.Helper()
	secret, _, _ := strings.Cut(example(t, "many-clusters.md", "kind: Kustomization", append(pairs,
		"hub.example.org:4222", w.hubAddr,
		"certificate-authority-data: …", "certificate-authority-data: "+w.hubCA(t),
		"{token: …}", "{token: "+w.token(t)+"}")...), "---\n")
	return secret
}
