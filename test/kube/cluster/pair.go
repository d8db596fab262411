//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/test/kube/bins"
	"postern.dev/postern/test/kube/debian"
	"postern.dev/postern/test/kube/filelock"
)

// Pair is two clusters that cannot reach each other, nor be reached from outside. Both reach
// HostIP, and nothing else.
type Pair struct {
	A, B *Cluster
}

// StartPair starts two clusters at once. The caller must Close it.
func StartPair(ctx context.Context, a, b Options) (*Pair, error) {
	lock, set, err := prepare(ctx, a)
	if err != nil {
		return nil, err
	}
	lock.share()
	p := &Pair{}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		p.A, err = start(groupCtx, a, firstSite(), lock, set)
		return err
	})
	group.Go(func() (err error) {
		p.B, err = start(groupCtx, b, secondSite(), lock, set)
		return err
	})
	if err := group.Wait(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close closes both clusters.
func (p *Pair) Close() {
	var closing sync.WaitGroup
	for _, c := range []*Cluster{p.A, p.B} {
		if c != nil {
			closing.Go(c.Close)
		}
	}
	closing.Wait()
}

// StartT is Start for a test: it logs to the test, fails it, and closes the cluster at its end.
func StartT(t *testing.T) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Options{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// prepare builds and installs what is missing, and reserves the machine for one cluster.
func prepare(ctx context.Context, opts Options) (*machine, *bins.Set, error) {
	logf := opts.Logf
	if logf == nil {
		logf = func(string, ...any) {}
	}
	if os.Geteuid() != 0 {
		return nil, nil, debian.ErrNotRoot
	}
	set, err := bins.Ensure(ctx, logf)
	if err != nil {
		return nil, nil, err
	}
	if err := debian.Ensure(ctx, logf, packages()...); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the clusters' folder: %w", err)
	}
	lock, err := filelock.Acquire(ctx, filepath.Join(base, "lock"), logf)
	if err != nil {
		return nil, nil, err
	}
	return &machine{lock: lock, users: 1}, set, nil
}

// machine is the reservation of this machine, which the clusters of a pair share.
type machine struct {
	mu    sync.Mutex
	lock  *filelock.Lock
	users int
}

// share adds a user.
func (m *machine) share() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users++
}

// release ends one use, and with the last one the reservation.
func (m *machine) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users--; m.users == 0 {
		m.lock.Release()
	}
}
