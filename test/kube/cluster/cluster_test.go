//go:build linux

package cluster_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// TestStart runs a pod on a cluster of its own.
func TestStart(t *testing.T) {
	c := cluster.StartT(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"get", "nodes"}, "Ready"},
		{[]string{"run", "hello", "--image", cluster.ToolImage, "--restart=Never", "--command", "--", "echo", "hello"}, "created"},
		{[]string{"wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/hello", "--timeout=30s"}, "condition met"},
		{[]string{"logs", "hello"}, "hello"},
	} {
		out, err := c.KubectlInside(ctx, step.args...)
		if err != nil || !strings.Contains(out, step.want) {
			t.Fatalf("kubectl %s: %q, %v; want %q\n%s", strings.Join(step.args, " "), out, err, step.want, c.Logs(10))
		}
	}
}
