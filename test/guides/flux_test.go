//go:build linux

package guides_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/proc"
)

// TestFlux runs Flux's kustomize-controller in a control plane. It applies and prunes in the private
// cluster, by the gateway and by the proxy. The test stands in for the source-controller, which has
// nothing to do with other clusters: it serves the archive, and writes where that is.
func TestFlux(t *testing.T) {
	built := need(t, tools.KustomizeController())
	w := newWorld(t)
	control := apiserver.StartT(t)
	define(t, control, filepath.Join(built.Source, "config", "crd", "bases"))
	sources, err := tools.FluxSources().Source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	define(t, control, filepath.Join(sources, "config", "crd", "bases"))
	kubectl(t, control, "", "create", "namespace", "flux-system")
	kubectl(t, control, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	kubectl(t, control, `apiVersion: source.toolkit.fluxcd.io/v1
kind: GitRepository
metadata: {name: fleet, namespace: flux-system}
spec: {interval: 10m, url: "https://git.example.org/fleet.git"}
`, "create", "-f", "-")
	cmd := exec.Command(built.Path, "--metrics-addr=0", "--health-addr", freeAddr(t), "--log-level=debug", "--log-encoding=console")
	cmd.Env = []string{"KUBECONFIG=" + control.Admin(), "RUNTIME_NAMESPACE=flux-system", "TMPDIR=" + t.TempDir()}
	flux := w.start(t, "kustomize-controller", cmd)

	t.Run("gateway", func(t *testing.T) {
		publish(t, control, "one", "from-flux", "also-from-flux")
		kubectl(t, control, fluxKubeconfig(t, w), "apply", "-f", "-")
		kubectl(t, control, kustomization(t), "apply", "-f", "-")
		reconciled(t, w, control, flux, "one")
		w.configMap(t, "from-flux")
		w.configMap(t, "also-from-flux")
		w.recorded(t, "request", "from-flux")

		publish(t, control, "two", "from-flux")
		reconciled(t, w, control, flux, "two")
		gone(t, w, "also-from-flux")
		kubectl(t, control, "", "delete", "kustomizations.kustomize.toolkit.fluxcd.io", "office", "-n", "flux-system", "--timeout=60s")
		gone(t, w, "from-flux")
	})
	t.Run("proxy", func(t *testing.T) {
		publish(t, control, "three", "by-proxy")
		admin := adminOf(t, w.api)
		// What the guide says of the proxy, in the place of what it says of the gateway.
		secret, _, _ := strings.Cut(example(t, "many-clusters.md", "kind: Kustomization",
			"https://hub.example.org:4222/office", "https://"+apiName,
			"certificate-authority-data: …", "certificate-authority-data: "+admin.ca+"\n          proxy-url: http://office:@"+w.proxyAddr,
			"{token: …}", "{client-certificate-data: "+admin.cert+", client-key-data: "+admin.key+"}"), "---\n")
		kubectl(t, control, secret, "apply", "-f", "-")
		kubectl(t, control, kustomization(t), "apply", "-f", "-")
		reconciled(t, w, control, flux, "three")
		w.configMap(t, "by-proxy")
		flux.Stop(quick)
		w.recorded(t, "stream", apiName) // a stream is recorded when it ends
	})
}

// kustomization is the guide's.
func kustomization(t *testing.T) string {
	t.Helper()
	_, text, found := strings.Cut(example(t, "many-clusters.md", "kind: Kustomization"), "---\n")
	if !found {
		t.Fatal("the guide's example has one part")
	}
	return text
}

// publish makes a revision of the repository, as source-controller does: an archive with ConfigMaps
// at the guide's path, served on loopback, which the repository's status names.
func publish(t *testing.T, control *apiserver.Server, revision string, names ...string) {
	t.Helper()
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	files := tar.NewWriter(zipped)
	for _, name := range names {
		text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", namespace: default}\ndata: {revision: " + revision + "}\n"
		if err := files.WriteHeader(&tar.Header{Name: "clusters/office/" + name + ".yaml", Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(files.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	served := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(archive.Bytes()) }))
	t.Cleanup(served.Close)
	kubectl(t, control, "", "patch", "gitrepositories.source.toolkit.fluxcd.io", "fleet", "-n", "flux-system", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(
		`{"status":{"observedGeneration":1,"artifact":{"revision":%q,"path":%q,"url":%q,"digest":"sha256:%x","lastUpdateTime":"2026-01-02T03:04:05Z"},
		"conditions":[{"type":"Ready","status":"True","reason":"Succeeded","message":"","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`,
		revision, revision+".tar.gz", served.URL+"/"+revision+".tar.gz", sha256.Sum256(archive.Bytes())))
}

// reconciled waits until Flux has applied a revision.
func reconciled(t *testing.T, w *world, control *apiserver.Server, flux *proc.Process, revision string) {
	t.Helper()
	w.await(t, "Flux has applied the revision "+revision, func(ctx context.Context) error {
		out, err := control.Kubectl(ctx, "", "get", "kustomizations.kustomize.toolkit.fluxcd.io", "office", "-n", "flux-system", "-o",
			`jsonpath={.status.lastAppliedRevision}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{.status}`)
		if err == nil && !strings.HasPrefix(out, revision+"True\n") {
			err = errors.New(out)
		}
		return err
	}, flux)
}

// gone waits until the private cluster no longer has a ConfigMap.
func gone(t *testing.T, w *world, name string) {
	t.Helper()
	w.await(t, "the ConfigMap "+name+" is gone", func(ctx context.Context) error {
		out, err := w.api.Kubectl(ctx, "", "get", "configmap", name, "-n", "default", "--ignore-not-found", "-o", "name")
		if err == nil && out != "" {
			err = errors.New("it is there")
		}
		return err
	})
}
