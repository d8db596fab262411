//go:build linux

package cluster_test

import (
	"context"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

func TestStart(t *testing.T) {
	c := cluster.StartT(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := c.KubectlInside(ctx, "get", "nodes,services,endpointslices", "-A", "-o", "wide")
	t.Log(out, err)
	out, err = c.KubectlInside(ctx, "run", "x", "--image", cluster.ToolImage, "--restart=Never", "--command", "--", "echo", "hello")
	t.Log(out, err)
	out, err = c.KubectlInside(ctx, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/x", "--timeout=30s")
	t.Log(out, err)
	out, err = c.KubectlInside(ctx, "logs", "x")
	t.Log(out, err)
	if t.Failed() || err != nil {
		t.Log(c.Logs(20))
	}
}
