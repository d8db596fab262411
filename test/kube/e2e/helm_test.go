//go:build linux

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/cluster"
)

// chart is a small chart: its files by name.
func chart() map[string]string {
	return map[string]string{
		"Chart.yaml":  "apiVersion: v2\nname: small\nversion: 1.0.0\n",
		"values.yaml": "greeting: one\nreplicas: 1\n",
		"templates/settings.yaml": `apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-settings}
data: {greeting: {{ .Values.greeting | quote }}}
`,
		"templates/web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}-web}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {release: {{ .Release.Name }}}}
  template:
    metadata: {labels: {release: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: ` + cluster.ToolImage + `
        command: [serve, ":8080"]
        readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
`,
	}
}

func testHelm(t *testing.T, c *cluster.Cluster, kubectl client) {
	dir := t.TempDir()
	for name, text := range chart() {
		name = filepath.Join(dir, "chart", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	helm := func(args ...string) string {
		t.Helper()
		ctx := limit(t, 4*quick)
		cmd := exec.CommandContext(ctx, c.Helm(), args...)
		cmd.Dir = dir
		cmd.Env = append(slices.Clone(kubectl.env), "KUBECONFIG="+kubectl.kubeconfig, "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
		r := finish(ctx, cmd)
		if r.err != nil || r.code != 0 {
			t.Fatalf("helm %s: exit code %d, %v\n%s%s", strings.Join(args, " "), r.code, r.err, r.stdout, r.stderr)
		}
		return r.stdout
	}
	greeting := func(want string) {
		t.Helper()
		if got := kubectl.must(t, "get", "configmap", "demo-settings", "-o", "jsonpath={.data.greeting}"); got != want {
			t.Errorf("the release's greeting is %q, want %q", got, want)
		}
	}

	helm("install", "demo", "./chart", "--wait", "--timeout", "90s")
	greeting("one")
	helm("upgrade", "demo", "./chart", "--set", "greeting=two,replicas=2", "--wait", "--timeout", "90s")
	greeting("two")
	helm("rollback", "demo", "1", "--wait", "--timeout", "90s")
	greeting("one")
	if history := helm("history", "demo"); strings.Count(history, "\n") < 4 {
		t.Errorf("helm history shows fewer than three revisions:\n%s", history)
	}
	helm("uninstall", "demo", "--wait", "--timeout", "90s")
	if left := kubectl.must(t, "get", "deployments", "-l", "app.kubernetes.io/managed-by=Helm", "-o", "name"); left != "" {
		t.Errorf("helm uninstall left %s", left)
	}
	if r := kubectl.run(limit(t, quick), nil, "get", "configmap", "demo-settings"); r.code != 1 || !strings.Contains(r.stderr, "NotFound") {
		t.Errorf("helm uninstall left the settings: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
