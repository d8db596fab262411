//go:build linux

// Package quickstart_test follows guides to the letter, on two real clusters, with images from our
// own build and our charts, and then makes trouble.
package quickstart_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/proc"
)

// TestClusters is everything on one pair of clusters, because a pair takes long to start. Parts leave
// things as they found them, but for the consumer's pod, which may be another one. One can be run
// alone, as those that need it follow the quick start first:
//
//	go test -run 'TestClusters/selector' -v ./quickstart
func TestClusters(t *testing.T) {
	w := newWorld(t)
	t.Run("apart", w.apart)
	t.Run("private cluster", w.privateCluster)
	t.Run("quick start", w.connected)
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"identity", w.identity},
		{"helm test", w.helmTests},
		{"roles", w.roles},
		{"upgrade", w.upgrade},
		{"identity renewed", w.identityRenewed},
		{"inside", w.inside},
		{"token", w.token},
		{"shared agent", w.sharedAgent},
		{"restarts", w.restarts},
		{"selector", w.selector},
		{"webhook down", w.webhookDown},
		{"compatibility", w.compatibility},
		{"remove", w.remove}, // last, as nothing is left
	} {
		t.Run(part.name, func(t *testing.T) {
			w.connected(t)
			part.test(t)
		})
	}
}

// connected has the quick start followed, unless it was before: pods of A that the Proxy
// default/private-cluster selects reach B, such as the consumer.
func (w *world) connected(t *testing.T) {
	t.Helper()
	switch {
	case w.quickStart == nil:
		w.quickStart = newReader(t, w)
		w.followQuickStart(t, w.quickStart)
		w.works = true
	case !w.works:
		t.Fatal("the quick start did not work")
	}
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
