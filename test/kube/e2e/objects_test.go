//go:build linux

package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"postern.dev/postern/test/kube/cluster"
)

// workload is two replicas of a small web server, and a pod that counts aloud.
func workload(greeting string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: %[2]s, large: %[3]q}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: %[1]s
        command: [serve, ":8080"]
        env: [{name: GREETING, value: %[2]s}]
        readinessProbe: {httpGet: {port: 8080, path: /ready}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: clock}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: clock, image: %[1]s, command: [tick, 50ms]}
`, cluster.ToolImage, greeting, strings.Repeat("x", 200_000))
}

func testApply(t *testing.T, kubectl client) {
	if version := kubectl.must(t, "get", "--raw", "/version"); !strings.Contains(version, `"v1.36.3"`) {
		t.Errorf("get --raw /version answered %s", version)
	}
	out := kubectl.feed(t, workload("one"), "apply", "--server-side", "-f", "-")
	if n := strings.Count(out, "serverside-applied"); n != 4 {
		t.Errorf("apply --server-side applied %d objects of 4:\n%s", n, out)
	}
	if got := kubectl.must(t, "get", "configmap", "settings", "-o", "jsonpath={.data.greeting}"); got != "one" {
		t.Errorf("get configmap: greeting is %q", got)
	}
	if size := len(kubectl.must(t, "get", "configmap", "settings", "-o", "jsonpath={.data.large}")); size != 200_000 {
		t.Errorf("get configmap: %d bytes of 200000", size)
	}
	kubectl.must(t, "wait", "--for=condition=Ready", "pod/clock", "--timeout=30s")
}

// testDiff looks at the exit code, which tells a difference (1) from an error (2 and more).
func testDiff(t *testing.T, kubectl client) {
	kubectl.must(t, "rollout", "status", "deployment/web", "--timeout=30s") // what the controllers write is a difference, too
	for greeting, want := range map[string]int{"one": 0, "two": 1} {
		r := kubectl.run(limit(t, quick), strings.NewReader(workload(greeting)), "diff", "--server-side", "-f", "-")
		if r.err != nil || r.code != want {
			t.Errorf("diff with greeting %s: exit code %d, want %d (%v)\n%s%s", greeting, r.code, want, r.err, r.stdout, r.stderr)
		}
		if want == 1 && !strings.Contains(r.stdout, "+  greeting: two") {
			t.Errorf("diff does not show the change:\n%s", r.stdout)
		}
	}
}

func testRollout(t *testing.T, kubectl client) {
	out := kubectl.must(t, "rollout", "status", "deployment/web", "--timeout=60s")
	if !strings.Contains(out, "successfully rolled out") {
		t.Errorf("rollout status: %s", out)
	}
	kubectl.must(t, "set", "env", "deployment/web", "GREETING=two")
	out = kubectl.must(t, "rollout", "status", "deployment/web", "--timeout=60s")
	if !strings.Contains(out, "Waiting for deployment") || !strings.Contains(out, "successfully rolled out") {
		t.Errorf("rollout status of a change: %s", out)
	}
	kubectl.must(t, "rollout", "undo", "deployment/web")
	kubectl.must(t, "rollout", "status", "deployment/web", "--timeout=60s")
}

// testWatch makes and removes objects and sees each event as it happens.
func testWatch(t *testing.T, kubectl client) {
	watch := kubectl.follow(t, "get", "configmaps", "-l", "watched=yes", "--watch", "--output-watch-events", "--no-headers")
	// The list before the watch is empty, so the first event may come before the watch is there;
	// then it is part of the list, which is shown as added too.
	for i := range 3 {
		name := fmt.Sprintf("watched-%d", i)
		kubectl.feed(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+name+", labels: {watched: \"yes\"}}\n", "create", "-f", "-")
		if line := watch.next(t); !strings.HasPrefix(line, "ADDED") || !strings.Contains(line, name) {
			t.Errorf("watch: %q instead of ADDED %s", line, name)
		}
		kubectl.must(t, "delete", "configmap", name)
		if line := watch.next(t); !strings.HasPrefix(line, "DELETED") || !strings.Contains(line, name) {
			t.Errorf("watch: %q instead of DELETED %s", line, name)
		}
	}
}

func testLogs(t *testing.T, kubectl client) {
	logs := kubectl.follow(t, "logs", "-f", "clock")
	for i := range 60 {
		if line, want := logs.next(t), fmt.Sprint("tick ", i); line != want {
			t.Fatalf("logs -f: %q instead of %q", line, want)
		}
	}
	if out := kubectl.must(t, "logs", "clock", "--tail=5"); strings.Count(out, "\n") != 5 {
		t.Errorf("logs --tail=5: %s", out)
	}
}
