//go:build linux

// Package quickstart_test follows a guide to the letter, on two real clusters, with images from our
// own build and the agent's chart, and then makes trouble.
package quickstart_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/proc"
)

// TestPrivateCluster follows the guide. The consumer stands for the guide's controllers, and runs
// from the moment when its kubeconfig is there, long before there is a way.
func TestPrivateCluster(t *testing.T) {
	w := newWorld(t)
	r := newReader(t, w)
	began := time.Now()
	for _, s := range steps(t, "private-cluster.md") {
		r.follow(t, s)
		switch number, _, _ := strings.Cut(s.heading, "."); number {
		case "2":
			w.startConsumer(t)
			w.cannot(t)
		case "6":
			w.can(t)
		}
	}
	t.Logf("the guide took %s", time.Since(began).Round(time.Second))
	t.Run("upgrade", func(t *testing.T) { w.upgrade(t, "postern") })
	t.Run("restarts", w.restarts)
	t.Run("uninstall", func(t *testing.T) { w.uninstall(t, r) })
}

// kubectl runs kubectl on a cluster and wants it to succeed.
func kubectl(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	out, err := c.KubectlInside(limit(t, time.Minute), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits until a check holds.
func eventually(t *testing.T, what string, within time.Duration, check func(context.Context) error) {
	t.Helper()
	if err := proc.Wait(limit(t, within), what, check); err != nil {
		t.Fatal(err)
	}
}

var errNot = errors.New("not yet")
