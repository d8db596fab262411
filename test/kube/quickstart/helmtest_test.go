//go:build linux

package quickstart_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// helmTests runs the tests that the charts bring, which walk to the hub. That of an agent whose hub is
// not there says so. The hub's test runs where a hub does, see inside.
func (w *world) helmTests(t *testing.T) {
	ctx := limit(t, 3*time.Minute)
	kubectl(t, w.pair.A, "create", "secret", "generic", "robot-token", "-n", "postern-system", "--from-file=token="+filepath.Join(w.quickStart.dir, "token.json"))
	defer kubectl(t, w.pair.A, "delete", "secret", "robot-token", "-n", "postern-system")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := w.upgradeChart(ctx, w.pair.B, "private-network-agent", "default", "test.image.tag="+version, "test.image.pullPolicy=Never"); err != nil {
			return err
		}
		if _, err := w.helm(ctx, w.pair.B, "test", "private-network-agent", "-n", "default", "--timeout", "60s"); err != nil {
			return err
		}
		args := []string{"upgrade", "--install", "lonely-private-network-agent", filepath.Join(w.root, "charts", "private-network-agent"), "-n", "default"}
		for _, value := range []string{
			"agent.connectUrl=tls://" + w.hubHost + ":4", "agent.organization=default", "agent.agentId=lonely", "agent.tokenSecret=robot-token",
			"replicas=0", "image.tag=" + version, "image.pullPolicy=Never", "test.image.tag=" + version, "test.image.pullPolicy=Never",
		} {
			args = append(args, "--set", value)
		}
		if _, err := w.helm(ctx, w.pair.B, args...); err != nil {
			return err
		}
		out, err := w.helm(ctx, w.pair.B, "test", "lonely-private-network-agent", "-n", "default", "--timeout", "60s", "--logs")
		if err == nil || !strings.Contains(out, "refused") {
			return fmt.Errorf("the test of an agent without a hub: %w\n%s", err, out)
		}
		t.Logf("without a hub: %s", linesWith(out, "refused"))
		_, err = w.helm(ctx, w.pair.B, "uninstall", "lonely-private-network-agent", "-n", "default", "--wait")
		return err
	})
	group.Go(func() error {
		if err := w.upgradeChart(ctx, w.pair.A, "postern-operator", "postern-system", "test.tokenSecret=robot-token"); err != nil {
			return err
		}
		_, err := w.helm(ctx, w.pair.A, "test", "postern-operator", "-n", "postern-system", "--timeout", "60s")
		return err
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.B, "delete", "pod", "lonely-private-network-agent-doctor", "-n", "default") // kept, as it failed
}
