// Package filelock takes an advisory lock on a file, so that test runs that start at the same
// time wait for each other. The kernel drops the lock when its holder ends, however it ends.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Logf reports progress, one line a call.
type Logf func(format string, args ...any)

// Lock is a lock that is held.
type Lock struct {
	file *os.File
}

// Acquire waits until it holds the lock on the named file, which it makes, or until ctx ends. It
// says once that it waits.
func Acquire(ctx context.Context, name string, logf Logf) (*Lock, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for waiting := false; ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return &Lock{file: file}, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		case !waiting:
			waiting = true
			logf("another run holds %s; waiting for it", name)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Release gives the lock up. The file stays: to remove it would let two runs hold a lock each.
func (l *Lock) Release() {
	l.file.Close()
}
