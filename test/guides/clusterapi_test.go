//go:build linux

package guides_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/apiserver"
)

// TestClusterAPI has Cluster API's own code find the guide's Secret by its name, and reach the
// workload cluster, once by a proxy and once by the gateway.
func TestClusterAPI(t *testing.T) {
	built := need(t, tools.ClusterAPI())
	w := newWorld(t)
	management := apiserver.StartT(t)
	define(t, management, filepath.Join(built.Source, "config", "crd", "bases"))
	kubectl(t, management, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	kubectl(t, management, `apiVersion: cluster.x-k8s.io/v1beta2
kind: Cluster
metadata: {name: office, namespace: default}
spec:
  infrastructureRef: {apiGroup: infrastructure.cluster.x-k8s.io, kind: Elsewhere, name: office}
`, "create", "-f", "-")
	kubectl(t, management, "", "patch", "clusters.cluster.x-k8s.io", "office", "-n", "default", "--subresource=status", "--type=merge",
		"-p", `{"status":{"initialization":{"infrastructureProvisioned":true}}}`)

	t.Run("proxy", func(t *testing.T) {
		admin := adminOf(t, w.api)
		kubectl(t, management, example(t, "many-clusters.md", "cluster.x-k8s.io/secret",
			"https://api.office.internal:6443", "https://"+apiName,
			"certificate-authority-data: …", "certificate-authority-data: "+admin.ca,
			"postern-proxy.postern.svc:3128", w.proxyAddr,
			"client-certificate-data: …", "client-certificate-data: "+admin.cert,
			"client-key-data: …", "client-key-data: "+admin.key), "apply", "-f", "-")
		probe(t, w, management, built, "cluster-api-proxy")
		w.recorded(t, "stream", apiName)
	})
	t.Run("gateway", func(t *testing.T) {
		kubeconfig := fluxKubeconfig(t, w, "namespace: flux-system", "namespace: default\n  labels: {cluster.x-k8s.io/cluster-name: office}\ntype: cluster.x-k8s.io/secret")
		kubectl(t, management, "", "delete", "secret", "office-kubeconfig", "-n", "default")
		kubectl(t, management, kubeconfig, "create", "-f", "-")
		w.shell(t, "export KUBECONFIG="+w.api.Admin()+"\n"+example(t, "many-clusters.md", "--non-resource-url"))
		probe(t, w, management, built, "cluster-api-gateway")
		w.recorded(t, "request", "configmaps") // the name of what is made is not in the URL
	})
}

// probe runs Cluster API's code once, which makes a ConfigMap.
func probe(t *testing.T, w *world, management *apiserver.Server, built tools.Built, name string) {
	t.Helper()
	cmd := exec.CommandContext(limit(t, 5*quick), built.Path, "default", "office", name)
	cmd.Env = append(environment(), "HOME="+w.dir, "KUBECONFIG="+management.Admin())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, lastLines(string(out), 30))
	}
	w.configMap(t, name)
}

// lastLines is the end of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// admin is what the administrator's kubeconfig has, in base64.
type admin struct{ ca, cert, key string }

// adminOf reads the kubeconfig of a cluster's administrator.
func adminOf(t *testing.T, s *apiserver.Server) admin {
	t.Helper()
	text, err := os.ReadFile(s.Admin())
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				CA string `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert string `json:"client-certificate-data"`
				Key  string `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil || len(config.Clusters) != 1 || len(config.Users) != 1 {
		t.Fatalf("the administrator's kubeconfig: %v\n%s", err, text)
	}
	return admin{ca: config.Clusters[0].Cluster.CA, cert: config.Users[0].User.Cert, key: config.Users[0].User.Key}
}
