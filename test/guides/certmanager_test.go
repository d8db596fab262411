//go:build linux

package guides_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/bins"
	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

const (
	// operatorNamespace is where the chart of the operator is installed, and webhookName what it
	// calls its Service, its Certificate and their Secret.
	operatorNamespace = "postern-system"
	webhookName       = "postern-operator-webhook"
	// hooks is the name of what the API server knows of the webhook.
	hooks = operatorNamespace + "-postern-operator"
)

// TestCertManager installs the operator's chart with cert-manager's switch, into an API server that
// has cert-manager's definitions. The test stands in for its controllers: it writes the Secret that
// the chart's Certificate names, and the CA where the annotation asks for it. The operator has the
// variables and the rights of the chart, and the API server has to ask it for every pod.
func TestCertManager(t *testing.T) {
	source, err := tools.CertManager().Source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), api: apiserver.StartT(t)}
	if err := cluster.GoBuild(t.Context(), filepath.Join(root, "operator"), w.file("bin/postern-operator"), "./cmd/postern-operator"); err != nil {
		t.Fatal(err)
	}
	define(t, w.api, filepath.Join(source, "deploy", "crds"))
	kubectl(t, w.api, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	kubectl(t, w.api, "", "create", "namespace", operatorNamespace)
	kubectl(t, w.api, operatorChart(t, "webhook.failurePolicy=Fail", "webhook.certManager.enabled=true"), "apply", "--server-side", "-f", "-")
	webhook := freeAddr(t)
	w.aim(t, webhook)

	w.certify(t)
	if err := w.pod(t.Context()); err == nil {
		t.Error("a pod is taken though the webhook is to be asked and the operator is not there")
	}
	operator := w.startOperator(t, webhook)
	w.await(t, "the webhook is asked", w.pod, operator)
	w.certify(t)
	w.await(t, "the webhook is asked after the renewal", w.pod, operator)
}

// operatorChart renders the chart with some values.
func operatorChart(t *testing.T, values ...string) string {
	t.Helper()
	programs, err := bins.Ensure(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"template", "postern-operator", filepath.Join(root, "charts", "postern-operator"), "--namespace", operatorNamespace,
		"--include-crds", "--no-hooks", "--set", "hub.connectUrl=tls://hub.example.org"}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	cmd := exec.CommandContext(limit(t, quick), programs.Path("helm"), args...)
	cmd.Env = append(environment(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v", err)
	}
	return string(out)
}

// certify does what cert-manager does for the chart's Certificate, each time with another CA, as it
// is with the chart's own Issuer.
func (w *world) certify(t *testing.T) {
	t.Helper()
	host := kubectl(t, w.api, "", "get", "certificates.cert-manager.io", webhookName, "-n", operatorNamespace, "-o", "jsonpath={.spec.dnsNames[0]}")
	authority, err := pki.New(filepath.Join(t.TempDir(), "pki"), "webhook")
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.Issue("tls", pki.Subject{Name: "webhook", Hosts: []string{host}})
	if err != nil {
		t.Fatal(err)
	}
	name := kubectl(t, w.api, "", "get", "certificates.cert-manager.io", webhookName, "-n", operatorNamespace, "-o", "jsonpath={.spec.secretName}")
	secret := kubectl(t, w.api, "", "create", "secret", "generic", name, "-n", operatorNamespace, "--type=kubernetes.io/tls", "--dry-run=client", "-o", "yaml",
		"--from-file=tls.crt="+serving.CertFile, "--from-file=tls.key="+serving.KeyFile, "--from-file=ca.crt="+authority.CertFile())
	kubectl(t, w.api, secret, "apply", "--server-side", "-f", "-")
	from := kubectl(t, w.api, "", "get", "mutatingwebhookconfigurations", hooks, "-o", `jsonpath={.metadata.annotations.cert-manager\.io/inject-ca-from}`)
	if from != operatorNamespace+"/"+webhookName {
		t.Fatalf("the CA is to be that of %q", from)
	}
	ca := base64.StdEncoding.EncodeToString(authority.CertPEM())
	kubectl(t, w.api, "", "patch", "mutatingwebhookconfigurations", hooks, "--type=json", "-p", fmt.Sprintf(
		`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":%q},{"op":"add","path":"/webhooks/1/clientConfig/caBundle","value":%q}]`, ca, ca))
}

// aim has the API server find the operator, which runs beside it, by the Service of the chart.
func (w *world) aim(t *testing.T, webhook string) {
	t.Helper()
	_, port, err := net.SplitHostPort(webhook)
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.api, "", "patch", "service", webhookName, "-n", operatorNamespace, "--type=merge",
		"-p", `{"spec":{"type":"ExternalName","externalName":"localhost","clusterIP":null,"clusterIPs":null}}`)
	kubectl(t, w.api, "", "patch", "mutatingwebhookconfigurations", hooks, "--type=json",
		"-p", `[{"op":"replace","path":"/webhooks/0/clientConfig/service/port","value":`+port+`}]`)
}

// startOperator starts the operator as the chart's Deployment does: with its variables, and with the
// rights of its service account.
func (w *world) startOperator(t *testing.T, webhook string) *proc.Process {
	t.Helper()
	env := kubectl(t, w.api, "", "get", "deployment", "postern-operator", "-n", operatorNamespace, "-o",
		`go-template={{range (index .spec.template.spec.containers 0).env}}{{if .value}}{{.name}}={{.value}}{{"\n"}}{{end}}{{end}}`)
	if !strings.Contains(env, "POSTERN_WEBHOOK_CERT_MANAGER=true\n") {
		t.Fatalf("the chart's variables are:\n%s", env)
	}
	token := kubectl(t, w.api, "", "create", "token", "postern-operator", "-n", operatorNamespace, "--duration=1h")
	ca, err := os.ReadFile(w.api.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := w.write(t, "operator.kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: operator, user: {token: %s}}]
contexts: [{name: here, context: {cluster: here, user: operator}}]
current-context: here
`, w.api.Addr(), base64.StdEncoding.EncodeToString(ca), strings.TrimSpace(token)))
	cmd := exec.Command(w.file("bin/postern-operator"), "--kubeconfig", kubeconfig)
	cmd.Env = append(strings.Split(strings.TrimSpace(env), "\n"), "POD_NAME=postern-operator-0", "POSTERN_NAMESPACE="+operatorNamespace,
		"POSTERN_WEBHOOK="+webhook, "POSTERN_METRICS="+freeAddr(t))
	return w.start(t, "operator", cmd)
}

// pod makes a pod in a dry run, for which the API server asks the webhook.
func (w *world) pod(ctx context.Context) error {
	_, err := w.api.Kubectl(ctx, "", "run", "some", "--image=example.org/none", "--dry-run=server")
	return err
}
