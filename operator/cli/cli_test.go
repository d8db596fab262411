package cli

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/kubetest"
)

// output is written by the operator while the test reads it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestOperator runs the program on a real API server, from its start to what uninstalling it does.
func TestOperator(t *testing.T) {
	cluster, err := kubetest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	}()
	var log output
	program := func(ctx context.Context, args ...string) int {
		env := config.System()
		env.LookupEnv = func(string) (string, bool) { return "", false }
		w := command.World{Args: append(args, "--kubeconfig", cluster.Kubeconfig(), "--namespace", "default"), Stdout: &log, Stderr: &log, Stdin: os.Stdin, Env: env}
		return command.Execute(ctx, w, New(w))
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- program(ctx, "--compat-upbound", "--proxy-image", "postern:test", "--connect-url", "tls://127.0.0.1:1", "--ca-pin", "sha256:"+strings.Repeat("0", 64))
	}()
	defer func() {
		stop()
		if code := <-ended; code != 0 || t.Failed() {
			t.Errorf("exit code %d\n%s", code, log.String())
		}
	}()
	kubectl := func(input string, args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(t.Context(), input, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	until := func(want string, args ...string) {
		t.Helper()
		var out string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if out, _ = cluster.Kubectl(t.Context(), "", args...); strings.Contains(out, want) {
				return
			}
		}
		t.Fatalf("%v prints %q, want %q\n%s", args, out, want, log.String())
	}
	for _, group := range []string{"postern.dev", "spaces.upbound.io"} {
		name := strings.ReplaceAll(group, ".", "-")
		kubectl(fmt.Sprintf(`{"apiVersion":"%s/v1alpha1","kind":"Proxy","metadata":{"name":%q,"namespace":"default"},`+
			`"spec":{"secretRef":{"name":"robot-token","key":"token"},"podSelector":{"matchLabels":{"a":"b"}}}}`, group, name), "create", "-f", "-")
		resource := "proxies." + group
		until("SecretMissing", "get", resource, name, "-o", "jsonpath={.status.conditions}")
		until("default-", "get", "deployment", name+"-proxy", "-o", "jsonpath=default-{.metadata.name}")
		until("SecretMissing", "describe", resource, name)
	}
	kubectl("", "create", "secret", "generic", "robot-token", "--from-literal=token=aa.bb.cc")
	until("HubUnreachable", "get", "proxies.postern.dev", "postern-dev", "-o", "jsonpath={.status.conditions}")

	secretsInMemory(t, cluster, kubectl)

	// What somebody deletes is made again.
	kubectl("", "delete", "service", "postern-dev-proxy")
	until("3128", "get", "service", "postern-dev-proxy", "-o", "jsonpath={.spec.ports}")

	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	ended <- 0
	if code := program(t.Context(), "cleanup"); code != 0 {
		t.Fatalf("cleanup ends with %d\n%s", code, log.String())
	}
	if left := kubectl("", "get", "deployment,service,secret,networkpolicy,pdb,serviceaccount", "-l", "postern.dev/proxy", "-o", "name"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	if left := kubectl("", "get", "proxies.postern.dev,proxies.spaces.upbound.io", "-o", "jsonpath={.items[*].metadata.finalizers}"); left != "" {
		t.Errorf("finalizers: %s", left)
	}
}

// secretsInMemory holds that an operator that keeps identity tokens has their Secrets in memory, of all
// namespaces, and no others: those of a cluster are many, and large.
func secretsInMemory(t *testing.T, cluster *kubetest.Cluster, kubectl func(input string, args ...string) string) {
	t.Helper()
	kubectl("", "create", "secret", "generic", "kept", "-n", "kube-public", "--from-literal=token=aa.bb.cc")
	kubectl("", "label", "secret", "kept", "-n", "kube-public", "app.kubernetes.io/managed-by=postern-operator", "app.kubernetes.io/component=identity-token")
	settings := config.DefaultOperator()
	settings.LeaderElect, settings.WatchNamespaces = false, []string{"default"}
	settings.Identity.ControlPlane = "prod"
	mgr, err := newManager(cluster.Config, settings, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.GetCache().Start(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	if !mgr.GetCache().WaitForCacheSync(ctx) { // it is not to be asked before it has begun
		t.Fatal("the cache does not start")
	}
	var all corev1.SecretList
	if err := mgr.GetClient().List(ctx, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Items) != 1 || all.Items[0].Name != "kept" {
		t.Errorf("%d Secrets are in memory, want the one of an identity token", len(all.Items))
	}
}
