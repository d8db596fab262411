//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// lateObjects are pods that are made while the operator is replaced.
const lateObjects = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: late, namespace: crossplane-system}
spec:
  replicas: 2
  selector: {matchLabels: {app: late}}
  template:
    metadata: {labels: {app: late, pkg.crossplane.io/provider: provider-kubernetes}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: late, image: "postern.test/tool:1", imagePullPolicy: Never, command: [sleep, 1h]}
`

// upgrade brings another version of all charts, at once and while the consumer reads: operator, proxies
// and agents are other pods then, and another operator leads. Pods that are made all the while go
// through the proxy, at the latest when they were made again.
func (w *world) upgrade(t *testing.T) {
	w.apply(t, lateObjects)
	defer kubectl(t, w.pair.A, "delete", "deployment", "late", "-n", "crossplane-system")
	before, leader := w.made(t), w.leader(t)
	w.undisturbed(t, func() {
		ctx := limit(t, 3*time.Minute)
		proxies, agents := w.replacing(t, w.pair.A, "default"), w.replacing(t, w.pair.B, "default")
		operators := w.replacing(t, w.pair.A, "postern-system")
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			return w.upgradeChart(ctx, w.pair.A, "postern-operator", "postern-system", "image.tag="+nextVersion, "proxy.image.tag="+nextVersion)
		})
		group.Go(func() error {
			return w.upgradeChart(ctx, w.pair.B, "private-network-agent", "default", "image.tag="+nextVersion)
		})
		upgraded := make(chan error, 1)
		go func() { upgraded <- group.Wait() }()
		tick, round := time.NewTicker(time.Second), 0
		for {
			select {
			case <-tick.C:
				round++
				kubectl(t, w.pair.A, "set", "env", "deployment/late", "-n", "crossplane-system", fmt.Sprint("ROUND=", round))
				continue
			case err := <-upgraded:
				tick.Stop()
				if err != nil {
					t.Fatal(err)
				}
			}
			break
		}
		operators()
		proxies()
		agents()
	})
	if now := w.leader(t); now == leader {
		t.Errorf("%s still leads", now)
	}
	w.remade(t, before, 0, 0)
	eventually(t, "all pods go through the proxy", time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "pods", "-n", "crossplane-system", "-l", "app=late", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.spec.containers[0].env[*].name}{"\n"}{end}`)
		if err != nil {
			return err
		}
		pods := 0
		for line := range strings.Lines(out) {
			if pods++; !strings.Contains(line, " HTTPS_PROXY ") {
				return fmt.Errorf("not %s", line)
			}
		}
		if pods != 2 {
			err = fmt.Errorf("%d pods", pods)
		}
		return err
	})
}

// leader is the operator that acts.
func (w *world) leader(t *testing.T) string {
	t.Helper()
	return kubectl(t, w.pair.A, "get", "leases", "-n", "postern-system", "-o", "jsonpath={.items[*].spec.holderIdentity}")
}
