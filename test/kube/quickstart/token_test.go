//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// token replaces the robot's token: first as it should be, with the new one in both clusters before
// the old one is revoked, while the consumer reads; then the other way around. No pod starts again.
func (w *world) token(t *testing.T) {
	before := w.starts(t)
	w.undisturbed(t, func() {
		began, skip := time.Now(), len(readFile(t, w.hub.Log()))
		w.giveToken(t, "second")
		w.enrolled(t, skip, 4)
		t.Logf("all have shown the new token after %s", time.Since(began).Round(100*time.Millisecond))
		w.admin(t, "robot", "token", "delete", "proxyagent", "private-cluster")
		t.Log(linesWith(readFile(t, w.hub.Log())[skip:], "credentials revoked"))
	})
	w.changes(t, "after the token")

	w.admin(t, "robot", "token", "delete", "proxyagent", "second")
	w.ready(t, "TokenRefused")
	w.giveToken(t, "third")
	began := time.Now()
	w.ready(t, "Connected")
	w.changes(t, "after the revoked token")
	t.Logf("back after %s", time.Since(began).Round(100*time.Millisecond))
	if now := w.starts(t); now != before {
		t.Errorf("pods, and how often they started:\n%s\nbefore:\n%s", now, before)
	}
}

// starts are the pods of proxy and agent, and how often each was started again.
func (w *world) starts(t *testing.T) string {
	t.Helper()
	var all string
	for _, c := range []*cluster.Cluster{w.pair.A, w.pair.B} {
		all += kubectl(t, c, "get", "pods", "-n", "default", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	}
	return all
}

// giveToken makes a token of the robot and puts it into the Secrets of both clusters.
func (w *world) giveToken(t *testing.T, name string) {
	t.Helper()
	file := filepath.Join(w.dir, name+".json")
	w.admin(t, "robot", "token", "create", "proxyagent", name, "-f", file)
	for _, c := range []*cluster.Cluster{w.pair.A, w.pair.B} {
		manifest := kubectl(t, c, "create", "secret", "generic", "robot-token", "-n", "default", "--from-file=token="+file, "--dry-run=client", "-o", "yaml")
		if err := os.WriteFile(file+".yaml", []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		kubectl(t, c, "apply", "-f", file+".yaml")
	}
}

var issuedLine = regexp.MustCompile(`"msg":"credentials issued","id":"([^"]+)"`)

// enrolled waits until as many parties as given got credentials, as the hub's log says behind its
// first bytes.
func (w *world) enrolled(t *testing.T, skip, parties int) {
	t.Helper()
	eventually(t, "all have shown the new token", 2*time.Minute, func(context.Context) error {
		seen := map[string]bool{}
		for _, match := range issuedLine.FindAllStringSubmatch(readFile(t, w.hub.Log())[skip:], -1) {
			seen[match[1]] = true
		}
		if len(seen) < parties {
			return fmt.Errorf("these have: %v", slices.Sorted(maps.Keys(seen)))
		}
		return nil
	})
}

// ready waits until the condition Ready of the quick start's Proxy has a reason.
func (w *world) ready(t *testing.T, reason string) {
	t.Helper()
	eventually(t, "the Proxy says "+reason, 2*time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxies.postern.dev", "private-cluster", "-n", "default", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].reason}`)
		if err == nil && out != reason {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}
