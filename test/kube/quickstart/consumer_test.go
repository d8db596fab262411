//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// consumerObjects are a controller that acts in the private cluster, as the guide's provider does,
// and a pod beside it that no Proxy selects.
const consumerObjects = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: consumer, namespace: crossplane-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: consumer, namespace: crossplane-system}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [get]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: consumer, namespace: crossplane-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: consumer}
subjects: [{kind: ServiceAccount, name: consumer, namespace: crossplane-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: test-configmap, namespace: crossplane-system, labels: {copy: "yes"}}
data: {message: Hello from the control plane}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: consumer, namespace: crossplane-system}
spec:
  selector: {matchLabels: {app: consumer}}
  template:
    metadata: {labels: {app: consumer, pkg.crossplane.io/provider: provider-kubernetes}}
    spec:
      serviceAccountName: consumer
      terminationGracePeriodSeconds: 1
      containers:
      - name: consumer
        image: ` + consumerImage + `
        imagePullPolicy: Never
        env: [{name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: bystander, namespace: crossplane-system}
spec:
  selector: {matchLabels: {app: bystander}}
  template:
    metadata: {labels: {app: bystander, pkg.crossplane.io/provider: provider-other}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: bystander, image: "postern.test/tool:1", imagePullPolicy: Never, command: [sleep, 1h]}
`

// startConsumer starts the consumer and the bystander.
func (w *world) startConsumer(t *testing.T) {
	t.Helper()
	w.apply(t, consumerObjects)
	for _, name := range []string{"consumer", "bystander"} {
		kubectl(t, w.pair.A, "rollout", "status", "deployment/"+name, "-n", "crossplane-system", "--timeout=50s")
	}
}

// cannot looks that the consumer, without a way, fails and says so.
func (w *world) cannot(t *testing.T) {
	t.Helper()
	eventually(t, "the consumer fails without a way to the private cluster", time.Minute, func(ctx context.Context) error {
		out, err := w.consumerLog(ctx)
		if err == nil && !strings.Contains(out, "level=ERROR") {
			err = errNot
		}
		return err
	})
	if out, err := w.pair.B.KubectlInside(limit(t, time.Minute), "get", "configmap", "test-configmap", "-n", "default"); err == nil {
		t.Fatalf("the ConfigMap is in the private cluster, and nobody knows how:\n%s", out)
	}
}

// can looks that the consumer has made the ConfigMap in the private cluster, and watches it.
func (w *world) can(t *testing.T) {
	t.Helper()
	eventually(t, "the ConfigMap is in the private cluster", 2*time.Minute, func(ctx context.Context) error {
		out, err := w.pair.B.KubectlInside(ctx, "get", "configmap", "test-configmap", "-n", "default", "-o", "jsonpath={.data.message}")
		if err == nil && out != "Hello from the control plane" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	w.sees(t, "Hello from the control plane")
	changed := "changed in the private cluster"
	kubectl(t, w.pair.B, "patch", "configmap", "test-configmap", "-n", "default", "-p", `{"data":{"message":"`+changed+`"}}`)
	w.sees(t, changed)
}

// changes changes what the consumer is to copy, and waits until its watch has shown it the copy.
func (w *world) changes(t *testing.T, message string) {
	t.Helper()
	kubectl(t, w.pair.A, "patch", "configmap", "test-configmap", "-n", "crossplane-system", "-p", `{"data":{"message":"`+message+`"}}`)
	w.sees(t, message)
}

// sees waits until the consumer's watch has shown a message.
func (w *world) sees(t *testing.T, message string) {
	t.Helper()
	eventually(t, "the consumer sees "+message, time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "configmap", "test-configmap", "-n", "crossplane-system",
			"-o", `jsonpath={.metadata.annotations.consumer\.test/seen}`)
		if err == nil && out != message {
			err = fmt.Errorf("it has seen %q", out)
		}
		return err
	})
}

func (w *world) consumerLog(ctx context.Context) (string, error) {
	return w.pair.A.KubectlInside(ctx, "logs", "deployment/consumer", "-n", "crossplane-system", "--tail=20")
}

// apply applies objects on A.
func (w *world) apply(t *testing.T, objects string) {
	t.Helper()
	file := filepath.Join(w.dir, "objects.yaml")
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "apply", "-f", file)
}
